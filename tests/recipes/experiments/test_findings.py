import math

import pytest

from hf_evidenceflow.recipes.experiments import findings
from hf_evidenceflow.recipes.experiments.findings import (
    Finding,
    TrainedRun,
    correct_verdicts,
    final_loss,
    findings_table,
    judge,
)


RUN = TrainedRun(
    evals=[{"step": 20, "eval_loss": 5.0}, {"step": 60, "eval_loss": 3.0}, {"step": 80, "eval_loss": 2.5}],
    log=[{"step": step, "grad_norm": norm} for step, norm in ((4, 6.0), (8, 8.0), (40, 9.0), (60, 1.0), (80, 3.0))]
    + [{"step": 80, "train_runtime": 3.0}],
)


@pytest.mark.parametrize(
    "reading, value",
    [
        (findings.final_loss, 2.5),
        (findings.half_loss, 4.0),
        (findings.late_gain, 1.5),
        (findings.gradient_peak_step, 8),
        (findings.late_gradient, 2.0),  # of the steps 60 and 80
        (findings.gradient_peak_ratio, 4.0),
        (findings.late_gradient_spread, 0.5),
    ],
)
def test_readings(reading, value):
    assert reading(RUN) == pytest.approx(value)


def runs(*losses):
    return {seed: TrainedRun([{"step": 1, "eval_loss": loss}], []) for seed, loss in enumerate(losses)}


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (runs(2.0, 2.1, 2.2), runs(3.0, 3.1, 3.21), "confirmed"),
        (runs(3.0, 3.1, 3.21), runs(2.0, 2.1, 2.2), "refuted"),
        (runs(2.0, 2.1, 2.2), runs(2.1, 2.0, 2.3), "undecided"),
        (runs(2.0), runs(3.0), "not run"),
    ],
)
def test_a_verdict_needs_an_interval_that_leaves_out_zero(low, high, verdict):
    assert judge(Finding("a beats b", "a", "b", final_loss), {"a": low, "b": high}).verdict == verdict


def test_only_seeds_of_both_arms_count():
    row = judge(Finding("a beats b", "a", "b", final_loss), {"a": runs(2.0, 2.1, 9.0), "b": runs(3.0, 3.2)})
    assert row.seeds == row.contrast.seeds == [0, 1] and row.means == pytest.approx([2.05, 3.1])


def test_the_table_shows_the_means_and_the_verdict():
    row = judge(Finding("a beats b", "a", "b", final_loss), {"a": runs(2.0, 2.1), "b": runs(3.0, 3.2)})
    rows = [row, judge(Finding("c beats b", "c", "b", final_loss), {"b": runs(1.0)})]
    correct_verdicts(rows)
    table = findings_table(rows)
    assert "| a beats b | final loss | a 2.05 | b 3.1 |" in table and table.rstrip().endswith("| not run |")
    # Two seeds: differences of 1.0 and 1.1, so t = 1.05 / 0.05 with one degree of freedom
    assert f"| {2 / math.pi * math.atan(0.05 / 1.05):.3f} | confirmed |" in table


def test_p_values_are_corrected_over_the_findings_that_were_run():
    better, worse = runs(2.0, 2.1, 2.2), runs(3.0, 3.1, 3.21)
    arms = {"a": better, "b": worse, "c": runs(2.1, 2.0, 2.3)}
    rows = [judge(Finding("", *pair, final_loss), arms) for pair in (("a", "b"), ("a", "c"), ("a", "d"))]
    correct_verdicts(rows)
    first, second, third = (row.contrast for row in rows)
    assert first.p_holm == pytest.approx(2 * first.p_value) and third is None
    assert second.p_holm == pytest.approx(second.p_value)


def test_the_entry_of_the_json_file_is_flat():
    row = judge(Finding("a beats b", "a", "b", final_loss), {"a": runs(2.0, 2.1), "b": runs(3.0, 3.2)}).row()
    assert row["difference"] == pytest.approx(1.05) and row["verdict"] == "confirmed" and "contrast" not in row
