"""Contrasts of arms at equal steps, tokens and wall-clock."""

import pytest

from hf_evidenceflow.recipes.experiments.contrasts import contrast_arms, contrast_problems


def run(scale, final, off=None, tokens=(10, 40)):
    row = {"metrics": {"eval_accuracy": final}}
    row["evals"] = [
        {"train_tokens": place * scale, "train_seconds": place, "eval_accuracy": value}
        for place, value in zip(tokens, (final - 0.2, final))
    ]
    if off is not None:
        row["metrics"] |= {"eval_accuracy_off": off, "hidden_ratio": 0.3}
    return row


def test_an_arm_is_contrasted_with_the_baseline_at_each_budget():
    results = {"grpo": {s: run(1, 0.4 + s / 100) for s in (0, 1, 2)}, "hrpo": {s: run(2, 0.5) for s in (0, 1, 2)}}
    found = {row.basis: row for row in contrast_arms(results, "grpo")}
    assert found["steps"].difference == pytest.approx(0.09)
    assert found["wall-clock"].difference == pytest.approx(0.09)
    assert found["tokens"].difference == pytest.approx(-0.01)


def test_thinking_is_contrasted_with_the_same_weights_without():
    results = {"grpo": {0: run(1, 0.4)}, "hrpo": {0: run(1, 0.5, off=0.3), 1: run(1, 0.7, off=0.4)}}
    (row,) = [row for row in contrast_arms(results, "grpo") if row.basis == "thinking off"]
    assert row.arm == "hrpo" and row.difference == pytest.approx(0.25)


def test_holm_corrects_over_the_arms_of_one_basis():
    results = {
        "grpo": {s: run(1, 0.4) for s in (0, 1, 2)},
        "one": {s: run(1, 0.5 + s / 50) for s in (0, 1, 2)},
        "two": {s: run(1, 0.41 + s / 50) for s in (0, 1, 2)},
    }
    rows = [row for row in contrast_arms(results, "grpo") if row.basis == "steps"]
    smallest = min(rows, key=lambda row: row.p_value)
    assert smallest.p_holm == pytest.approx(2 * smallest.p_value)


def test_problems_are_paired_by_their_id():
    first = [{"id": 0, "accuracy": 1.0}, {"id": 1, "accuracy": 0.0}]
    second = [{"id": 1, "accuracy": 0.0}, {"id": 0, "accuracy": 1.0}]
    assert contrast_problems(first, second, "accuracy").high == 0


def test_runs_of_different_problems_are_refused():
    with pytest.raises(ValueError, match="different problems"):
        contrast_problems([{"id": 0, "accuracy": 1.0}], [{"id": 1, "accuracy": 1.0}], "accuracy")
