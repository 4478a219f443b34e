"""The parts of PPO against sums written out, token by token, and the masks and clips that bound it."""

import math

import pytest
import torch

from hf_evidenceflow.losses.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    reference_kl,
    token_rewards,
    whiten,
)


MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])  # [3, 5]


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(MASK.shape, generator=generator)


def test_the_score_stands_at_the_last_token_and_the_penalty_at_each():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    logps, ref_logps = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]]), torch.full((2, 3), -1.5)
    rewards = token_rewards(torch.tensor([5.0, -1.0]), mask, logps, ref_logps, beta=0.1)
    expected = torch.tensor([[-0.05, 5.05, 0.0], [-0.05, -0.05, -1.05]])
    torch.testing.assert_close(rewards, expected)


def test_a_completion_without_a_token_that_counts_has_no_reward():
    assert token_rewards(torch.tensor([3.0]), torch.zeros(1, 4)).abs().sum() == 0


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.8), (0.7, 0.0)])
def test_advantages_equal_the_sum_of_discounted_errors(draw, gamma, lam):
    rewards, values = draw(), draw()
    advantages, returns = generalized_advantages(rewards, values, MASK, gamma, lam)
    for row, length in enumerate(MASK.sum(1).tolist()):
        after = [*values[row, :length].tolist(), 0.0]
        errors = [rewards[row, t].item() + gamma * after[t + 1] - after[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-5)
            assert returns[row, t].item() == pytest.approx(expected + after[t], abs=1e-5)


def test_lambda_1_gives_the_return_whatever_the_values(draw):
    rewards = draw() * MASK
    returns = generalized_advantages(rewards, draw(), MASK, gamma=1.0, lam=1.0)[1]
    expected = rewards.flip(1).cumsum(1).flip(1) * MASK
    torch.testing.assert_close(returns, expected)


def test_tokens_outside_the_mask_change_no_advantage(draw):
    rewards, values = draw(), draw()
    before = generalized_advantages(rewards, values, MASK, 0.9, 0.8)
    noise = 100 * draw() * (1 - MASK)
    for one, other in zip(before, generalized_advantages(rewards + noise, values + noise, MASK, 0.9, 0.8)):
        assert torch.equal(one, other)


def test_a_gap_is_stepped_over(draw):
    rewards, values, mask = draw(), draw(), torch.tensor([[1, 1, 0, 1, 1]] * 3)
    kept = [0, 1, 3, 4]
    with_gap = generalized_advantages(rewards, values, mask, 0.9, 0.8)[0][:, kept]
    without = generalized_advantages(rewards[:, kept], values[:, kept], mask[:, kept], 0.9, 0.8)[0]
    torch.testing.assert_close(with_gap, without)


def test_whitened_values_have_mean_0_and_variance_1_in_the_mask(draw):
    whitened = whiten(3 * draw() + 7, MASK)
    kept = whitened[MASK.bool()]
    assert kept.mean().item() == pytest.approx(0, abs=1e-5)
    assert kept.std().item() == pytest.approx(1, abs=1e-5)
    assert whitened[~MASK.bool()].abs().sum() == 0


def test_whitening_can_leave_the_mean(draw):
    values = 3 * draw() + 7
    kept = whiten(values, MASK, shift_mean=False)[MASK.bool()]
    assert kept.mean().item() == pytest.approx(values[MASK.bool()].mean().item(), abs=1e-4)


def test_two_processes_whiten_as_one(draw):
    values = draw()
    parts = [(values[:1], MASK[:1]), (values[1:], MASK[1:])]
    kept = [part[mask.bool()] for part, mask in parts]
    both = torch.cat(kept)
    sums = iter([torch.tensor([both.sum(), len(both)]), (both - both.mean()).square().sum()])
    torch.testing.assert_close(whiten(*parts[0], reduce=lambda local: next(sums)), whiten(values, MASK)[:1])


def test_a_single_token_is_not_whitened_away():
    assert whiten(torch.tensor([[4.0, 9.0]]), torch.tensor([[1, 0]])).tolist() == [[4.0, 0.0]]


@pytest.mark.parametrize(
    "ratio, advantage, expected, is_clipped",
    [
        (1.5, 1.0, -1.2, True),  # a good token made likelier counts up to the clip
        (0.5, 1.0, -0.5, False),  # made less likely, in full
        (0.5, -1.0, 0.8, True),  # a bad token made less likely counts down to the clip
        (1.5, -1.0, 1.5, False),  # made likelier, in full
        (1.1, 2.0, -2.2, False),
    ],
)
def test_the_ratio_is_clipped_where_it_would_gain(ratio, advantage, expected, is_clipped):
    old = torch.tensor([[-2.0]])
    logps = (old + math.log(ratio)).requires_grad_()
    loss, clipped = clipped_policy_loss(logps, old, torch.tensor([[advantage]]), 0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected)
    assert clipped.item() is is_clipped
    assert (logps.grad.abs().sum() == 0).item() is is_clipped


def test_the_upper_clip_can_differ_from_the_lower():
    logps, old, advantages = torch.tensor([[math.log(1.5)]]), torch.zeros(1, 1), torch.ones(1, 1)
    assert clipped_policy_loss(logps, old, advantages, 0.2, 0.4)[0].item() == pytest.approx(-1.4)


@pytest.mark.parametrize(
    "value, expected, is_clipped",
    [
        (1.1, 0.5 * 0.9**2, False),  # near the old value: the plain error
        (1.8, 0.5 * 0.8**2, True),  # towards the return, farther than the clip: the error of 1.2
        (0.0, 0.5 * 2.0**2, False),  # away from it: the plain, larger error
    ],
)
def test_a_value_gains_by_moving_up_to_the_clip_only(value, expected, is_clipped):
    values = torch.tensor([[value]], requires_grad=True)
    loss, clipped = clipped_value_loss(values, torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected)
    assert clipped.item() is is_clipped
    assert (values.grad.abs().sum() == 0).item() is is_clipped


def test_an_infinite_value_clip_is_the_squared_error(draw):
    values, old, returns = draw(), draw(), draw()
    loss, clipped = clipped_value_loss(values, old, returns, math.inf)
    torch.testing.assert_close(loss, 0.5 * (values - returns) ** 2)
    assert not clipped.any()


def test_the_reference_kl_has_the_value_of_the_kl_and_the_gradient_of_its_mirror_image():
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, 0.2, -1.0], dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    # In expectation over the policy's own draws, their weights being no part of the gradient
    estimate = (logps.exp().detach() * reference_kl(logps, reference)).sum()
    kl = (logps.exp() * (logps - reference)).sum()
    torch.testing.assert_close(estimate, kl)
    (gradient,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((reference.exp() * (reference - logps)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, expected)


def test_explained_variance_of_a_perfect_and_a_constant_critic(draw):
    returns = draw()
    assert explained_variance(returns + 3 * (1 - MASK), returns, MASK) == pytest.approx(1)
    assert explained_variance(torch.full_like(returns, 2.0), returns, MASK) == pytest.approx(0, abs=1e-6)
