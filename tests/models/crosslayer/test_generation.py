"""Decoding with a cache equals full recomputation, whatever the variant, the cache and the order of the tokens."""

import pytest
import torch
from moved_crosslayer import moved_model
from tiny_models import TINY
from transformers import DynamicCache, StaticCache

from hf_evidenceflow.models.crosslayer.configuration_crosslayer import VARIANTS


IDS = torch.randint(3, TINY["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(5))
# One of each kind of cross-layer state, where a test need not run all
KINDS = ["v2m1", "v2m3", "v3m1", "v3m4_2", "v4m4", "v4m5", "value_residual", "denseformer"]
KINDS += ["hyper_connections", "mhc", "block_attention"]


def in_chunks(model, cache, sizes):
    logits, start = [], 0
    for size in sizes:
        logits.append(model(IDS[:, start : start + size], past_key_values=cache, use_cache=True).logits)
        start += size
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_logits_equal_uncached_ones(variant, implementation, cache):
    model = moved_model(variant, implementation)
    expected = model(IDS, use_cache=False).logits
    made = DynamicCache(config=model.config) if cache == "dynamic" else StaticCache(model.config, max_cache_len=17)
    # A first chunk, a chunk behind a past, single tokens
    logits = in_chunks(model, made, [4, 3, 1, 1, 2])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_left_padding_changes_nothing(variant, implementation):
    model = moved_model(variant, implementation)
    short = IDS[1:, :7]
    alone = model(short).logits
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    padded = IDS.clone()
    padded[1, :4] = 0
    padded[1, 4:] = short
    logits = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(logits[1:, 4:], alone, rtol=1e-5, atol=1e-5)


def generated(model, **arguments):
    return model.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False, **arguments)


@pytest.mark.parametrize("variant", KINDS)
def test_greedy_decoding_with_each_cache_equals_recomputation(variant):
    model = moved_model(variant)
    expected = generated(model, use_cache=False)
    assert torch.equal(generated(model), expected)
    assert torch.equal(generated(model, cache_implementation="static"), expected)
    assert torch.equal(generated(model, prefill_chunk_size=4), expected)
    assert torch.equal(generated(model, prefill_chunk_size=4, cache_implementation="static"), expected)


@pytest.mark.parametrize("variant", ["v2m3", "v3m3_2", "v4m4", "v4m6", "mhc", "block_attention"])
def test_beam_search_with_a_cache_equals_recomputation(variant):
    model = moved_model(variant)
    assert torch.equal(generated(model, num_beams=3), generated(model, num_beams=3, use_cache=False))


def test_padded_rows_of_a_batch_decode_as_alone():
    model = moved_model("v3m2")
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1, :8]], dim=1)
    batch, mask = torch.cat([padded, IDS[1:]]), torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(batch, attention_mask=mask, **arguments)
    assert torch.equal(together[0, 11:], model.generate(IDS[:1, :8], **arguments)[0, 8:])


@torch.no_grad()
def test_recomputing_variants_cache_the_values_of_earlier_layers_with_the_own_ones():
    model = moved_model("v3m1")
    cache = model(IDS, use_cache=True).past_key_values
    assert [layer.values.shape[-1] for layer in cache.layers] == [6, 12, 18]
    assert [layer.keys.shape[-1] for layer in cache.layers] == [6, 6, 6]


@torch.no_grad()
def test_a_gated_model_decodes_with_a_cache():
    for variant in ("v2m1", "v3m2", "v4m4"):
        model = moved_model(variant, cross_layer_gate=True)
        cache = DynamicCache(config=model.config)
        torch.testing.assert_close(in_chunks(model, cache, [5, 1, 5]), model(IDS).logits, rtol=1e-5, atol=1e-5)
