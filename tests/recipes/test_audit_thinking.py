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
    assert [line.split("|")[1].strip() for line in lines[6:]] == ["on", "off", "zero", "shuffle", "mean"]


def test_the_numbers_are_in_json_and_in_the_record(folder):
    numbers = json.loads((folder / "audit.json").read_text())
    assert numbers["problems"] == 9
    assert numbers["interventions"]["shuffle"]["difference"].keys() >= {"value", "low", "high", "p_holm"}
    record = read_run_record(folder)
    assert record["status"] == "finished" and record["metrics"]["on"] == numbers["interventions"]["on"]


def test_each_problem_has_its_completions(folder):
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert all(
        set(row["completions"]) == set(row["scores"]) == {"on", "off", "zero", "shuffle", "mean"} for row in rows
    )


def test_a_data_set_is_read(recipe, checkpoint, tmp_path):
    rows = [{"question": f"A{mark}:c1,c2", "answer": "#### 1"} for mark in ("", "?", "B", "B?")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name_or_path": tmp_path / "test.jsonl", "interventions": "zero"}
    audit = recipe.main(options(checkpoint, tmp_path / "out", **data))
    assert len(audit.scores["zero"]) == 4


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"task": "sets", "interventions": "swap"}, r"got \['swap'\]"),
        ({"task_settings": '{"moves": 3}'}, "`task_settings` are for generated tasks"),
        ({"task": "sets", "dataset_name_or_path": "x.jsonl"}, "`task=sets` is generated"),
        ({"task": "open_qa"}, "Give `dataset_name_or_path`"),
        ({"task": "sets", "batch_size": 1}, "`batch_size` must be at least 2, got 1"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(recipe, checkpoint, tmp_path, others, message):
    with pytest.raises(SystemExit, match=message):
        recipe.main(options(checkpoint, tmp_path, **others))
