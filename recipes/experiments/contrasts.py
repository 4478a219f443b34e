"""Contrasts of arms that were trained on samples of their own: at equal steps, equal tokens and equal wall-clock.

In reinforcement learning the arms write completions of different lengths, so that equal steps are neither equal tokens
nor equal time. The two latter are read from the periodic evaluations, at the end of the run that ends first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_evidenceflow.evaluation.statistics import PairedDifference, paired_difference
from hf_evidenceflow.recipes.experiments.budgets import read_at_equal_budget
from hf_evidenceflow.recipes.experiments.paired import SeedDifference, correct_family, paired_over_seeds


BUDGETS = {"tokens": "train_tokens", "wall-clock": "train_seconds"}
THINKING_OFF = "thinking off"


@dataclass(kw_only=True)
class Contrast(SeedDifference):
    """
    An arm against the baseline, or against itself.

    Args:
        arm (`str`):
            The arm.
        basis (`str`):
            `"steps"`, `"tokens"` or `"wall-clock"`: what is equal; or `"thinking off"`: the arm with thinking minus
            the same weights without.
    """

    arm: str
    basis: str


def contrast_arms(
    results: Mapping[str, Mapping[int, Mapping[str, Any]]], baseline: str, metric: str = "eval_accuracy"
) -> list[Contrast]:
    """
    Contrast each arm with the baseline, and with itself after its thinking was switched off.

    Args:
        results (`Mapping[str, Mapping[int, Mapping]]`):
            Result row by arm and seed.
        baseline (`str`):
            Arm that the others are compared with.
        metric (`str`, *optional*, defaults to `"eval_accuracy"`):
            Metric of the rows; the same with thinking off is `<metric>_off`.

    Returns:
        `list[Contrast]`: Their p-values are corrected over the arms of one basis.
    """
    found = [
        Contrast(arm=arm, basis=basis, **paired_over_seeds(pairs))
        for arm, runs in results.items()
        for basis, pairs in _pairs_by_basis(runs, {} if arm == baseline else results[baseline], metric).items()
        if pairs
    ]
    for basis in {row.basis for row in found}:
        correct_family([row for row in found if row.basis == basis])
    return found


def _pairs_by_basis(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], metric: str
) -> dict[str, dict[int, tuple[float, float]]]:
    bases: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in ("steps", *BUDGETS, THINKING_OFF)}
    for seed, run in runs.items():
        if "hidden_ratio" in run["metrics"]:
            bases[THINKING_OFF][seed] = run["metrics"][f"{metric}_off"], run["metrics"][metric]
        if (other := others.get(seed)) is None:
            continue
        bases["steps"][seed] = other["metrics"][metric], run["metrics"][metric]
        for name, position in BUDGETS.items():
            if (reading := read_at_equal_budget(run, other, metric, position)) is not None:
                bases[name][seed] = reading[:2]
    return bases


def contrast_problems(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], column: str
) -> PairedDifference:
    """
    Contrast two runs of one seed problem by problem, by a column of the baseline's and the arm's rows: what the
    problems alone leave open, the seed being fixed.

    Raises:
        `ValueError`: if the runs are of different problems.
    """
    scores = [{row["id"]: row[column] for row in rows} for rows in (first, second)]
    if scores[0].keys() != scores[1].keys():
        raise ValueError(f"The runs are of different problems: {len(scores[0])} and {len(scores[1])}, not the same.")
    ids = sorted(scores[0])
    return paired_difference(*([each[index] for index in ids] for each in scores))
