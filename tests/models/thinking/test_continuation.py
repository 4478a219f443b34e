"""`generate` continued with a returned cache: the same tokens and states as one call."""

import copy

import pytest
import torch
from tiny_models import TINY
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StaticCache

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM


PROMPTS = torch.tensor([[0, 0, 5, 9], [4, 7, 9, 13], [0, 8, 11, 6]])
MASK = (PROMPTS > 0).long()
GATES = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1}
each_mode = pytest.mark.parametrize("mode", ["projection", "embedding", "soft", "none"])


def make_model(mode="projection", **fields):
    """Gates wide open: one token that is fused or not changes the next ones; fp64, or rounding would, too."""
    torch.manual_seed(7)
    fields = {"initializer_range": 0.4, "thinking_answer_start": None, **GATES, **fields}
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY, thinking_mode=mode, **fields)).eval().double()
    model.generation_config.eos_token_id = None
    return model


def generate(model, ids=PROMPTS, count=12, **kwargs):
    mask = torch.cat([MASK, MASK.new_ones(3, max(0, ids.shape[1] - MASK.shape[1]))], dim=1)
    kwargs = {"attention_mask": mask, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(ids, max_new_tokens=count, **kwargs)


@each_mode
def test_two_calls_give_the_tokens_and_states_of_one(mode):
    model = make_model(mode)
    expected, first = generate(model), generate(model, count=5)
    second = generate(model, first.sequences, 7, past_key_values=first.past_key_values)
    assert second.sequences.tolist() == expected.sequences.tolist()
    if mode != "none":
        assert torch.equal(second.thinking_mask, expected.thinking_mask[:, 5:])
        torch.testing.assert_close(second.thinking_states, expected.thinking_states[:, 5:], rtol=0, atol=1e-5)


def test_each_token_may_be_a_call_of_its_own():
    model = make_model()
    output = generate(model, count=1)
    for _ in range(5):
        output = generate(model, output.sequences, 1, past_key_values=output.past_key_values)
    assert output.sequences.tolist() == generate(model, count=6).sequences.tolist()


def test_a_copied_cache_goes_on_too_with_the_new_tokens_alone():
    model = make_model()
    first = generate(model, count=5)
    mask = torch.cat([MASK, MASK.new_ones(3, 5)], dim=1)
    cache = copy.deepcopy(first.past_key_values)
    second = generate(model, first.sequences[:, -1:], 7, past_key_values=cache, attention_mask=mask)
    assert second.sequences[:, 1:].tolist() == generate(model).sequences[:, 9:].tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_of_ones_own_goes_on_without_an_output(kind):
    model = make_model()
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=32)
    settings = {"past_key_values": cache, "return_dict_in_generate": False, "disable_compile": True}
    first = generate(model, count=5, **settings)
    assert generate(model, first, 7, **settings).tolist() == generate(model).sequences.tolist()


@pytest.mark.parametrize("first_count", [2, 3])
def test_a_marker_may_end_in_the_second_call_and_stays_found_in_it(tokenizer, first_count):
    text = torch.tensor(tokenizer("a####7bc").input_ids)

    class Spell(LogitsProcessor):
        def __call__(self, input_ids, scores):
            step = input_ids.shape[1] - PROMPTS.shape[1]
            return torch.full_like(scores, -1e9).index_fill_(1, text[step : step + 1], 0.0)

    model = make_model(thinking_answer_start="####")
    settings = {"tokenizer": tokenizer, "logits_processor": LogitsProcessorList([Spell()])}
    expected, first = (generate(model, count=count, **settings) for count in (6, first_count))
    count = 6 - first_count
    second = generate(model, first.sequences, count, past_key_values=first.past_key_values, **settings)
    assert expected.thinking_mask[0].tolist() == [True, True, False, False, False, False]
    assert torch.equal(second.thinking_mask, expected.thinking_mask[:, first_count:])


def test_behind_more_prompt_tokens_the_completion_is_fused_and_a_new_one_begins(tokenizer):
    token = generate(make_model(), count=1).sequences[0, -1]
    model = make_model(thinking_answer_start=tokenizer.decode(token))
    first = generate(model, count=5, tokenizer=tokenizer)
    assert not first.thinking_mask[0].any()
    ids = torch.cat([first.sequences, torch.tensor([[31, 8], [9, 44], [17, 5]])], dim=1)
    second = generate(model, ids, 1, past_key_values=first.past_key_values, tokenizer=tokenizer, output_logits=True)
    states = torch.cat([first.thinking_states, torch.zeros(3, 2, TINY["hidden_size"])], dim=1)
    mask = torch.cat([first.thinking_mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    attention_mask = torch.cat([MASK, MASK.new_ones(3, 7)], dim=1)
    with torch.no_grad():
        logits = model(ids, attention_mask=attention_mask, thinking_states=states, thinking_mask=mask).logits[:, -1]
    torch.testing.assert_close(second.logits[0], logits.float(), rtol=0, atol=1e-5)
    assert second.thinking_mask.all()


def test_a_prompt_in_the_cache_is_no_completion():
    model = make_model()
    cache = DynamicCache(config=model.config)
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)[:, :3]
    model(PROMPTS[:, :3], attention_mask=MASK[:, :3], position_ids=positions, past_key_values=cache)
    assert generate(model, past_key_values=cache).sequences.tolist() == generate(model).sequences.tolist()


def test_a_cache_cut_back_to_the_prompt_begins_anew():
    model = make_model()
    first = generate(model, count=5)
    first.past_key_values.crop(-5)
    again = generate(model, past_key_values=first.past_key_values)
    assert again.sequences.tolist() == generate(model).sequences.tolist()


def test_a_cache_cut_within_the_completion_is_refused():
    model = make_model()
    first = generate(model, count=5)
    first.past_key_values.crop(-2)
    with pytest.raises(ValueError, match="cut to 6 positions, within the completion at positions 4 to 8"):
        generate(model, first.sequences[:, :7], past_key_values=first.past_key_values)


def test_another_text_is_refused():
    model = make_model()
    first = generate(model, count=5)
    first.sequences[1, -1] += 1
    with pytest.raises(ValueError, match="goes on with the tokens"):
        generate(model, first.sequences, past_key_values=first.past_key_values)


def test_another_mode_is_refused():
    model = make_model()
    first = generate(model, count=5)
    model.config.thinking_mode = "embedding"
    with pytest.raises(ValueError, match="thinking_mode='projection'.*'embedding'"):
        generate(model, first.sequences, past_key_values=first.past_key_values)
