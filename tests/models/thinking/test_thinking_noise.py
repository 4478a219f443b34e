"""What sampling draws besides tokens: its distribution, its records, and a pass that computes the density again."""

import pytest
import torch
from naive_methods import make_method
from scipy import stats
from thinking_models import MASK, PROMPTS, make_thinker, think

from hf_evidenceflow import RolloutEngine, collect_thinking
from hf_evidenceflow.models.thinking.thinking_density import (
    choice_log_density,
    gaussian_log_density,
    gumbel_log_density,
)


LOOPS = {"stock": dict, "engine": lambda: {"custom_generate": RolloutEngine(max_rows=2)}}
SAMPLED = {"do_sample": True, "top_k": 0}
ROWS = 4000
DRAWS = ["soft_tokens", "gumbel", "tarpo"]


def roll_out(mode, loop, **kwargs):
    """A model of a preset, sequences and rollout of 3 prompts, without a marker."""
    model = make_method(mode)
    with collect_thinking() as rollouts:
        sequences = think(model, 10, **SAMPLED, **LOOPS[loop](), **kwargs).sequences
    return model, sequences, rollouts[0]


def computed_again(model, sequences, rollout):
    """Log-densities `[B, C]` from one pass with the recorded states."""
    mask = torch.cat([MASK, torch.ones_like(rollout.mask, dtype=torch.long)], dim=1)
    hidden = model.model(
        sequences, attention_mask=mask, thinking_states=rollout.states, thinking_mask=rollout.mask
    ).last_hidden_state[:, -rollout.mask.shape[1] - 1 : -1]
    scores, method = model.lm_head(hidden), model.config.thinking_method
    if method.schedule == "head":
        return choice_log_density(model.model.thinking_head(hidden), rollout.choice)
    if method.noise == "gumbel":
        return gumbel_log_density(scores.gather(-1, rollout.drawn_ids), rollout.drawn)
    mean = model.thinking_source()(scores, hidden)
    return torch.where(rollout.mask, gaussian_log_density(mean, rollout.states, model.thinking_noise_scale()), 0.0)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", DRAWS)
def test_a_pass_with_the_records_gives_the_density_of_the_rollout(mode, loop):
    model, sequences, rollout = roll_out(mode, loop)
    with torch.no_grad():
        again = computed_again(model, sequences, rollout)
    torch.testing.assert_close(again.float(), rollout.log_density, rtol=1e-4, atol=2e-3)
    assert rollout.log_density.ne(0).float().mean() > 0.5


@pytest.mark.parametrize("mode", DRAWS)
def test_states_of_the_wrong_token_give_another_density(mode):
    """Or the test above would show nothing."""
    model, sequences, rollout = roll_out(mode, "stock")
    rollout.states = rollout.states.roll(1, dims=1)
    with torch.no_grad():
        again = computed_again(model, sequences, rollout)
    assert (again - rollout.log_density).abs().max() > 0.05


@pytest.mark.parametrize("mode", DRAWS)
def test_the_density_has_a_gradient(mode):
    model, sequences, rollout = roll_out(mode, "engine")
    computed_again(model, sequences, rollout).sum().backward()
    weights = [model.model.layers[0].mlp.up_proj.weight]
    weights += [model.model.thinking_head.weight] if mode == "tarpo" else []
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in weights)


@pytest.mark.parametrize("mode", ["soft", "swi", "projection"])
def test_a_method_without_draws_records_none(mode):
    _, _, rollout = roll_out(mode, "stock")
    assert rollout.log_density is rollout.drawn is rollout.drawn_ids is rollout.choice is None


@pytest.mark.parametrize("mode", DRAWS)
def test_thoughts_are_over_where_the_count_ends(mode):
    model = make_method(mode, thinking_count=4)
    with collect_thinking() as rollouts:
        think(model, 10, **SAMPLED)
    rollout = rollouts[0]
    assert not rollout.log_density[:, 4:].any()
    if mode == "gumbel":
        assert (rollout.drawn[:, 4:] == -torch.inf).all() and rollout.drawn[:, :4].isfinite().all()
    if mode == "tarpo":
        assert (rollout.choice[:, 4:] == -1).all() and set(rollout.choice[:, :4].unique().tolist()) == {0, 1}
        assert torch.equal(rollout.choice == 1, rollout.mask)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("mode", [*DRAWS, "dropout"])
def test_the_same_seed_gives_the_same_rollout_and_another_one_does_not(mode, loop):
    model = make_method("soft", thinking_noise="dropout") if mode == "dropout" else make_method(mode)
    first, second = (think(model, **SAMPLED, **LOOPS[loop]()) for _ in range(2))
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(first.thinking_states, second.thinking_states)
    torch.manual_seed(1)
    settings = {"attention_mask": MASK, "max_new_tokens": 8, "return_dict_in_generate": True}
    other = model.generate(PROMPTS, **settings, **SAMPLED, **LOOPS[loop]())
    assert not torch.equal(first.thinking_states, other.thinking_states)


