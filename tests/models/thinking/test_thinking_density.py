"""Log-densities of draws: against torch's distributions, by finite differences, and in their limits."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Gumbel, Normal

from hf_evidenceflow.models.thinking.thinking_density import (
    choice_log_density,
    gaussian_log_density,
    gumbel_log_density,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gaussian_is_the_sum_over_entries():
    mean, drawn = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    expected = Normal(mean, 0.7).log_prob(drawn).sum(-1)
    torch.testing.assert_close(gaussian_log_density(mean, drawn, 0.7), expected)


def test_the_gumbel_is_the_sum_over_tokens_around_normalized_log_probabilities():
    scores, drawn = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    expected = Gumbel(scores.log_softmax(-1), torch.ones((), dtype=torch.float64)).log_prob(drawn).sum(-1)
    torch.testing.assert_close(gumbel_log_density(scores, drawn), expected)
    torch.testing.assert_close(gumbel_log_density(scores + 9, drawn), expected)


def test_the_choice_is_a_bernoulli():
    logits, choice = normal(2, 3), torch.tensor([[0, 1, 1], [1, 0, 0]])
    expected = Bernoulli(logits=logits).log_prob(choice.double())
    torch.testing.assert_close(choice_log_density(logits, choice), expected)


def test_a_token_that_was_cut_counts_nothing_and_the_others_share_its_probability():
    scores, drawn = normal(2, 5), normal(2, 5, seed=1)
    expected = gumbel_log_density(scores[:, :3], drawn[:, :3])
    scores[:, 3:] = drawn[:, 3:] = -torch.inf
    torch.testing.assert_close(gumbel_log_density(scores, drawn), expected)


def test_where_nothing_was_drawn_density_and_gradient_are_0():
    scores = normal(2, 5).requires_grad_()
    density = gumbel_log_density(scores, torch.full((2, 5), -torch.inf))
    choice = choice_log_density(scores, torch.full((2, 5), -1))
    (density.sum() + choice.sum()).backward()
    assert not density.any() and not choice.any() and not scores.grad.any()


CASES = {
    "gaussian": lambda values: gaussian_log_density(values, normal(3, 5, seed=1), 0.7),
    "gumbel": lambda values: gumbel_log_density(values, normal(3, 5, seed=1)),
    "choice": lambda values: choice_log_density(values, torch.tensor([[0, 1, -1, 1, 0]] * 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case):
    assert torch.autograd.gradcheck(CASES[case], normal(3, 5).requires_grad_())


def test_as_sigma_goes_to_0_the_density_leaves_only_the_mean():
    """Log-density at a fixed distance falls without limit, at the mean it rises as -H log sigma."""
    mean = normal(1, 5)
    at_mean = [gaussian_log_density(mean, mean, 10.0**-k).item() for k in (1, 2, 3)]
    away = [gaussian_log_density(mean, mean + 0.1, 10.0**-k).item() for k in (1, 2, 3)]
    rises = torch.tensor(at_mean, dtype=torch.float64).diff()
    torch.testing.assert_close(rises, torch.full_like(rises, 5 * math.log(10)))
    assert away[0] > away[1] > away[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_fp32(dtype):
    mean, drawn = normal(3, 5).to(dtype), normal(3, 5, seed=1).to(dtype)
    assert gaussian_log_density(mean, drawn, 0.7).dtype == torch.float32
    torch.testing.assert_close(
        gaussian_log_density(mean, drawn, 0.7), gaussian_log_density(mean.float(), drawn.float(), 0.7)
    )
    assert gumbel_log_density(mean, drawn.float()).dtype == torch.float32
