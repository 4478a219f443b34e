"""The caches, the ways of serving, and the whole recipe of fast inference."""

import importlib.util
import json

import pytest
import torch
from repository import RECIPES
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes.course.fast_inference.cache_kinds import (
    CacheResult,
    cache_bytes,
    cache_kinds,
    decode_with_cache,
)
from hf_evidenceflow.recipes.course.fast_inference.inference_plots import inference_rows, plot_fast_inference
from hf_evidenceflow.recipes.course.fast_inference.serving import compare_serving
from hf_evidenceflow.recipes.course.fast_inference.speculation import SpeculationResult
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows


RECIPE = RECIPES / "course" / "fast_inference" / "run.py"
PROMPT = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "eos_token_id": None, "initializer_range": 0.25}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3)).eval()


def load_recipe():
    spec = importlib.util.spec_from_file_location("fast_inference_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["none", "dynamic", "static"])
def test_exact_caches_do_not_change_the_tokens(model, kind):
    plain = model.generate(PROMPT, max_new_tokens=17, do_sample=False)[0, 5:]
    result = decode_with_cache(model, PROMPT, cache_kinds(model, 30)[kind], 17)
    assert torch.equal(result.tokens, plain) and len(result.milliseconds) == 16


def test_the_memory_of_a_cache_is_that_of_its_keys_and_values(model):
    cache = DynamicCache(config=model.config)
    model.generate(PROMPT, max_new_tokens=17, do_sample=False, past_key_values=cache)
    # Keys and values, layers, heads, positions (the last token is not in the cache), head size, bytes of float32
    assert cache_bytes(cache) == 2 * 3 * 2 * (5 + 16) * 8 * 4


def test_an_eight_bit_cache_takes_a_quarter_of_the_memory(model):
    kinds = cache_kinds(model, 30)
    dynamic, eight = (decode_with_cache(model, PROMPT, kinds[kind], 17) for kind in ("dynamic", "8-bit (fp8)"))
    # Beside the bytes there are two scales a layer
    assert eight.megabytes == pytest.approx(dynamic.megabytes / 4 + 2 * 3 * 4 / 1e6, rel=1e-9)


def test_all_ways_of_serving_give_the_same_tokens_and_blocks_take_the_least_room(model):
    prompts = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9]]
    results, trace = compare_serving(model, prompts, 3, 9, num_blocks=40, block_size=4, pad_token_id=0)
    assert all(row["identical"] == 3 for row in results.values())
    assert results["block table"]["peak_slots"] < results["`generate`, one padded batch"]["peak_slots"]
    assert trace.found_tokens == 8  # one block of four tokens for the second prompt, and for the third


def test_the_picture_has_drafts_by_place_caches_and_blocks(model, tmp_path):
    _, trace = compare_serving(model, [[1, 2, 3, 4, 5, 6]], 3, 5, num_blocks=40, block_size=4, pad_token_id=0)
    assert trace.tables[0][0] == trace.tables[1][0] and trace.tables[0][-1] != trace.tables[1][-1]
    results = {
        f"draft {count}": SpeculationResult(2, 0.6, 2.0, [0.8, 0.7, 0.6, 0.5][:count], 1.3, 1.2, 1.4)
        for count in (2, 3, 4)
    }
    caches = {"dynamic": CacheResult(torch.tensor([1]), 0.1, [3.0, 4.0, 5.0, 6.0])}
    counts = {count: f"draft {count}" for count in (2, 3, 4)}
    rows = PictureRows("fast_inference", [0], {}, **inference_rows(results, counts, caches, trace))
    assert plot_fast_inference(rows, tmp_path / "picture.png").exists()


def test_a_target_without_a_draft_is_refused():
    arguments = load_recipe().FastInferenceArguments
    with pytest.raises(ValueError, match="go together"):
        arguments(model_name_or_path="somewhere")
    with pytest.raises(ValueError, match=r"must be at least 1, got \[0, 2\]"):
        arguments(draft_counts=[0, 2])


def test_methods_are_chosen_by_parts_of_their_names_and_a_wrong_one_is_named():
    arguments = load_recipe().FastInferenceArguments
    chosen = arguments(methods=["draft", "cache"], draft_counts=[3], early_exit_depth=0).methods
    assert chosen == ["draft model, 3 tokens", "KV caches"]
    with pytest.raises(ValueError, match="'first layers', which is no part of any of: draft model, 2 tokens; "):
        arguments(methods=["first layers"], early_exit_depth=0)


@pytest.mark.slow
def test_the_recipe_runs_one_method_without_the_others_models(tmp_path):
    sizes = {"max_documents": 300, "train_steps": 2, "target_layers": 2, "target_size": 64, "prompts": 2}
    sizes |= {"early_exit_depth": 0, "max_new_tokens": 4, "rounds": 1, "methods": "n-grams"}
    metrics = load_recipe().main([f"--output_dir={tmp_path}", *(f"--{name}={value}" for name, value in sizes.items())])
    assert "caches" not in metrics and set(metrics["speculation"]) == {"plain", "n-grams of the prompt"}
    assert not (tmp_path / "draft").exists() and not (tmp_path / "fast_inference.png").exists()


@pytest.mark.slow
def test_the_recipe_runs_whole(tmp_path):
    sizes = {"max_documents": 300, "train_steps": 20, "target_layers": 3, "target_size": 64, "draft_size": 32}
    sizes |= {"early_exit_depth": 1, "prompts": 2, "max_new_tokens": 12, "draws": 40, "rounds": 1, "num_samples": 2}
    metrics = load_recipe().main([f"--output_dir={tmp_path}", *(f"--{name}={value}" for name, value in sizes.items())])
    assert all(row["identical"] == 2 for row in metrics["speculation"].values())
    assert all(row["identical"] == row["prompts"] for row in metrics["serving"].values())
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    for name in ("fast_inference.md", "fast_inference.png", "target/model.safetensors", "draft/model.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
