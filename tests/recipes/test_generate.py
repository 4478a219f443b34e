"""`recipes/generate.py`: decoding options, seeds, where prompts come from, and bad input."""

import importlib.util
import json
import shutil

import pytest
import torch
from repository import RECIPES
from transformers import AutoModelForCausalLM

from hf_evidenceflow import (
    AblationLlamaConfig,
    AblationLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
)


@pytest.fixture(scope="module")
def generate():
    path = RECIPES / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(generate, plain_checkpoint):
    return lambda *options, model=plain_checkpoint: generate.main(
        ["--model_name_or_path", str(model), "--max_new_tokens", "9", *options]
    )


def test_temperature_zero_is_stock_greedy_decoding(run, plain_checkpoint, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint)
    inputs = tokenizer("2 cats", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    (row,) = run("--prompts", "2 cats", "--temperature", "0")
    assert row["text"] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_the_models_generation_config_does_not_slip_in(run, plain_checkpoint, tmp_path):
    shutil.copytree(plain_checkpoint, tmp_path / "hostile")
    settings = {"min_p": 0.9, "no_repeat_ngram_size": 1, "max_time": 1e-9, "eos_token_id": 1, "pad_token_id": 0}
    (tmp_path / "hostile" / "generation_config.json").write_text(json.dumps(settings))
    rows = run("--prompts", "2 cats", model=tmp_path / "hostile")
    assert rows == run("--prompts", "2 cats")


@pytest.mark.parametrize("options", [("--top_k", "1"), ("--top_p", "1e-6"), ("--temperature", "1e-4")])
def test_the_narrowest_sampling_is_greedy(run, options):
    assert run("--prompts", "2 cats", *options) == run("--prompts", "2 cats", "--temperature", "0")


def test_samples_differ_and_the_same_seed_repeats_them(run):
    options = ("--prompts", "2 cats", "a dog", "--num_samples", "3")
    rows = run(*options, "--seed", "5")
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, k) for p in ("2 cats", "a dog") for k in range(3)]
    assert len({row["text"] for row in rows}) > 3
    assert run(*options, "--seed", "5") == rows != run(*options, "--seed", "6")


def test_top_k_samples_from_the_most_probable_tokens_only(run, plain_checkpoint, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint)
    with torch.no_grad():
        logits = model(**tokenizer("2 cats", return_tensors="pt")).logits[0, -1]
    allowed = {tokenizer.decode(token, skip_special_tokens=True) for token in logits.topk(3).indices}
    rows = run("--prompts", "2 cats", "--max_new_tokens", "1", "--top_k", "3", "--num_samples", "50")
    assert {row["text"] for row in rows} == allowed


@pytest.mark.parametrize("family", ["ablation", "thinking"])
def test_models_of_the_package_are_continued(run, tokenizer, tmp_path, family):
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    if family == "ablation":
        model = AblationLlamaForCausalLM(AblationLlamaConfig.vanilla(**sizes))
    else:
        model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**sizes))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(run("--prompts", "2 cats", "--num_samples", "2", model=tmp_path)) == 2


def test_without_a_prompt_the_model_begins_by_itself(run):
    (row,) = run()
    assert row["prompt"] == "" and row["text"]


def test_prompts_come_from_a_file_and_continuations_go_to_one(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("2 cats\n\na dog\n")
    rows = run("--prompt_file", str(tmp_path / "prompts.txt"), "--output_file", str(tmp_path / "out.jsonl"))
    assert [row["prompt"] for row in rows] == ["2 cats", "a dog"]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top_p", "0"), r"`top_p` must be in \(0, 1\], got 0\.0"),
        (("--temperature", "-1"), r"`temperature` must be at least 0, got -1\.0"),
        (("--max_new_tokens", "0"), "`max_new_tokens` must be at least 1, got 0"),
        (("--temperature", "0", "--num_samples", "2"), "all 2 samples would be the same"),
        (("--prompts", "a", "--prompt_file", "b"), "not both"),
    ],
)
def test_bad_options_are_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(*options)


def test_a_missing_or_empty_prompt_file_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.txt"):
        run("--prompt_file", str(tmp_path / "absent.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt holds no line"):
        run("--prompt_file", str(tmp_path / "empty.txt"))
