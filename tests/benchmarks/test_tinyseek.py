"""The TinySeek benchmarks at a tiny size: they run, compare what they should, and write what they say."""

import importlib
import json
import sys

import pytest
import torch
from repository import BENCHMARKS

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM


pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 24,
    "heads": 3,
    "latent_size": 10,
    "experts": 7,
    "shared_experts": 2,
    "experts_per_token": 3,
    "loops": 4,
    "vocab_size": 50,
}
TINY = [
    "--rounds",
    "1",
    "--threads",
    "1",
    *(part for name, size in SIZES.items() for part in (f"--{name}", str(size))),
]
TIMES = {"seconds", "ratio", "ratio_min", "ratio_max"}


@pytest.fixture
def load_benchmark(monkeypatch):
    folder = BENCHMARKS
    monkeypatch.syspath_prepend(folder)
    for path in (folder / "timing.py", *folder.glob("tinyseek_*.py")):
        # Names may be those of modules of other tests, which are to be back afterwards
        monkeypatch.setitem(sys.modules, path.stem, None)
        del sys.modules[path.stem]
    return importlib.import_module


@pytest.fixture
def run(load_benchmark, tmp_path):
    def run(name, *options):
        output = tmp_path / f"{name}.json"
        load_benchmark(name).main([*TINY, *options, "--output", str(output)])
        results = json.loads(output.read_text(encoding="utf-8"))
        assert f"benchmarks/{name}.py --rounds 1" in results["setting"]["command"]
        assert {"cpu", "threads", "torch", "transformers", "git"} <= results["setting"].keys()
        return results

    return run


@pytest.fixture
def pair(load_benchmark):
    reference = load_benchmark("tinyseek_reference")
    changes = {"d_model": 24, "n_head": 3, "d_c": 10, "other_experts": 7, "shared_experts": 2, "keep": 3}
    return reference, *reference.make_pair(reference.PUBLISHED | changes | {"vocab_size": 50, "n_layer": 4})


def test_the_reference_has_our_logits(pair):
    module, reference, model = pair
    assert module.check_equal(reference, model, torch.randint(1, 50, (2, 5))) < 1e-5


def test_another_weight_in_the_reference_is_noticed(pair):
    module, reference, model = pair
    with torch.no_grad():
        reference.synonymous_layer.moe_ffn.shared_experts[1].fc2.bias[0] += 0.1  # to all, it would be lost in the norm
    with pytest.raises(RuntimeError, match="do not compare their times"):
        module.check_equal(reference, model, torch.randint(1, 50, (2, 5)))


def test_the_reference_has_our_balance_loss(pair):
    _, reference, model = pair
    moe, states = reference.synonymous_layer.moe_ffn, torch.randn(2, 5, 24)
    moe.noise = False
    with torch.no_grad():
        expected = model.model.layers[0].mlp(states, with_balance=True)[1].item()
        assert moe(states)[1] == pytest.approx(expected, abs=1e-5)


def test_moe_writes_a_table_for_each_pass(run):
    results = run("tinyseek_moe", "--batch_size", "2", "--length", "5", "--new_tokens", "3")
    assert list(results["experts"]) == [
        "forward, 2 x 5 tokens",
        "forward, one token",
        "forward and backward, 2 x 5 tokens",
    ]
    assert list(results["model"]) == [
        "forward, 2 x 5 tokens",
        "decoding, for one token behind 5",
        "forward and backward, 2 x 5 tokens",
    ]
    for part, candidates in (("experts", [4, 4, 6]), ("model", [2, 2, 2])):  # training has the bounds too
        tables = list(results[part].values())
        assert [len(rows) for rows in tables] == candidates
        assert all(row.keys() == TIMES for rows in tables for row in rows.values())
    assert results["largest_logit_difference"] < 1e-5


def test_decoding_with_and_without_a_cache_writes_the_same_tokens(load_benchmark, pair):
    _, reference, model = pair
    reference.synonymous_layer.moe_ffn.noise = False
    decoding = load_benchmark("tinyseek_moe").Decoding(reference, model, torch.randint(1, 50, (1, 5)), 3)
    for _ in range(2):  # the second time as well: the cache is as before
        assert torch.equal(decoding.ours(), decoding.published())


