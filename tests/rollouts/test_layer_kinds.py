"""The rollout engine on layers with sliding windows, and on layers with a state of their own."""

import pytest
import torch
from decoder_families import SETTINGS, plain_config
from tiny_models import TINY
from transformers import AutoModelForCausalLM, FalconH1Config

from hf_evidenceflow import RolloutEngine, collect_thinking
from hf_evidenceflow.models.thinking.families import thinking_family
from hf_evidenceflow.models.tiny_config import tiny_config


# Sliding windows, with sinks too; a convolution; linear attention
KINDS = ("gemma3_text", "gpt_oss", "lfm2", "qwen3_5_text")
SAMPLING = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}


def make(family, mode=None):
    """In fp64, or rounding could decide between two tokens; the kernel of gpt-oss's experts has fp32 only."""
    torch.manual_seed(3)
    config = plain_config(family)
    if mode is None:
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        classes = thinking_family(family)
        model = classes.causal_lm(classes.config.from_dict(config.to_dict() | SETTINGS, thinking_mode=mode)).eval()
    return model if family == "gpt_oss" else model.double()


def generate(model, inputs, engine=None, **kwargs):
    torch.manual_seed(0)
    kwargs = {"max_new_tokens": 23, "do_sample": False, **kwargs}
    return model.generate(**inputs, **kwargs, **({} if engine is None else {"custom_generate": engine}))


@pytest.mark.parametrize("family", KINDS)
def test_greedy_tokens_are_those_of_the_stock_loop(family, padded):
    model = make(family)
    expected = generate(model, padded)
    for max_rows in (None, 1, 4):
        assert generate(model, padded, RolloutEngine(max_rows)).tolist() == expected.tolist(), max_rows


@pytest.mark.parametrize("family", KINDS)
def test_draws_are_those_of_the_stock_loop(family, padded):
    model = make(family)
    expected = generate(model, padded, **SAMPLING)
    assert generate(model, padded, RolloutEngine(draws="multinomial"), **SAMPLING).tolist() == expected.tolist()


@pytest.mark.parametrize("family", KINDS)
def test_rows_that_come_and_go_keep_their_draws(family, padded):
    model = make(family)
    options = SAMPLING | {"eos_token_id": [1, *range(60, 75)]}
    expected = generate(model, padded, RolloutEngine(), **options)
    for max_rows in (3, 5):
        assert generate(model, padded, RolloutEngine(max_rows), **options).tolist() == expected.tolist(), max_rows


@pytest.mark.parametrize("family", KINDS)
def test_thinking_rollouts_are_those_of_the_stock_loop(family, padded):
    model = make(family, "projection")
    found = []
    for engine in (None, RolloutEngine(max_rows=4)):
        with collect_thinking(logps_temperature=1.0, engine=engine) as rollouts:
            found.append((generate(model, padded), rollouts[0]))
    (tokens, stock), (others, rollout) = found
    assert tokens.tolist() == others.tolist()
    fed = rollout.mask.nonzero(as_tuple=True)
    torch.testing.assert_close(rollout.states[fed], stock.states[fed], rtol=0, atol=1e-5)  # norms are in fp32


def test_layers_with_keys_and_a_state_are_refused(padded):
    config = tiny_config(FalconH1Config())
    config.vocab_size = TINY["vocab_size"]
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="cache layers of the kinds .'LinearAttentionAndFullAttentionLayer'"):
        generate(model, padded, RolloutEngine())
