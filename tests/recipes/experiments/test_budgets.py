"""Two runs at one budget, against numbers worked out by hand."""

import math

import pytest

from hf_evidenceflow.recipes.experiments.budgets import read_at_equal_budget, read_at_equal_time, read_curve


def run(values, seconds_per_step=1.0, first=10):
    """A result with an evaluation each 10 steps."""
    rows = [{"step": first + 10 * i, "eval_loss": value} for i, value in enumerate(values)]
    return {"evals": [row | {"train_seconds": seconds_per_step * row["step"]} for row in rows]}


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


def budget_run(scale, final, tokens=(10, 40)):
    evals = [
        {"train_tokens": place * scale, "eval_accuracy": value} for place, value in zip(tokens, (final - 0.2, final))
    ]
    return {"evals": evals}


def test_the_longer_run_is_read_inside_its_curve():
    base, arm, budget = read_at_equal_budget(budget_run(1, 0.4), budget_run(0.5, 0.5), "eval_accuracy", "train_tokens")
    assert (base, arm, budget) == pytest.approx((0.5, 0.3, 20))  # log 20 is half-way from log 10 to log 40


def test_a_shared_budget_before_the_first_evaluation_has_no_reading():
    assert read_at_equal_budget(budget_run(1, 0.4), budget_run(0.1, 0.5), "eval_accuracy", "train_tokens") is None
