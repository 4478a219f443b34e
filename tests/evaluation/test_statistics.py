"""The statistics against closed forms, numbers worked out by hand, and what earlier versions gave."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hf_evidenceflow.evaluation.statistics import (
    compare_samples,
    holm,
    mcnemar,
    mean_interval,
    mean_t_interval,
    paired_difference,
    paired_t_difference,
    pass_at_k,
    proportion_interval,
    ratio_interval,
)


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
    assert difference.p_value == pytest.approx(2 * stats.binom.cdf(2, 9, 0.5))


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


def test_the_interval_of_a_mean_is_student_s():
    # mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027
    assert mean_t_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_a_single_seed_has_no_interval():
    value, low, high = mean_t_interval([3.0])
    assert value == 3.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_ratio_of_equal_clusters_is_the_mean_of_their_means():
    assert ratio_interval([4.0, 6.0, 11.0], [2, 2, 2]) == pytest.approx(mean_t_interval([2.0, 3.0, 5.5]))


def test_a_ratio_counts_items_not_clusters():
    assert ratio_interval([9.0, 1.0], [3, 1]).value == 2.5


def test_the_difference_is_paired_and_signed_second_minus_first():
    first, second = [1.0, 5.0, 9.0], [0.7, 4.6, 8.8]
    result = paired_t_difference(first, second)
    expected = stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert result == pytest.approx((-0.3, interval.low, interval.high, expected.pvalue))
    assert result.high < 0  # unpaired, the spread of the seeds would hide it


def test_differences_without_spread_have_no_p_value():
    assert paired_t_difference([1.1, 2.2, 3.3], [1.2, 2.3, 3.4]).p_value is None


def test_holm_multiplies_the_smallest_most_and_skips_unknown():
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])


def test_samples_are_compared_with_mcnemar_on_all_pairs():
    # 2 seeds of 10 samples: 7 pairs gained, 1 lost; exact two-sided binomial test of 1 in 8
    base = dict.fromkeys(range(10), 0) | {9: 1}
    arms = [dict.fromkeys(range(10), 0) | dict.fromkeys(range(4), 1) | {9: 1}, dict.fromkeys(range(3), 1)]
    arms[1] = dict.fromkeys(range(10), 0) | arms[1]
    result = compare_samples([(base, arms[0]), (base, arms[1])])
    assert (result.samples, result.pairs) == (10, 20)
    assert result.difference == pytest.approx(6 / 20)
    assert result.p_value == pytest.approx(stats.binomtest(1, 8).pvalue)


def test_samples_that_are_not_zero_or_one_have_no_mcnemar():
    assert compare_samples([({0: 0.5, 1: 0.2}, {0: 0.1, 1: 0.3})]).p_value is None


def test_only_samples_of_all_runs_are_compared():
    assert compare_samples([({0: 1, 1: 0}, {1: 1, 2: 0})]).samples == 1


def test_holm_is_at_most_one_and_keeps_the_order_of_equal_values():
    # What statsmodels 0.15 gives
    assert holm([0.03, 0.2, None, 0.001, 0.04, 0.7, 0.04]) == pytest.approx([0.15, 0.4, None, 0.006, 0.16, 0.7, 0.16])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([None]) == [None] and holm([]) == []


def test_mcnemar_of_equal_answers_is_one():
    assert mcnemar(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 1.0


def test_the_numbers_are_those_of_the_versions_before():
    rng = np.random.default_rng(7)
    first, second = rng.normal(2, 0.1, 5), rng.normal(1.9, 0.1, 5)
    assert mean_t_interval(first) == pytest.approx((1.9736115042314946, 1.9175264552709455, 2.0296965531920437))
    difference = (-0.08769088673581002, -0.20806372285026906, 0.03268194937864902, 0.11315905054371996)
    assert paired_t_difference(first, second) == pytest.approx(difference)
    right, better = ((rng.random(60) < share).astype(float) for share in (0.4, 0.6))
    paired = (0.16666666666666666, 0.0, 0.3341666666666545, 0.09873714670538905)
    assert paired_difference(right, better, seed=3) == pytest.approx(paired)
    interval = (0.580379035203354, 0.48060336977464085, 0.6779358932468555)
    assert mean_interval(rng.random(30), seed=2) == pytest.approx(interval)
    assert proportion_interval(938, 1319) == pytest.approx((0.711144806671721, 0.6861001545981096, 0.734963152940318))
    seeds = [
        tuple(dict(enumerate(side[start : start + 20])) for side in (right, better)) for start in range(0, 60, 20)
    ]
    compared = (20, 60, 0.16666666666666669, -0.04999999999999998, 0.38333333333333336, 0.09873714670538905)
    assert compare_samples(seeds, seed=1) == pytest.approx(compared)
