"""Thinking models in the real lighteval, on the local GSM8K task."""

import json
import sys

import pytest
import torch
from transformers import AutoTokenizer

from hf_evidenceflow import export_base_model, load_thinking_model


pytest.importorskip("lighteval", reason="lighteval is not installed")


@pytest.fixture(scope="module")
def folder(plain_checkpoint, tmp_path_factory):
    """A thinking checkpoint, its base, and the data."""
    folder = tmp_path_factory.mktemp("lighteval")
    torch.manual_seed(7)
    fields = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1, "max_position_embeddings": 1024}
    model = load_thinking_model(plain_checkpoint, dtype=torch.float32, **fields)
    model.save_pretrained(folder / "thinking")
    tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint)
    tokenizer.save_pretrained(folder / "thinking")
    export_base_model(model, folder / "plain", tokenizer)
    rows = [{"question": f"How much is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(5)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def evaluate(folder, monkeypatch):
    """Runs lighteval's command line in the folder; gives the answers in the order of the problems."""
    from lighteval.pipeline import Pipeline

    from hf_evidenceflow.integrations import lighteval
    from hf_evidenceflow.integrations.tasks import gsm8k_rows

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))  # of the cache
    monkeypatch.setenv("GSM8K_DATA", str(folder))
    monkeypatch.setenv("GSM8K_MAX_TOKENS", "8")
    found = []
    show = Pipeline.show_results
    monkeypatch.setattr(Pipeline, "show_results", lambda self: (found.append(self), show(self)))
    task = gsm8k_rows.__file__.replace("gsm8k_rows", "gsm8k_lighteval")

    def evaluate(*arguments):
        options = ["gsm8k_local", "--custom-tasks", task, "--output-dir", "out"]
        files = [lighteval.__file__] if arguments[0] == "custom" else []
        monkeypatch.setattr(sys, "argv", ["lighteval", *arguments, *files, *options])
        with pytest.raises(SystemExit) as ended:
            lighteval.main()
        assert ended.value.code == 0
        (details,) = found.pop().evaluation_tracker.details_logger.details.values()
        return [detail.model_response.text for detail in details]

    return evaluate


@pytest.mark.slow
def test_without_thinking_the_answers_are_those_of_the_stock_backend(evaluate):
    plain = evaluate("accelerate", "model_name=plain,dtype=float32,batch_size=2")
    assert evaluate("custom", "thinking,thinking_mode=none,dtype=float32,batch_size=2") == plain
    assert evaluate("custom", "thinking,dtype=float32,batch_size=2") != plain


def test_an_unknown_option_is_named():
    from hf_evidenceflow.integrations.lighteval import read_options

    with pytest.raises(ValueError, match=r"thinking_mode.*\[.mode.\]"):
        read_options("outputs/model,mode=none")
