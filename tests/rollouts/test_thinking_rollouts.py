"""Rollouts of thinking models with the engine: the records are those of the stock loop, and training sees them."""

import pytest
import torch
from tiny_models import TINY

from hf_evidenceflow import RolloutEngine, collect_thinking, load_thinking_model


def make_model(path, mode, marker="####"):
    torch.manual_seed(7)
    fields = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6, "thinking_answer_start": marker}
    model = load_thinking_model(path, thinking_mode=mode, **fields).eval()
    for gate in (model.model.thinking_residual_gate_r, model.model.thinking_residual_gate_i):
        torch.nn.init.normal_(gate.weight, std=0.3)
    return model


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(["Tom has 3 apples.", "Ann?", "7+2=", "Ann?"], return_tensors="pt", padding=True)


def roll_out(model, prompts, tokenizer, engine=None, **kwargs):
    torch.manual_seed(0)
    kwargs = {"max_new_tokens": 11, "do_sample": True, "top_k": 0, "num_return_sequences": 3, **kwargs}
    with collect_thinking(tokenizer, logps_temperature=1.0, engine=engine) as rollouts:
        sequences = model.generate(**prompts, tokenizer=tokenizer, **kwargs)
    return sequences, rollouts[0] if rollouts else None


def teacher_forced_gap(model, prompts, sequences, rollout, shift=0):
    """Largest gap of log-probabilities to a pass with the recorded states, up to the end of each row."""
    count = rollout.mask.shape[1]
    tokens = sequences[:, -count:]
    mask = torch.cat([prompts.attention_mask.repeat_interleave(3, 0), torch.ones_like(tokens)], dim=1)
    with torch.no_grad():
        states = rollout.states.roll(shift, dims=1)
        logits = model(sequences, attention_mask=mask, thinking_states=states, thinking_mask=rollout.mask).logits
    logps = logits[:, -count - 1 : -1].log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    eos = tokens == TINY["eos_token_id"]
    return ((logps - rollout.logps) * ~(eos.cumsum(1) - eos.long() > 0)).abs().max().item()


@pytest.mark.parametrize("mode", ["projection", "embedding", "soft"])
def test_records_are_those_of_the_stock_loop(plain_checkpoint, tokenizer, prompts, mode):
    model = make_model(plain_checkpoint, mode, marker="a")
    expected_tokens, expected = roll_out(model, prompts, tokenizer)
    tokens, found = roll_out(model, prompts, tokenizer, RolloutEngine(draws="multinomial"))
    assert tokens.tolist() == expected_tokens.tolist()
    assert found.mask.tolist() == expected.mask.tolist()
    assert 0 < found.mask.float().mean() < 1
    torch.testing.assert_close(found.states[found.mask], expected.states[found.mask], atol=1e-5, rtol=1e-4)
    completions = tokens[:, -found.mask.shape[1] :]
    fed = found.mask & (completions != TINY["eos_token_id"])  # the stock loop feeds it while others go on
    for name in ("embeds_ratio", "gate", "hidden_ratio"):
        torch.testing.assert_close(getattr(found, name)[fed], getattr(expected, name)[fed], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"eos_token_id": [1, *range(20, 60)]}, {"stop_strings": list("bds5Q")}], ids=["tokens", "strings"]
)
@pytest.mark.parametrize("mode", ["projection", "embedding", "soft"])
def test_rows_that_leave_and_enter_think_as_in_the_stock_loop(plain_checkpoint, tokenizer, prompts, mode, options):
    model = make_model(plain_checkpoint, mode, marker="a").double()  # else rounding may decide between two tokens
    options = {"do_sample": False, "top_k": None, "num_return_sequences": 1, **options}
    expected_tokens, expected = roll_out(model, prompts, tokenizer, **options)
    tokens, found = roll_out(model, prompts, tokenizer, RolloutEngine(max_rows=2), **options)
    count = found.mask.shape[1]
    assert tokens.tolist() == expected_tokens.tolist()
    assert found.mask.tolist() == expected.mask.tolist()
    assert len((tokens[:, -count:] != TINY["pad_token_id"]).sum(1).unique()) > 1
    torch.testing.assert_close(found.states[found.mask], expected.states[found.mask], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("mode", ["projection", "embedding", "soft"])
def test_teacher_forcing_with_the_records_gives_the_rollouts_log_probabilities(
    plain_checkpoint, tokenizer, prompts, mode, max_rows
):
    model = make_model(plain_checkpoint, mode)
    sequences, rollout = roll_out(model, prompts, tokenizer, RolloutEngine(max_rows))
    assert teacher_forced_gap(model, prompts, sequences, rollout) < 1e-4
    assert teacher_forced_gap(model, prompts, sequences, rollout, shift=1) > 1e-2


def test_a_thinking_model_may_be_given_the_engine_by_its_caller(plain_checkpoint, tokenizer, prompts):
    model = make_model(plain_checkpoint, "projection", marker=None)
    torch.manual_seed(0)
    output = model.generate(
        **prompts, max_new_tokens=5, do_sample=True, custom_generate=RolloutEngine(), return_dict_in_generate=True
    )
    assert output.thinking_states.shape == (4, 5, TINY["hidden_size"])


def test_without_thinking_the_tokens_are_the_base_models(plain_checkpoint, tokenizer, prompts):
    model = make_model(plain_checkpoint, "none")
    expected, _ = roll_out(model, prompts, tokenizer)
    tokens, rollout = roll_out(model, prompts, tokenizer, RolloutEngine(draws="multinomial"))
    assert tokens.tolist() == expected.tolist() and rollout is None


def test_calls_that_the_engine_cannot_run_go_to_the_stock_loop(plain_checkpoint, tokenizer, prompts):
    model = make_model(plain_checkpoint, "projection")
    expected, _ = roll_out(model, prompts, tokenizer, cache_implementation="static")
    tokens, rollout = roll_out(model, prompts, tokenizer, RolloutEngine(), cache_implementation="static")
    assert tokens.tolist() == expected.tolist() and rollout is not None
