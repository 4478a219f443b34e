import itertools

import numpy as np
import pytest
from scipy.stats import binom

from hf_evidenceflow.evaluation.intervals import mean_interval, paired_difference, pass_at_k, proportion_interval


def test_wilson_interval_has_its_closed_form():
    n, p, z = 40, 0.3, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = proportion_interval(12, 40)
    assert interval == pytest.approx((p, middle - half, middle + half), abs=1e-6)


def test_no_success_still_leaves_room_above():
    interval = proportion_interval(0, 20)
    assert interval.low == 0 and 0.1 < interval.high < 0.2


@pytest.mark.parametrize("successes, n", [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_are_an_error(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes}, n={n}"):
        proportion_interval(successes, n)


def test_mean_interval_is_seeded():
    rates = np.random.default_rng(0).random(50)
    assert mean_interval(rates, seed=1) == mean_interval(rates, seed=1)
    assert mean_interval(rates, seed=1) != mean_interval(rates, seed=2)


def test_mean_interval_agrees_with_the_normal_one_on_many_problems():
    rates = np.random.default_rng(0).random(400)
    half = 1.96 * rates.std() / np.sqrt(rates.size)
    # 9,999 resamples place a 2.5 % quantile within about 3 % of the half width
    assert mean_interval(rates) == pytest.approx(
        (rates.mean(), rates.mean() - half, rates.mean() + half), abs=0.1 * half
    )


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_equal_rates_do_not_look_certain(rate):
    interval = mean_interval([rate] * 7)
    assert interval == proportion_interval(int(7 * rate), 7)


def test_rates_outside_the_unit_interval_are_an_error():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        mean_interval([0.5, 3.0])


def test_pass_at_k_is_the_mean_over_all_subsets():
    outcomes = [1, 1, 0, 0, 0, 0, 0]
    subsets = list(itertools.combinations(outcomes, 3))
    assert pass_at_k(7, 2, 3) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_more_samples_than_drawn_is_an_error():
    with pytest.raises(ValueError, match="k=8, n=7"):
        pass_at_k(7, 2, 8)


def test_mcnemar_counts_only_the_problems_that_changed():
    first = [1] * 10 + [0] * 7 + [1] * 2 + [0] * 11
    second = [1] * 10 + [1] * 7 + [0] * 2 + [0] * 11
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(5 / 30)
    assert difference.p_value == pytest.approx(2 * binom.cdf(2, 9, 0.5))


def test_paired_interval_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    first = (rng.random(300) < 0.5).astype(float)
    second = first.copy()
    second[:10] = 1
    difference = paired_difference(first, second)
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / 300)
    assert difference.high - difference.low < unpaired / 3


def test_sign_follows_the_order_of_the_arguments():
    assert paired_difference([0, 0, 1], [1, 1, 1]).value > 0 > paired_difference([1, 1, 1], [0, 0, 1]).value


def test_averaged_rates_have_no_mcnemar_test():
    assert paired_difference([0.25, 0.5], [0.5, 0.75]).p_value is None


def test_different_numbers_of_problems_are_an_error():
    with pytest.raises(ValueError, match=r"same problems.*\(2,\) and \(3,\)"):
        paired_difference([0, 1], [0, 1, 1])
