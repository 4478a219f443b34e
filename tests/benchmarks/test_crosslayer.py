"""The cross-layer benchmarks at a tiny size: they run, and write what they say."""

import importlib
import json
import sys

import pytest
import torch
from repository import BENCHMARKS
from transformers import LlamaConfig, LlamaForCausalLM


pytestmark = pytest.mark.slow

PASSES = ["training", "forward", "decoding"]


@pytest.fixture(scope="module")
def load_benchmark():
    folder = BENCHMARKS
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        for path in (folder / "timing.py", *folder.glob("crosslayer_*.py")):
            # Names may be those of modules of other tests, which are to be back afterwards
            monkeypatch.setitem(sys.modules, path.stem, None)
            del sys.modules[path.stem]
        yield importlib.import_module


def run(load_benchmark, name, folder, *options):
    output = folder / f"{name}.json"
    load_benchmark(name).main([*options, "--threads", "1", "--output", str(output)])
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["setting"]["command"].startswith(f"python benchmarks/{name}.py {options[0]}")
    assert {"cpu", "threads", "torch", "transformers", "git"} <= results["setting"].keys()
    return results


@pytest.fixture(scope="module")
def costs(load_benchmark, tmp_path_factory):
    options = (
        "--lengths 13 23 --depths 2 3 --variants base v2m3 v4m1 v4m5 --growth_variants base v4m5 --path_variants v4m1 "
        "v4m5 --rounds 1 --new_tokens 3 --batch_size 2 --hidden_size 24 --heads 3 --kv_heads 1 --intermediate_size 40 "
        "--vocab_size 50"
    )
    folder = tmp_path_factory.mktemp("costs")
    return run(load_benchmark, "crosslayer_cost", folder, *options.split()), folder


def test_cost_has_all_variants_at_the_first_point_and_some_at_the_others(costs):
    points = costs[0]["points"]
    assert [(point["length"], point["depth"]) for point in points] == [(13, 2), (23, 2), (13, 3)]
    assert list(points[0]["tables"]) == [*PASSES, "generation"]
    for index, point in enumerate(points):
        names = ["llama", "base", "v4m5"] if index else ["llama", "base", "v2m3", "v4m1", "v4m5"]
        for kind in PASSES:
            assert list(point["tables"][kind]) == names
            for row in point["tables"][kind].values():
                assert {"seconds", "ratio", "ratio_min", "ratio_max"} <= row.keys()
                assert ("peak_mb" in row) == (kind != "decoding")
    assert all("tokens_per_second" in row for row in points[0]["tables"]["generation"].values())


def test_base_trains_in_the_memory_of_llama(costs):
    assert costs[0]["points"][0]["tables"]["training"]["base"]["peak_ratio"] == pytest.approx(1, abs=0.01)


def test_cost_compares_the_ways_to_the_scores_that_a_variant_can_take(costs):
    for point in costs[0]["paths"]:
        for variant, ways in (
            ("v4m1", ["running_sum", "concatenate", "products"]),
            ("v4m5", ["concatenate", "products"]),
        ):
            assert list(point["variants"][variant]) == PASSES
            for row in point["variants"][variant].values():
                assert list(row["paths"]) == ways
                assert row["fastest"] in ways and row["chosen"] in ways


def test_a_way_that_needs_more_memory_than_allowed_is_left_out(load_benchmark):
    cost = load_benchmark("crosslayer_cost")
    args = cost.parse(["--heads", "3", "--memory_limit_gb", "1e-5"])
    config = cost.CrossLayerLlamaConfig(variant="v4m1")
    assert cost.possible_paths(args, config, length=13, depth=0) == list(cost.PATHS)  # 4 matrices of 2 kB
    assert cost.possible_paths(args, config, length=13, depth=2) == ["concatenate"]


def test_no_way_to_the_scores_holds_more_of_them_with_depth(costs):
    for ways in costs[0]["checks"]["variants"].values():
        for row in ways.values():
            assert row["inference_does_not_grow_with_depth"]
            assert row["extra_peak_bytes"].keys() == {"4", "8"}


def test_training_saves_at_most_a_score_matrix_for_each_layer_and_the_sum(costs):
    for ways in costs[0]["checks"]["variants"].values():
        for way, row in ways.items():
            assert row["at_most_one_a_layer_and_the_sum"]
            if way != "concatenate":  # there it depends on the kernel
                assert row["matrices_saved_in_training"] == {"4": 4, "8": 8}


def test_cost_draws_the_growth(costs):
    assert (costs[1] / "crosslayer_cost.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def identity(load_benchmark, llama):
    options = ["--model_name_or_path", str(llama), "--length", "17", "--rows", "2", "--steps", "5"]
    variants = ["--variants", "v2m1", "v2m3", "v4m4", "v4m5", "denseformer"]
    return run(load_benchmark, "crosslayer_identity", llama, *options, *variants)


def test_identity_finds_the_plain_model_in_each_variant(identity):
    ways = {name: row["way"] for name, row in identity["identity"].items()}
    own = "own parameters"
    assert ways == {"v2m1": "gate", "v2m3": own, "v4m4": "gate", "v4m5": own, "denseformer": own}
    for name, row in identity["identity"].items():
        near = 1e-5 if name in ("v2m1", "v4m4", "denseformer") else 1e-2
        assert row["relative_logit_difference"] < near
        assert row["perplexity"] == pytest.approx(row["perplexity_before"], rel=near)


def test_identity_tells_earlier_terms_from_the_own_one(identity):
    row = identity["identity"]["v4m5"]
    for figure in ("gradient_norms", "gradient_norms_after_steps", "moved_norms"):
        assert row[figure].keys() >= {
            "score_log_a (own)",
            "score_log_a (earlier)",
            "model.layers.1.self_attn.score_log_a (earlier)",
        }
    assert row["gradient_relative_to_no_identity"]["score_log_a (earlier)"] < 0.1
    assert row["gradient_relative_to_no_identity"]["score_log_a (own)"] > 0.1


def test_steps_from_identity_lower_the_loss(identity):
    for row in identity["identity"].values():
        assert row["loss_after"] < row["loss_before"]


def test_a_saturated_softmax_hardly_has_a_gradient(identity):
    assert list(identity["saturated"]) == ["v2m3"]
    for start, low, high in (("identity", 1e-5, 1), ("saturated", 0, 1e-6)):
        ratios = identity[start]["v2m3"]["gradient_relative_to_no_identity"]
        assert low < ratios["mlp_residual_weights (earlier)"] < high


def test_identity_says_so_where_the_text_is_too_short(load_benchmark, llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("short", encoding="utf-8")
    options = ["--model_name_or_path", str(llama), "--text_file", str(text)]
    with pytest.raises(ValueError, match=r"lower `--length`"):
        run(load_benchmark, "crosslayer_identity", tmp_path, *options)
