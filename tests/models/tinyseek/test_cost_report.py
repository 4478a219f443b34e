"""The cost report of TinySeek against what the model is and does."""

import pytest
from tiny_tinyseek import MOEUT, TINYSEEK, tiny_tinyseek
from torch.utils.flop_counter import FlopCounterMode

from hf_evidenceflow import TinySeekConfig, cost_report


VARIANTS = [
    {},
    {"norm_position": "pre", "lm_head_bias": False},
    {"num_unique_layers": 3},
    {"n_shared_experts": 0, "tie_word_embeddings": True},
    MOEUT,
]


@pytest.mark.parametrize("fields", VARIANTS)
def test_parameters_are_the_models(fields):
    model = tiny_tinyseek(**fields)
    report = cost_report(model.config)
    assert report.parameters == model.num_parameters()
    assert report.block_parameters == sum(parameter.numel() for parameter in model.model.layers[0].parameters())


@pytest.mark.parametrize("fields", VARIANTS)
def test_flops_are_those_counted_at_one_position(fields):
    model = tiny_tinyseek(**fields)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("batched_mm")
    ids = model.dummy_inputs["input_ids"][:1, :1]
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    assert counter.get_total_flops() == cost_report(model.config).flops_per_token


def test_the_published_cache_is_an_eighth_of_the_expanded_one():
    report = cost_report(TinySeekConfig())
    assert (report.cache_numbers_per_token, report.expanded_cache_numbers_per_token) == (6 * 136, 6 * 1088)
    assert report.cache_bytes_per_token() == 4 * 816


def test_active_parameters_leave_out_idle_experts_and_other_embeddings():
    config = TinySeekConfig(**TINYSEEK)
    idle = (7 - 3) * (2 * 24 * 9 + 9 + 24) + 7 * 24  # experts, and the router's noise
    report = cost_report(config)
    assert report.active_parameters == report.parameters - idle - 96 * 24


def test_a_negative_context_is_an_error():
    with pytest.raises(ValueError, match="`context` must be at least 0, got -1"):
        cost_report(TinySeekConfig(), context=-1)
