"""Contrasts of arms that were trained on samples of their own: at equal steps, equal tokens and equal wall-clock.

In reinforcement learning the arms write completions of different lengths, so that equal steps are neither equal tokens
nor equal time. The two latter are read from the periodic evaluations, at the end of the run that ends first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_evidenceflow.evaluation.intervals import PairedDifference, paired_difference
from hf_evidenceflow.evaluation.statistics import holm, paired_t_difference, read_curve
from hf_evidenceflow.recipes.experiments.runs import is_number


BUDGETS = {"tokens": "train_tokens", "wall-clock": "train_seconds"}


def read_at_equal_budget(
    arm: Mapping[str, Any], baseline: Mapping[str, Any], metric: str, position: str
) -> tuple[float, float, float] | None:
    """
    Read two runs at the largest budget that both have been evaluated at.

    Args:
        arm (`Mapping`):
            Result row of the arm, with its periodic evaluations under `evals`.
        baseline (`Mapping`):
            Result row of the baseline.
        metric (`str`):
            What to read, such as `"eval_accuracy"`.
        position (`str`):
            The budget: `"train_tokens"` or `"train_seconds"`.

    Returns:
        `tuple` or `None`: baseline, arm and the budget; `None` if a run has no evaluation or the budget ends before
        the first one of the other.

    Example:

    ```python
    >>> slow = {"evals": [{"train_tokens": 10, "eval_accuracy": 0.2}, {"train_tokens": 40, "eval_accuracy": 0.4}]}
    >>> fast = {"evals": [{"train_tokens": 5, "eval_accuracy": 0.1}, {"train_tokens": 20, "eval_accuracy": 0.5}]}
    >>> read_at_equal_budget(slow, fast, "eval_accuracy", "train_tokens")  # 20 is half-way from 10 to 40 in the log
    (0.5, 0.3..., 20)
    ```
    """
    ends = [
        max((row[position] for row in run["evals"] if position in row and is_number(row.get(metric))), default=None)
        for run in (baseline, arm)
    ]
    if None in ends:
        return None
    budget = min(ends)
    values = [read_curve(run["evals"], metric, position, budget) for run in (baseline, arm)]
    return None if None in values else (*values, budget)


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
