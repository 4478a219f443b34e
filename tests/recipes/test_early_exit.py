"""The early-exit recipe end to end, in this process and at the smallest size; and what it says to bad input."""

import json

import pytest
import torch
from repository import RECIPES
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes import early_exit
from hf_evidenceflow.report.run_record import read_run_record


@pytest.fixture(scope="module")
def recipe():
    return early_exit


@pytest.fixture
def arguments(tmp_path, tokenizer):
    torch.manual_seed(0)
    checkpoint = tmp_path / "checkpoint"
    LlamaForCausalLM(LlamaConfig(**TINY, initializer_range=0.2)).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    return [
        *("--config", str(RECIPES / "configs/early_exit/smoke.yaml")),
        *("--model_name_or_path", str(checkpoint), "--output_dir", str(tmp_path / "run")),
        *("--max_documents", "5", "--batch_size", "2", "--prompts", "2", "--max_new_tokens", "5", "--rounds", "1"),
        *("--device", "cpu"),
    ]


@pytest.mark.slow
def test_it_measures_writes_and_prints(recipe, arguments, tmp_path, capsys):
    results = recipe.main(arguments)
    run = tmp_path / "run"
    saved = json.loads((run / "early_exit.json").read_text())
    assert [row["depth"] for row in saved["exits"]] == [1, 2, 3]
    assert saved["exits"][-1]["agreement"] == 1.0 and saved["exits"][-1]["accept_rate"] is None
    assert [row["threshold"] for row in saved["thresholds"]] == [0.5, 0.9]
    assert all(row["speed"]["tokens_per_second"] > 0 for row in saved["exits"] + saved["thresholds"])
    assert results["exits"][0]["self_speculation_speed"]["ratio"] > 0
    assert read_run_record(run)["status"] == "finished"
    assert read_run_record(run)["metrics"] == saved
    assert (run / "early_exit.png").stat().st_size > 10_000
    table = (run / "early_exit.md").read_text()
    assert "| layers | perplexity |" in table and "| threshold | average layers |" in table
    assert "Exit by a criterion, per token" in capsys.readouterr().out


@pytest.mark.slow
def test_it_reads_a_text_file(recipe, arguments, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc abd abe<|endoftext|>a<|endoftext|>xyz xyw xyv")
    results = recipe.main(
        [*arguments, "--dataset_name_or_path", str(text), "--layers", "last:2", "--self_speculation", "false"]
    )
    # 11 tokens each; the document of a single token has nothing to predict
    assert [row["tokens"] for row in results["exits"]] == [20, 20]
    assert all(row["self_speculation_speed"] is None for row in results["exits"])


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--thresholds", "1.5"], r"in \[0, 1\].*1.5"),
        (["--rounds", "0"], "rounds.*got 0"),
        (["--criterion", "entropy"], "entropy"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(recipe, arguments, tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        recipe.main([*arguments, *extra])
    assert not (tmp_path / "run").exists()


def test_a_layer_that_does_not_exist_is_refused(recipe, arguments):
    with pytest.raises(ValueError, match="from 1 to 3"):
        recipe.main([*arguments, "--layers", "every:4"])


def test_a_text_of_few_documents_fills_the_rows_with_their_further_parts(recipe, tokenizer, tmp_path):
    (tmp_path / "long.txt").write_text("2 cats and 3 dogs ran<|endoftext|>a dog")
    settings = {"dataset_name_or_path": str(tmp_path / "long.txt"), "max_documents": 3, "max_length": 5}
    rows = recipe.load_rows(recipe.EarlyExitArguments("model", "out", **settings), tokenizer)
    ids = tokenizer("2 cats and 3 dogs ran", return_tensors="pt").input_ids[0]
    assert [row.tolist() for row in rows] == [
        ids[:5].tolist(),
        tokenizer("a dog").input_ids[:5],
        ids[5:10].tolist(),
    ]
