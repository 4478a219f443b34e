"""The statistics against numbers worked out by hand or by scipy directly."""

import math

import pytest
from scipy import stats

from hf_evidenceflow.evaluation.statistics import (
    compare_samples,
    holm,
    mean_t_interval,
    paired_t_difference,
    read_at_equal_time,
    read_curve,
)


def run(values, seconds_per_step=1.0, first=10):
    """A result with an evaluation each 10 steps."""
    rows = [{"step": first + 10 * i, "eval_loss": value} for i, value in enumerate(values)]
    return {"evals": [row | {"train_seconds": seconds_per_step * row["step"]} for row in rows]}


def test_the_interval_of_a_mean_is_student_s():
    # mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027
    assert mean_t_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_a_single_seed_has_no_interval():
    value, low, high = mean_t_interval([3.0])
    assert value == 3.0
    assert math.isnan(low)
    assert math.isnan(high)


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


def test_a_curve_is_linear_in_the_logarithm_of_the_position():
    evals = [{"step": 10, "eval_loss": 4.0}, {"step": 40, "eval_loss": 2.0}]
    assert read_curve(evals, "eval_loss", "step", 20) == pytest.approx(3.0)


@pytest.mark.parametrize("at", [9.9, 40.1])
def test_a_curve_is_not_extrapolated(at):
    evals = [{"step": 10, "eval_loss": 4.0}, {"step": 40, "eval_loss": 2.0}]
    assert read_curve(evals, "eval_loss", "step", at) is None


def test_a_diverged_evaluation_is_no_point():
    evals = [{"step": 10, "eval_loss": 4.0}, {"step": 20, "eval_loss": math.nan}, {"step": 40, "eval_loss": 2.0}]
    assert read_curve(evals, "eval_loss", "step", 20) == pytest.approx(3.0)


def test_an_arm_of_twice_the_cost_is_read_at_half_the_steps():
    reading = read_at_equal_time(run([4, 3, 2, 1]), run([8, 7, 6, 5], 0.5), "eval_loss", relative_cost=2.0)
    assert reading == (3.0, 5.0, 1.0, 20.0)


def test_a_cheaper_arm_shortens_the_budget_instead_of_being_extrapolated():
    reading = read_at_equal_time(run([4, 3, 2, 1]), run([8, 7, 6, 5]), "eval_loss", relative_cost=0.5)
    assert reading == (1.0, 7.0, 0.5, 20.0)


def test_without_relative_cost_the_runs_own_clocks_count():
    reading = read_at_equal_time(run([4, 3, 2, 1], 2.0), run([8, 7, 6, 5], 1.0), "eval_loss")
    assert reading == (3.0, 5.0, 1.0, 40.0)


def test_equal_cost_reads_both_at_their_end():
    assert read_at_equal_time(run([3, 2.2]), run([4, 3.3]), "eval_loss", relative_cost=1.0)[:2] == (2.2, 3.3)


def test_a_budget_before_the_first_evaluation_has_no_reading():
    assert read_at_equal_time(run([4, 3]), run([8, 7]), "eval_loss", relative_cost=2.5) is None


def test_a_log_without_a_clock_has_no_reading():
    bare = {"evals": [{"step": 10, "eval_loss": 1.0}]}
    assert read_at_equal_time(bare, bare, "eval_loss") is None


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
