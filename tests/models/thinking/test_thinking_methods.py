"""Each way of thinking in both decoding loops, against a naive loop and in its neutral setting."""

import pytest
import torch
from naive_methods import make_method, naive_loop
from thinking_models import MASK, PROMPTS, make_thinker, think

from hf_evidenceflow import RolloutEngine, ThinkingIntervention, load_thinking_model
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


MODES = [mode for mode in THINKING_METHODS if mode != "none"]
LOOPS = {"stock": dict, "engine": lambda: {"custom_generate": RolloutEngine(max_rows=2)}}
IN_STEP = {"stock": dict, "engine": lambda: {"custom_generate": RolloutEngine(draws="multinomial")}}
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


def think_behind_keys(model, **kwargs):
    """As `think`, with the random numbers behind those that a call with noise takes for the keys of its rows."""
    torch.manual_seed(0)
    torch.randint(1 << 62, (len(PROMPTS),))
    settings = {"max_new_tokens": 8, "return_dict_in_generate": True, **kwargs}
    return model.generate(PROMPTS, attention_mask=MASK, **settings)


def check_against_naive_loop(model, loop, **kwargs):
    loops = IN_STEP if kwargs else LOOPS
    output = think(model, 10, **loops[loop](), **kwargs)
    expected_tokens, expected_mask = naive_loop(model, sample=bool(kwargs))
    assert tokens(output).tolist() == expected_tokens
    assert output.thinking_mask.tolist() == expected_mask


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", MODES)
def test_greedy_tokens_are_those_of_the_naive_loop(mode, loop, family):
    check_against_naive_loop(make_method(mode, family), loop)


@pytest.mark.parametrize("loop", IN_STEP)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("soft_tokens", "gumbel", "tarpo")])
def test_sampled_tokens_are_those_of_the_naive_loop(mode, loop):
    """With the random numbers of the stock loop. What draws more than tokens: `test_thinking_noise.py`."""
    check_against_naive_loop(make_method(mode), loop, **SAMPLED)


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


# Neutral settings


NEVER = {
    "swi": {"thinking_max_blocks": 0},
    "soft": {"thinking_schedule": "confidence", "thinking_threshold": 0.0},
    "switch": {"thinking_start_id": 96, "thinking_end_id": 95},
    "tarpo": {},  # greedy decoding under a fresh head
    "later": {"thinking_count": 0},
    "soft_tokens": {"thinking_count": 0},
    "gumbel": {"thinking_count": 0},
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", NEVER)
def test_a_row_that_never_thinks_is_bit_equal_to_the_base_model(mode, loop):
    sampled = {} if mode in ("tarpo", "switch") else SAMPLED  # no start token is drawn in greedy decoding
    settings = {"output_logits": True} if loop == "stock" else {}
    model = make_thinker(mode, None, thinking_answer_start=None, thinking_placeholder_id=29, **NEVER[mode])
    is_noisy = model.config.thinking_method.noise != "none"
    expected = (think_behind_keys if is_noisy else think)(make_thinker("none"), **LOOPS[loop](), **sampled, **settings)
    found = think(model, **LOOPS[loop](), **sampled, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    assert not found.thinking_mask.any()
    if settings:
        assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("mode", "fields"),
    [("soft_tokens", {"thinking_sigma": 0}), ("soft", {"thinking_noise": "dropout", "thinking_noise_dropout": 0.0})],
    ids=["sigma 0", "dropout 0"],
)
def test_noise_of_size_0_is_soft_thinking_bit_for_bit(mode, fields, loop):
    model, soft = (make_thinker(name, 5, **settings) for name, settings in ((mode, fields), ("soft", {})))
    expected = (think if mode == "soft_tokens" else think_behind_keys)(soft, **SAMPLED, **LOOPS[loop]())
    found = think(model, **SAMPLED, **LOOPS[loop]())
    assert torch.equal(found.sequences, expected.sequences)
    mask = expected.thinking_mask
    assert torch.equal(found.thinking_mask, mask) and mask.any()
    assert torch.equal(found.thinking_states[mask], expected.thinking_states[mask])


@pytest.mark.parametrize("mode", ["soft_tokens", "gumbel"])
def test_greedy_decoding_draws_no_states(mode):
    greedy = think(make_method(mode)), think(make_method(mode, thinking_noise="none", thinking_token_policy="argmax"))
    assert torch.equal(greedy[0].sequences, greedy[1].sequences)


# Ways to decode


WAYS = {
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
    "prompt in pieces": {"prefill_chunk_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["swi", "later", "switch", "tarpo"])
def test_greedy_tokens_do_not_depend_on_the_way(mode, way):
    model = make_method(mode)
    assert torch.equal(think(model, 10, **WAYS[way]).sequences, think(model, 10).sequences)


@pytest.mark.parametrize("mode", ["swi", "switch", "tarpo", "later"])
def test_a_cut_call_goes_on_in_the_middle_of_a_block(mode):
    model = make_method(mode)
    expected = think(model, 10)
    for count in (1, 2, 4, 6):
        first = think(model, count)
        second = model.generate(
            first.sequences,
            attention_mask=torch.cat([MASK, MASK.new_ones(3, count)], dim=1),
            max_new_tokens=10 - count,
            past_key_values=first.past_key_values,
            do_sample=False,
            return_dict_in_generate=True,
        )
        assert torch.equal(second.sequences, expected.sequences), count
        assert torch.equal(second.thinking_mask, expected.thinking_mask[:, count:]), count


def test_a_prompt_that_ends_with_the_start_token_begins_with_thoughts():
    model = make_thinker("switch", None, thinking_answer_start=None, thinking_start_id=9, thinking_end_id=96)
    assert think(model).thinking_mask[:, 0].tolist() == [True, False, False]
    check_against_naive_loop(model, "engine")


def test_the_answer_marker_ends_blocks_for_good(tokenizer, plain_checkpoint):
    """Each token of this marker ends the thinking, so that no later block begins."""
    model = load_thinking_model(plain_checkpoint, thinking_mode="swi", thinking_min_text=1, thinking_answer_start="a")
    prompts = tokenizer(["Tom has 3 apples.", "Ann?"], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    settings = {"max_new_tokens": 40, "do_sample": True, "eos_token_id": None, "return_dict_in_generate": True}
    output = model.generate(**prompts, tokenizer=tokenizer, **settings)
    completions = output.sequences[:, prompts.input_ids.shape[1] :]
    ends = torch.tensor([["a" in tokenizer.decode(token) for token in row] for row in completions.tolist()])
    ended = ends.cumsum(1) > 0
    assert ended.any() and not output.thinking_mask[ended].any() and output.thinking_mask.any()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", ["swi", "tarpo", "gumbel", "soft_tokens", "switch", "later"])
def test_an_intervention_off_feeds_tokens_and_zero_feeds_zeros(mode, loop):
    model = make_method(mode)
    with ThinkingIntervention("off"):
        assert not think(model, **LOOPS[loop]()).thinking_mask.any()
    with ThinkingIntervention("zero"):
        output = think(model, **LOOPS[loop]())
    assert not output.thinking_states[output.thinking_mask].any()
