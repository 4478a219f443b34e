"""Numbers of a row and a step."""

import torch

from hf_evidenceflow.models.thinking.row_draws import RowDraws


CPU = torch.device("cpu")
ROWS, STEPS = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 3, 5, 4])


def make_draws(rows=3, seed=0):
    torch.manual_seed(seed)
    return RowDraws(rows, CPU)


def test_a_seed_gives_the_numbers_again():
    first, second, other = (make_draws(seed=seed).uniform(ROWS, STEPS, 7, 0) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.isclose(first, other).any()


def test_numbers_belong_to_the_row_and_the_step():
    draws = make_draws()
    together = draws.normal(ROWS, STEPS, 7, 1)
    for index in range(4):
        alone = draws.normal(ROWS[index : index + 1], STEPS[index : index + 1], 7, 1)
        assert torch.equal(alone[0], together[index])


def test_rows_steps_streams_and_places_have_numbers_of_their_own():
    draws = make_draws()
    rows, steps = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    numbers = torch.cat([draws.uniform(rows, steps, 50, stream).flatten() for stream in (0, 1)])
    assert len(numbers.unique()) > 0.999 * len(numbers)  # of 2^23


def test_uniform_numbers_fill_the_open_interval_evenly():
    """200,000 numbers in 50 bins: chi-square beyond 99.9 % (85.4 at 49 degrees) finds a bin that is off by 8 %."""
    numbers = make_draws(100).uniform(torch.arange(100), torch.zeros(100).long(), 2000, 0).flatten()
    assert numbers.min() > 0 and numbers.max() < 1
    counts = numbers.histc(50, 0, 1)
    assert ((counts - 4000).square() / 4000).sum() < 85.4


def test_normal_and_gumbel_numbers_have_their_moments():
    """At 200,000 numbers a mean is known to .0022 (normal) and .0029 (Gumbel); the bounds are 4 of these."""
    draws = make_draws(100)
    arguments = torch.arange(100), torch.zeros(100).long(), 2000, 0
    normal, gumbel = draws.normal(*arguments), draws.gumbel(*arguments)
    assert abs(normal.mean()) < 0.009 and abs(normal.var() - 1) < 0.013
    assert abs(gumbel.mean() - 0.57722) < 0.012 and abs(gumbel.var() - torch.pi**2 / 6) < 0.04
    neighbours = torch.corrcoef(torch.stack([normal[:-1].flatten(), normal[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.009
