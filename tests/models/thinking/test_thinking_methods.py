"""Each way of thinking in both decoding loops, against a naive loop and in its neutral setting."""

import pytest
import torch
from naive_methods import make_method, naive_greedy
from thinking_models import MASK, PROMPTS, make_thinker, think

from hf_evidenceflow import RolloutEngine
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


MODES = [mode for mode in THINKING_METHODS if mode != "none"]
LOOPS = {"stock": dict, "engine": lambda: {"custom_generate": RolloutEngine(max_rows=2)}}
# Combinations that no preset has
OWN = {
    "added hidden states where unsure": ("coconut", {"thinking_mixer": "add", "thinking_schedule": "confidence"}),
    "fusion by entropy": ("swi", {"thinking_source": "fusion", "thinking_fusion": 0.3}),
    "gated alignment between tokens": ("embedding", {"thinking_source": "aligned", "thinking_schedule": "boundary"}),
    "few tokens, sharpened": ("embedding", {"thinking_top_k": 4, "thinking_temperature": 0.6}),
    "a head over the first tokens": ("tarpo", {"thinking_source": "unit_mean_embedding", "thinking_count": 6}),
    "sharpened": ("soft", {"thinking_temperature": 0.6, "thinking_schedule": "always"}),
}
SAMPLED = {"do_sample": True, "top_k": 0}


def tokens(output):
    return output.sequences[:, PROMPTS.shape[1] :]


def check_against_naive_loop(model, loop):
    output = think(model, 10, **LOOPS[loop]())
    expected_tokens, expected_mask = naive_greedy(model)
    assert tokens(output).tolist() == expected_tokens
    assert output.thinking_mask.tolist() == expected_mask
    return output


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", MODES)
def test_greedy_tokens_are_those_of_the_naive_loop(mode, loop, family):
    check_against_naive_loop(make_method(mode, family), loop)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OWN)
def test_own_combinations_are_those_of_the_naive_loop(name, loop):
    mode, fields = OWN[name]
    if "confidence" in fields.values():
        fields = {**fields, "thinking_count": 9, "thinking_token_policy": "argmax", "thinking_threshold": 0.5}
    check_against_naive_loop(make_method(mode, **fields), loop)


@pytest.mark.parametrize("mode", ["swi", "tarpo", "switch"])
def test_rows_are_in_different_phases(mode):
    """Or the tests above would show less than they seem to."""
    mask = think(make_method(mode), 10).thinking_mask
    assert len(mask.unique(dim=0)) > 1 and 0.05 < mask.float().mean() < 0.9
    assert (mask[:, 1:] != mask[:, :-1]).sum() > 1
