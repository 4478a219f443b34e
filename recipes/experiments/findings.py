"""Tests published findings on the runs of an experiment: a reading of each run, a contrast over seeds, a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_evidenceflow.evaluation.statistics import holm, paired_t_difference


@dataclass(frozen=True)
class TrainedRun:
    """
    A finished run with its curves.

    Args:
        evals (`Sequence[Mapping]`):
            Evaluations in training, with `step` and `eval_loss`.
        log (`Sequence[Mapping]`):
            Entries of the training log, with `step`, `loss` and `grad_norm`.
    """

    evals: Sequence[Mapping[str, Any]]
    log: Sequence[Mapping[str, Any]]

    @property
    def last_step(self) -> int:
        """Step of the last evaluation."""
        return self.evals[-1]["step"]

    def gradients(self, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Steps and gradient norms between two shares of the training."""
        low, high = first * self.last_step, last * self.last_step
        rows = [row for row in self.log if "grad_norm" in row and low < row["step"] <= high]
        return np.array([row["step"] for row in rows]), np.array([row["grad_norm"] for row in rows])


def final_loss(run: TrainedRun) -> float:
    """Evaluation loss at the end."""
    return run.evals[-1]["eval_loss"]


def half_loss(run: TrainedRun) -> float:
    """Evaluation loss at half of the training, linear between two evaluations."""
    return float(
        np.interp(run.last_step / 2, [row["step"] for row in run.evals], [row["eval_loss"] for row in run.evals])
    )


def late_gain(run: TrainedRun) -> float:
    """By how much the evaluation loss falls in the second half."""
    return half_loss(run) - final_loss(run)


def gradient_peak_step(run: TrainedRun) -> float:
    """
    Step of the largest logged gradient norm in the first tenth: later ones may be of an epoch's short last batch.
    """
    steps, norms = run.gradients(0, 0.1)
    return float(steps[norms.argmax()])


def gradient_peak_ratio(run: TrainedRun) -> float:
    """The largest logged gradient norm in the first tenth, in units of the mean of the second half."""
    return float(run.gradients(0, 0.1)[1].max() / late_gradient(run))


def late_gradient(run: TrainedRun) -> float:
    """Mean gradient norm of the second half."""
    return float(run.gradients(0.5, 1)[1].mean())


def late_gradient_spread(run: TrainedRun) -> float:
    """Standard deviation of the gradient norm in the second half, in units of its mean."""
    norms = run.gradients(0.5, 1)[1]
    return float(norms.std() / norms.mean())


@dataclass(frozen=True)
class Finding:
    """
    A published statement: a reading is lower in one arm than in another.

    Args:
        text (`str`):
            The statement.
        low, high (`str`):
            Arm said to have the lower and the higher reading.
        reading (`Callable[[TrainedRun], float]`):
            What is read of each run.
    """

    text: str
    low: str
    high: str
    reading: Callable[[TrainedRun], float]


def judge(finding: Finding, runs: Mapping[str, Mapping[int, TrainedRun]]) -> dict[str, Any]:
    """
    Judge a finding over the seeds that both arms have.

    Args:
        finding ([`Finding`]):
            The statement.
        runs (`Mapping[str, Mapping[int, TrainedRun]]`):
            Finished runs by arm and seed.

    Returns:
        `dict`: `finding`, `reading`, `arms`, `seeds`, `means` of the two arms, `difference` (said to be higher minus
        said to be lower) with `low` and `high` of the 95 % paired t interval, the `p_value` of the paired t-test, and
        `verdict`: `confirmed` if the whole interval is above 0, `refuted` if it is below, else `undecided`; `not run`
        with fewer than two seeds.
    """
    low, high = runs.get(finding.low, {}), runs.get(finding.high, {})
    seeds = sorted(low.keys() & high.keys())
    row = {
        "finding": finding.text,
        "reading": finding.reading.__name__,
        "arms": [finding.low, finding.high],
        "seeds": seeds,
        "verdict": "not run",
    }
    if len(seeds) < 2:
        return row
    values = [[finding.reading(arm[seed]) for seed in seeds] for arm in (low, high)]
    result = paired_t_difference(*values)
    verdict = "confirmed" if result.low > 0 else "refuted" if result.high < 0 else "undecided"
    means = [float(np.mean(each)) for each in values]
    interval = {"difference": result.value, "low": result.low, "high": result.high, "p_value": result.p_value}
    return row | {"means": means, **interval, "verdict": verdict}


def corrected(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    The judged findings with their p-values corrected as one family.

    Args:
        rows (`Sequence[Mapping]`):
            As [`judge`] gives them.

    Returns:
        `list[dict]`: the same rows with `p_holm` (Holm), `None` where a finding was not run.
    """
    values = holm([row.get("p_value") for row in rows])
    return [{**row, "p_holm": value} for row, value in zip(rows, values)]


def findings_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts of [`corrected`] findings as a Markdown table."""
    columns = ("published finding", "reading", "said to be lower", "said to be higher", "difference, 95 %")
    lines = [f"| {' | '.join(columns)} | p (Holm) | verdict |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        cells = ["", "", "", ""]
        if "means" in row:
            cells = [f"{arm} {mean:.4g}" for arm, mean in zip(row["arms"], row["means"])]
            cells.append(f"{row['difference']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]")
            cells.append("" if row["p_holm"] is None else f"{row['p_holm']:.3f}")
        reading = row["reading"].replace("_", " ")
        lines.append(f"| {row['finding']} | {reading} | {' | '.join(cells)} | {row['verdict']} |")
    return "\n".join(lines) + "\n"
