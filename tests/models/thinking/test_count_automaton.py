"""A fixed number of thoughts and the tokens that they have, in both decoding loops, against a naive loop."""

import pytest
import torch
from thinking_models import FIELDS, MASK, PLACEHOLDER, PROMPTS, make_thinker, naive_completions, think

from hf_evidenceflow import RolloutEngine
from hf_evidenceflow.models.thinking.count_automaton import CountAutomaton


COUNTED = ["coconut", "codi", "pause", "soft", "projection"]
each_mode = pytest.mark.parametrize("mode", COUNTED)
each_loop = pytest.mark.parametrize("engine", [False, True], ids=["stock", "engine"])


def loop(engine):
    return {"custom_generate": RolloutEngine(draws="multinomial")} if engine else {}


def completions(output):
    return output.sequences[:, PROMPTS.shape[1] :].tolist()


def test_the_first_tokens_are_thoughts_and_no_other():
    automaton, state, masks = CountAutomaton(2), torch.zeros(3, dtype=torch.long), []
    for _ in range(4):
        state = automaton.step(state, torch.arange(3))
        masks.append(bool((state != automaton.found).all()))
    assert masks == [True, True, False, False]


def test_whether_the_next_token_is_a_thought_is_known_before_it():
    automaton = CountAutomaton(2)
    assert automaton.may_think_next(torch.tensor([0, 1, 2, 3])).tolist() == [True, True, False, False]


@each_loop
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@each_mode
def test_tokens_are_those_of_the_naive_loop(mode, sample, engine):
    model = make_thinker(mode)
    expected = naive_completions(model, sample=sample)
    output = think(model, do_sample=sample, top_k=0, **loop(engine))
    assert completions(output) == expected.tolist()
    assert output.thinking_mask.tolist() == [[True] * 3 + [False] * 5] * 3


@each_loop
@pytest.mark.parametrize("policy", ["sample", "argmax", "placeholder"])
@pytest.mark.parametrize("mode", ["coconut", "soft", "projection"])
def test_each_token_policy_goes_with_each_mode(mode, policy, engine):
    model = make_thinker(mode, thinking_token_policy=policy, thinking_placeholder_id=PLACEHOLDER)
    output = think(model, do_sample=True, top_k=0, **loop(engine))
    assert completions(output) == naive_completions(model, sample=True).tolist()


@each_loop
@each_mode
def test_without_thoughts_the_tokens_are_the_base_models(mode, engine):
    expected = think(make_thinker("none"), do_sample=True, top_k=0).sequences
    output = think(make_thinker(mode, count=0), do_sample=True, top_k=0, **loop(engine))
    assert output.sequences.tolist() == expected.tolist()
    assert not output.thinking_mask.any()


@each_loop
def test_the_placeholder_wins_where_a_processor_has_ruled_it_out(engine):
    output = think(make_thinker("coconut"), do_sample=True, top_k=1, **loop(engine))
    tokens = output.sequences[:, PROMPTS.shape[1] :]
    assert (tokens[:, :3] == PLACEHOLDER).all() and not (tokens[:, 3:] == PLACEHOLDER).all()


@each_mode
def test_a_cut_call_goes_on_with_the_count(mode):
    model = make_thinker(mode)
    expected = think(model)
    for count in (1, 2, 3, 4):
        first = think(model, count)
        mask = torch.cat([MASK, MASK.new_ones(3, count)], dim=1)
        second = model.generate(
            first.sequences,
            attention_mask=mask,
            max_new_tokens=8 - count,
            past_key_values=first.past_key_values,
            do_sample=False,
            return_dict_in_generate=True,
        )
        assert second.sequences.tolist() == expected.sequences.tolist(), count
        assert second.thinking_mask.tolist() == expected.thinking_mask[:, count:].tolist(), count


@each_mode
def test_the_engine_draws_for_several_returned_sequences_as_the_stock_loop_does(mode):
    model = make_thinker(mode)
    settings = {"do_sample": True, "top_k": 5, "num_return_sequences": 2}
    expected, found = think(model, **settings), think(model, **settings, **loop(True))
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(found.thinking_states, expected.thinking_states, atol=1e-4, rtol=0)  # fp32 scores


@each_mode
def test_the_engine_with_rows_that_wait_gives_the_greedy_tokens(mode):
    model = make_thinker(mode)
    found = think(model, custom_generate=RolloutEngine(max_rows=1))
    assert found.sequences.tolist() == think(model).sequences.tolist()


@pytest.mark.parametrize("mode", [mode for mode in COUNTED if mode != "pause"])
def test_a_pass_with_the_recorded_states_gives_the_next_tokens(mode):
    model = make_thinker(mode)
    output = think(model)
    mask = torch.cat([MASK, MASK.new_ones(3, 8)], dim=1)
    inputs = {"thinking_states": output.thinking_states, "thinking_mask": output.thinking_mask}
    with torch.no_grad():
        logits = model(output.sequences, attention_mask=mask, **inputs).logits[:, PROMPTS.shape[1] + 2 : -1]
    assert logits.argmax(-1).tolist() == output.sequences[:, PROMPTS.shape[1] + 3 :].tolist()


def test_pause_records_states_that_change_nothing():
    model = make_thinker("pause")
    output = think(model)
    inputs = {"thinking_states": output.thinking_states + 1, "thinking_mask": output.thinking_mask}
    with torch.no_grad():
        assert torch.equal(model(output.sequences, **inputs).logits, model(output.sequences).logits)


def test_a_count_needs_no_tokenizer_and_no_marker():
    output = think(make_thinker("soft", count=5, thinking_answer_start="####"))
    assert output.thinking_mask.sum(1).tolist() == [5, 5, 5]


@pytest.mark.parametrize("mode", [mode for mode in FIELDS if mode != "none"])
def test_a_prompt_that_is_longer_than_a_chunk_thinks_alike(mode):
    model = make_thinker(mode)
    assert think(model, prefill_chunk_size=2).sequences.tolist() == think(model).sequences.tolist()
