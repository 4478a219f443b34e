"""`recipes/layer_skip.py` end to end at the smallest size."""

import json

import pytest
from repository import RECIPES

from hf_evidenceflow.recipes import layer_skip
from hf_evidenceflow.report.run_record import read_run_record


@pytest.mark.slow
def test_it_trains_and_ends_in_a_table_of_both_kinds_of_drafts(tmp_path, capsys):
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    options = {
        "output_dir": tmp_path / "run",
        "config_overrides": json.dumps(sizes),
        "generated_documents": 40,
        "train_vocab_size": 270,
        "block_size": 16,
        "max_steps": 3,
        "per_device_train_batch_size": 3,
        "logging_steps": 1,
        "prompts": 2,
        "prompt_tokens": 5,
        "max_new_tokens": 7,
        "rounds": 1,
        "draft_vocab_size": 50,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    config = str(RECIPES / "configs/layer_skip/smoke.yaml")
    results = layer_skip.main(["--config", config, *arguments, "--draft_depths", "1", "2"])
    rows = json.loads((tmp_path / "run/layer_skip.json").read_text())["rows"]
    assert [(row["kind"], row["depth"]) for row in rows] == [
        (kind, depth) for depth in (1, 2) for kind in ("SelfSpeculation", "assistant_early_exit")
    ]
    assert all(row["identical"] and row["speed"]["ratio"] > 0 for row in rows) and rows == results["rows"]
    assert "| drafts | depth |" in (tmp_path / "run/layer_skip.md").read_text()
    record = read_run_record(tmp_path / "run")
    assert record["self_speculation"]["rows"] == rows and "eval_perplexity" in record["metrics"]
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert any("layer_dropout/skipped" in row and "evidence_flow/loss" in row for row in history)


def test_prompts_longer_than_the_rows_are_refused(tmp_path):
    arguments = ["--model_type", "llama", "--output_dir", str(tmp_path), "--block_size", "8", "--prompt_tokens", "9"]
    with pytest.raises(ValueError, match="`prompt_tokens` is 9, but rows have 8"):
        layer_skip.main(arguments)