def test_attention_compares_the_caches_at_each_context(run):
    results = run("tinyseek_attention", "--contexts", "7", "13", "--repeats", "2")
    assert list(results["contexts"]) == ["7", "13"]
    for rows in results["contexts"].values():
        assert rows.pop("largest_difference") < 1e-4
        assert len(rows) == 6 and all(row.keys() == TIMES for row in rows.values())
    # Each of 4 loops: latent 10 and rotary 8; 3 heads with key 8 + 8 and value 8
    assert (results["cache_numbers_per_token"], results["expanded_cache_numbers_per_token"]) == (72, 288)
    assert results["cache_ratio"] == 4


def test_scaling_leaves_the_reference_out_where_it_is_asked_to_and_draws(run, tmp_path):
    counts = ["--expert_counts", "5", "9", "--loop_counts", "1", "2", "--contexts", "4", "11"]
    limits = ["--reference_experts", "7", "--reference_context", "4"]
    results = run("tinyseek_scaling", "--batch_size", "2", "--length", "5", *counts, *limits)
    both, ours = {"ours", "published"}, {"ours"}
    for part, points in (("experts", {"5": both, "9": ours}), ("loops", {"1": both, "2": both})):
        for count, names in points.items():
            assert results[part][count]["forward"].keys() == names
            assert results[part][count]["forward and backward"].keys() == names
    for context, names in (("4", both), ("11", ours)):
        assert results["contexts"][context]["forward"].keys() == names
        assert results["contexts"][context]["decoding, one token"].keys() == names
    assert (tmp_path / "tinyseek_scaling.png").read_bytes().startswith(b"\x89PNG")


def test_adaptive_depth_knows_the_depth_of_a_random_model(run):
    results = run("tinyseek_adaptive_depth", "--batch_sizes", "1", "3", "--prompt_tokens", "5", "--new_tokens", "7")
    for rows in results["batches"].values():
        assert rows["full depth"]["average_depth"] == 4
        for depth in (1, 2, 3):
            # The first of 7 tokens comes from the prompt's pass, at full depth
            assert rows[f"fixed depth {depth}"]["average_depth"] == pytest.approx((4 + 6 * depth) / 7)
        assert {"tokens_per_second", "ratio", "agreement", "identical_outputs"} <= rows["confidence 0.9"].keys()


def test_adaptive_depth_at_thresholds_that_nothing_passes_writes_the_tokens_of_full_depth(run):
    settings = ["--prompt_tokens", "5", "--new_tokens", "7", "--batch_sizes", "3", "--depths", "1"]
    rows = run("tinyseek_adaptive_depth", *settings, "--confidences", "1", "--relative_changes", "0")["batches"]["3"]
    for name in ("confidence 1", "relative change 0"):
        assert (rows[name]["average_depth"], rows[name]["agreement"]) == (4, 1)


def test_adaptive_depth_takes_a_trained_folder(run, tokenizer, tmp_path):
    config = TinySeekConfig(
        vocab_size=97, hidden_size=24, num_attention_heads=3, kv_lora_rank=10, q_lora_rank=10, num_hidden_layers=2
    )
    TinySeekForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = ["--model", str(tmp_path / "model"), "--prompt_tokens", "5", "--new_tokens", "3", "--batch_sizes", "2"]
    results = run("tinyseek_adaptive_depth", *settings)
    assert results["batches"]["2"]["fixed depth 1"]["average_depth"] == pytest.approx(4 / 3)


def test_adaptive_depth_says_so_where_documents_are_too_short(run, tokenizer, tmp_path):
    TinySeekForCausalLM(TinySeekConfig(vocab_size=97, hidden_size=24, num_attention_heads=3)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lower `--prompt_tokens` or `--batch_sizes`"):
        run("tinyseek_adaptive_depth", "--model", str(tmp_path), "--prompt_tokens", "5000")
