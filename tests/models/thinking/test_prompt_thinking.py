"""Prompts that hold thoughts: a second turn from text and states is the one that goes on with a cache."""

import pytest
import torch
from thinking_models import MASK, PROMPTS, make_thinker

from hf_evidenceflow import RolloutEngine


each_mode = pytest.mark.parametrize("mode", ["projection", "embedding", "soft", "coconut", "pause"])
SAID = torch.tensor([[6, 3, 8], [12, 5, 5], [9, 9, 4]])  # what a tool said: text


def thinker(mode="projection", count=None):
    return make_thinker(mode, count, thinking_answer_start=None)


def generate(model, ids, **kwargs):
    mask = torch.cat([MASK, MASK.new_ones(3, ids.shape[1] - MASK.shape[1])], dim=1)
    kwargs = {"attention_mask": mask[: len(ids)], "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(ids, **{"max_new_tokens": 6, **kwargs})


def two_turns(model):
    """The prompt of a second turn, its thoughts, and what follows it by the cache of the first turn."""
    first = generate(model, PROMPTS, max_new_tokens=5)
    ids = torch.cat([first.sequences, SAID], dim=1)
    states = torch.nn.functional.pad(first.thinking_states, (0, 0, 0, 3))
    thoughts = {"thinking_states": states, "thinking_mask": torch.nn.functional.pad(first.thinking_mask, (0, 3))}
    return ids, thoughts, generate(model, ids, past_key_values=first.past_key_values)


def assert_same(output, expected):
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert torch.equal(output.thinking_mask, expected.thinking_mask)
    # Rotary embeddings are fp32
    torch.testing.assert_close(output.thinking_states, expected.thinking_states, rtol=0, atol=1e-4)


@each_mode
@pytest.mark.parametrize("count", [3, 9])
def test_a_second_turn_reads_the_first_with_its_states(mode, count):
    model = thinker(mode, count)
    ids, thoughts, expected = two_turns(model)
    assert_same(generate(model, ids, **thoughts), expected)


@pytest.mark.parametrize("mode", ["projection", "soft"])
def test_without_the_states_the_second_turn_is_another(mode):
    model = thinker(mode)
    ids, thoughts, expected = two_turns(model)
    shifted = thoughts | {"thinking_states": thoughts["thinking_states"].roll(1, dims=1)}
    assert generate(model, ids).sequences.tolist() != expected.sequences.tolist()
    assert generate(model, ids, **shifted).sequences.tolist() != expected.sequences.tolist()


@pytest.mark.parametrize("settings", [{"prefill_chunk_size": 2}, {"prefill_chunk_size": 5}, {"use_cache": False}])
def test_it_does_not_matter_in_which_passes_the_prompt_is_read(settings):
    model = thinker()
    ids, thoughts, expected = two_turns(model)
    output = generate(model, ids, **thoughts, disable_compile=True, **settings)
    assert_same(output, expected)


def test_a_static_cache_takes_them():
    model = thinker()
    ids, thoughts, expected = two_turns(model)
    output = generate(model, ids, **thoughts, cache_implementation="static", disable_compile=True)
    assert_same(output, expected)


@each_mode
def test_the_engine_reads_the_first_turn_with_its_states(mode):
    model = thinker(mode, 3)
    ids, thoughts, expected = two_turns(model)
    assert_same(generate(model, ids, **thoughts, custom_generate=RolloutEngine(prefill_tokens=25)), expected)


def test_rows_of_the_same_tokens_keep_their_own_thoughts_in_the_engine():
    model = thinker()
    ids, thoughts, _ = two_turns(model)
    ids = ids[:1].repeat(2, 1)
    thoughts = {name: value[:1].repeat_interleave(2, dim=0) for name, value in thoughts.items()}
    thoughts["thinking_mask"][1] = False
    settings = {**thoughts, "attention_mask": torch.ones_like(ids)}
    expected = generate(model, ids, **settings)
    assert expected.sequences[0].tolist() != expected.sequences[1].tolist()
    assert_same(generate(model, ids, custom_generate=RolloutEngine(), **settings), expected)


def test_several_completions_of_a_prompt_share_its_thoughts():
    model = thinker()
    ids, thoughts, expected = two_turns(model)
    output = generate(model, ids, **thoughts, do_sample=True, top_k=1, num_return_sequences=2)
    assert output.sequences[::2].tolist() == output.sequences[1::2].tolist() == expected.sequences.tolist()


def test_mode_none_leaves_them_out():
    model = thinker()
    ids, thoughts, _ = two_turns(model)
    model.config.thinking_mode = "none"
    assert generate(model, ids, **thoughts).sequences.tolist() == generate(model, ids).sequences.tolist()


def test_thoughts_that_do_not_fit_are_errors():
    model = thinker()
    states, mask = torch.zeros(3, 2, 24, dtype=torch.double), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="`thinking_states` of a prompt needs `thinking_mask`, got None"):
        generate(model, PROMPTS, thinking_states=states)
    for wrong in (mask[:, :1], mask[:2]):
        with pytest.raises(ValueError, match=r"got \(3, 2, 24\) and .* for `input_ids` of \(3, 4\)"):
            generate(model, PROMPTS, thinking_states=states, thinking_mask=wrong)
    cache = generate(model, PROMPTS).past_key_values
    with pytest.raises(ValueError, match="`past_key_values` of 9 positions, which hold the thoughts"):
        generate(model, PROMPTS, thinking_states=states, thinking_mask=mask, past_key_values=cache)
