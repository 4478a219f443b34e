"""Contrasts of arms that were trained on samples of their own: at equal steps, equal tokens and equal wall-clock.

In reinforcement learning the arms write completions of different lengths, so that equal steps are neither equal tokens
nor equal time. The two latter are read from the periodic evaluations, at the end of the run that ends first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_evidenceflow.evaluation.statistics import PairedDifference, holm, paired_difference, paired_t_difference
from hf_evidenceflow.recipes.experiments.budgets import read_at_equal_budget


BUDGETS = {"tokens": "train_tokens", "wall-clock": "train_seconds"}


def contrast_arms(
    results: Mapping[str, Mapping[int, Mapping[str, Any]]], baseline: str, metric: str = "eval_accuracy"
) -> list[dict[str, Any]]:
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
        `list[dict]`: `arm`, `basis` (`steps`, `tokens`, `wall-clock`, `thinking off`), `seeds`, `difference`, `low`,
        `high` (paired t over the seeds), `p_value`, and `p_holm`, corrected over the arms of one basis. The contrast
        `thinking off` is the arm with thinking minus the same weights without.
    """
    found = []
    for arm, runs in results.items():
        bases: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in ("steps", *BUDGETS, "thinking off")}
        for seed, run in runs.items():
            if "hidden_ratio" in run["metrics"]:
                bases["thinking off"][seed] = run["metrics"][f"{metric}_off"], run["metrics"][metric]
            other = results[baseline].get(seed)
            if arm == baseline or other is None:
                continue
            bases["steps"][seed] = other["metrics"][metric], run["metrics"][metric]
            for name, position in BUDGETS.items():
                if (reading := read_at_equal_budget(run, other, metric, position)) is not None:
                    bases[name][seed] = reading[:2]
        for basis, pairs in bases.items():
            if pairs:
                result = paired_t_difference(*zip(*pairs.values()))
                found.append({"arm": arm, "basis": basis, "seeds": list(pairs)} | _fields(result))
    for basis in {row["basis"] for row in found}:
        family = [row for row in found if row["basis"] == basis]
        for row, corrected in zip(family, holm([row["p_value"] for row in family])):
            row["p_holm"] = corrected
    return found


def contrast_problems(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], column: str) -> dict:
    """
    Contrast two runs of one seed problem by problem: what the problems alone leave open, the seed being fixed.

    Args:
        first (`Sequence[Mapping]`):
            Rows of the baseline with `id` and the column.
        second (`Sequence[Mapping]`):
            Rows of the arm.
        column (`str`):
            Score to compare.

    Returns:
        `dict`: `difference`, `low`, `high` (paired bootstrap) and `p_value` (McNemar's exact test, or `None`).

    Raises:
        `ValueError`: if the runs are of different problems.
    """
    scores = [{row["id"]: row[column] for row in rows} for rows in (first, second)]
    if scores[0].keys() != scores[1].keys():
        raise ValueError(f"The runs are of different problems: {len(scores[0])} and {len(scores[1])}, not the same.")
    ids = sorted(scores[0])
    return _fields(paired_difference(*([each[index] for index in ids] for each in scores)))


def _fields(result: PairedDifference) -> dict[str, Any]:
    return {"difference": result.value, "low": result.low, "high": result.high, "p_value": result.p_value}
