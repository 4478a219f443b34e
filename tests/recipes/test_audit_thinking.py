"""The audit recipe on a tiny checkpoint, and what it says to bad input."""

import importlib.util
import json

import pytest
import torch
from repository import RECIPES
from tiny_models import TINY

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.tasks import build_set_tokenizer


KINDS = ["on", "off", "zero", "shuffle", "mean", "swap", "direction"]
SETTINGS = {"cups": 5, "moves": 4, "optional": 1}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("audit_thinking", RECIPES / "audit_thinking.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("latent")
    tokenizer = build_set_tokenizer(cups=5)
    torch.manual_seed(0)
    sizes = TINY | {"vocab_size": len(tokenizer)}
    config = ThinkingQwen2Config(**sizes, thinking_mode="soft", thinking_count=2, initializer_range=0.3)
    ThinkingQwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def options(checkpoint, folder, **others):
    given = {"model_name_or_path": checkpoint, "output_dir": folder, "max_new_tokens": 5, "device": "cpu", **others}
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def folder(recipe, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    recipe.main(options(checkpoint, folder, task="sets", task_settings=json.dumps(SETTINGS), max_samples=9))
    return folder


def test_the_table_has_each_intervention(folder):
    lines = (folder / "audit.md").read_text().splitlines()
    assert "9 problems of `sets`, greedy, at most 5 tokens" in lines[2]
    assert [line.split("|")[1].strip() for line in lines[8:]] == KINDS


def test_the_numbers_are_in_json_and_in_the_record(folder):
    numbers = json.loads((folder / "audit.json").read_text())
    assert numbers["problems"] == 9
    assert numbers["interventions"]["shuffle"]["difference"].keys() >= {"value", "low", "high", "p_holm"}
    record = read_run_record(folder)
    assert record["status"] == "finished" and record["metrics"]["on"] == numbers["interventions"]["on"]


def test_each_problem_has_its_completions(folder):
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert all(set(row["completions"]) == set(row["scores"]) == set(KINDS) for row in rows)


def test_the_page_has_the_finding_the_picture_and_each_intervention(folder):
    page = (folder / "audit.html").read_text()
    assert json.loads((folder / "audit.json").read_text())["finding"].partition(" Costs")[0] in page
    assert "data:image/png" in page and (folder / "audit.png").stat().st_size > 1000
    assert all(f"<td>{kind}</td>" in page for kind in KINDS)


def test_a_model_of_another_library_is_audited_through_a_function(recipe, tmp_path):
    (tmp_path / "adapter.py").write_text(
        "def load(path):\n"
        "    assert path == 'elsewhere'\n"
        "    return lambda prompts, intervention: ['####' if intervention == 'zero' else '#### 1'] * len(prompts)\n"
    )
    rows = [{"question": f"A{mark}", "answer": "#### 1"} for mark in range(8)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name_or_path": tmp_path / "test.jsonl", "adapter": tmp_path / "adapter.py", "max_new_tokens": 5}
    argv = options("elsewhere", tmp_path / "out", **data)
    audit = recipe.main([*argv, "--interventions", "zero", "swap"])
    assert audit.scores == {"on": [1.0] * 8, "zero": [0.0] * 8, "swap": [1.0] * 8}
    assert audit.finding().startswith("The answers need a state, but not their own")


def test_an_adapter_without_the_function_is_an_error(recipe, tmp_path):
    (tmp_path / "adapter.py").write_text("pass\n")
    with pytest.raises(ValueError, match="has no function `load"):
        recipe.main(options("elsewhere", tmp_path, task="sets", adapter=tmp_path / "adapter.py"))


def test_a_data_set_is_read(recipe, checkpoint, tmp_path):
    rows = [{"question": f"A{mark}:c1,c2", "answer": "#### 1"} for mark in ("", "?", "B", "B?")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name_or_path": tmp_path / "test.jsonl", "interventions": "zero"}
    audit = recipe.main(options(checkpoint, tmp_path / "out", **data))
    assert len(audit.scores["zero"]) == 4


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"task": "sets", "interventions": "exchange"}, r"got \['exchange'\]"),
        ({"task_settings": '{"moves": 3}'}, "`task_settings` are for generated tasks"),
        ({"task": "sets", "dataset_name_or_path": "x.jsonl"}, "`task=sets` is generated"),
        ({"task": "open_qa"}, "Give `dataset_name_or_path`"),
        ({"task": "sets", "batch_size": 1}, "`batch_size` must be at least 2, got 1"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(recipe, checkpoint, tmp_path, others, message):
    with pytest.raises(SystemExit, match=message):
        recipe.main(options(checkpoint, tmp_path, **others))