@pytest.mark.parametrize("mode", [*DRAWS, "dropout"])
def test_draws_do_not_depend_on_the_rows_that_are_decoded_together(mode):
    model = make_method("soft", thinking_noise="dropout") if mode == "dropout" else make_method(mode)
    alone, together = (
        think(model, **SAMPLED, custom_generate=RolloutEngine(max_rows=rows), num_return_sequences=2)
        for rows in (2, None)
    )
    assert torch.equal(alone.sequences, together.sequences)
    torch.testing.assert_close(alone.thinking_states, together.thinking_states, rtol=0, atol=1e-5)


# Distributions


def pairs(mode, **fields):
    """How often each pair of first and second token was drawn in `ROWS` completions, `[V, V]`; and the model."""
    model = make_thinker(mode, None, thinking_answer_start=None, **fields)
    if model.config.thinking_has_head:
        torch.nn.init.constant_(model.model.thinking_head.bias, 0.4)
    prompt = PROMPTS[1:2]
    torch.manual_seed(0)
    settings = {"max_new_tokens": 2, "num_return_sequences": ROWS, "custom_generate": RolloutEngine()}
    drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **SAMPLED)[:, -2:]
    size = model.config.vocab_size
    counts = (drawn[:, 0] * size + drawn[:, 1]).bincount(minlength=size**2).view(size, size)
    return counts.double(), model


@torch.no_grad()
def next_probs(model, inputs):
    """Distributions `[n, V]` behind the prompt, and behind it and inputs `[n, H]`."""
    words = model.get_input_embeddings().weight
    prompt = words[PROMPTS[1]].expand(len(inputs), -1, -1)
    return model(inputs_embeds=torch.cat([prompt, inputs[:, None]], dim=1)).logits[:, -2:].softmax(-1).unbind(1)


def chi_square(counts, expected, other):
    """p-value of the counts under expected probabilities, and power at the 1e-4 level if `other` were the truth."""
    order = expected.flatten().argsort(descending=True)
    counts, expected, other = (each.flatten()[order] for each in (counts, expected, other))
    many = (expected * ROWS >= 8).sum()

    def cells(values):
        return torch.cat([values[:many], values[many:].sum()[None]]).numpy()

    counts, expected, other = cells(counts), cells(expected) * ROWS, cells(other) * ROWS
    degrees = len(counts) - 1
    p_value = stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue
    gap = ((other - expected) ** 2 / expected).sum()
    return p_value, stats.ncx2.sf(stats.chi2.isf(1e-4, degrees), degrees, gap)


def joints(model):
    """Joint probabilities of two tokens, `[V, V]`: under plain sampling, and with the mean embedding fed between."""
    words = model.get_input_embeddings().weight
    first, second = next_probs(model, words)
    first = first[0]
    _, soft = next_probs(model, (first @ words)[None])
    return first[:, None] * second, first[:, None] * soft


def test_soft_thinking_draws_the_second_token_behind_the_mean_embedding():
    counts, model = pairs("soft")
    plain, soft = joints(model)
    p_value, power = chi_square(counts, soft, plain)
    assert p_value > 1e-3 and power > 0.99


def test_a_head_mixes_both_ways_by_its_odds():
    """Power: to find a head that always thinks, and one that never does."""
    counts, model = pairs("tarpo")
    plain, soft = joints(model)
    share = torch.tensor(0.4, dtype=torch.float64).sigmoid()
    expected = share * soft + (1 - share) * plain
    for other in (plain, soft):
        p_value, power = chi_square(counts, expected, other)
        assert p_value > 1e-3 and power > 0.99


def test_gumbel_weights_at_temperature_0_are_plain_sampling():
    """Power: to find mean embeddings instead."""
    counts, model = pairs("gumbel", thinking_top_k=97, thinking_temperature=1e-4)
    plain, soft = joints(model)
    p_value, power = chi_square(counts, plain, soft)
    assert p_value > 1e-3 and power > 0.99


def test_gumbel_weights_at_a_high_temperature_are_far_from_plain_sampling():
    """Or the test above would pass for any weights."""
    counts, model = pairs("gumbel", thinking_top_k=97, thinking_temperature=3.0)
    assert chi_square(counts, *joints(model))[0] < 1e-4


def test_gaussian_states_are_standard_normal_around_the_mean():
    """96,000 numbers: Kolmogorov-Smirnov at .001 finds a distance of .0063, that of a sigma that is off by 3 %."""
    model = make_thinker("soft_tokens", None, thinking_answer_start=None, thinking_sigma=0.2)
    torch.manual_seed(0)
    prompt = PROMPTS[1:2]
    settings = {"max_new_tokens": 1, "num_return_sequences": ROWS, "return_dict_in_generate": True}
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **SAMPLED)
    words = model.get_input_embeddings().weight.detach()
    mean = next_probs(model, words[:1])[0] @ words
    noise = (output.thinking_states[:, 0] - mean) / (0.2 * words.square().mean().sqrt())
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_dropout_takes_the_same_entries_of_a_row_at_each_step():
    model = make_thinker(
        "soft", None, thinking_answer_start=None, thinking_noise="dropout", thinking_noise_dropout=0.3
    )
    states = think(model, **SAMPLED).thinking_states
    gone = (states == 0).all(1)  # [B, H]
    assert torch.equal((states == 0).any(1), gone) and 0 < gone.float().mean() < 0.6
    assert not torch.equal(gone[0], gone[1])
