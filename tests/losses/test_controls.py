"""The control that takes the target of another token."""

import math

import pytest
import torch

from hf_evidenceflow.losses import other_tokens, shuffled


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffled_never_takes_the_tokens_own_target(count):
    generator, own = seeded(), torch.arange(count)
    for _ in range(100):
        drawn = other_tokens(count, generator)
        assert (drawn != own).all()
        assert drawn.min() >= 0 and drawn.max() < count


def test_shuffled_draws_each_other_token_equally_often():
    generator = seeded()
    draws = torch.stack([other_tokens(4, generator) for _ in range(3000)])
    counts = torch.bincount(draws[:, 1], minlength=4)
    # 1000 each, with a standard deviation of 26
    assert counts[1] == 0
    assert (counts[[0, 2, 3]] - 1000).abs().max() < 130, counts


def test_a_token_that_is_alone_gets_itself():
    assert other_tokens(1, seeded()).tolist() == [0]
    assert other_tokens(0, seeded()).tolist() == []


def test_shuffled_follows_its_seed_and_leaves_the_global_generator():
    states, targets = torch.randn(7, 5, generator=seeded(2)), torch.randn(7, 5, generator=seeded(3))
    before = torch.get_rng_state()
    first, again, other = (shuffled(states, targets, seeded(seed)).item() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_shuffled_by_hand():
    # With two tokens there is only one other
    states, targets = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    assert shuffled(states, targets, seeded()).item() == pytest.approx((9 + 1) / 2)
    assert math.isclose(shuffled(states + torch.tensor([[3.0], [1.0]]), targets, seeded()).item(), 0.0)
