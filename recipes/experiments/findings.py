"""Tests published findings on the runs of an experiment: a reading of each run, a contrast over seeds, a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_evidenceflow.recipes.experiments.paired import SeedDifference, correct_family, paired_over_seeds
from hf_evidenceflow.report.tables import markdown_table


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


@dataclass
class Verdict:
    """
    A finding, judged.

    Args:
        finding, reading (`str`):
            Its statement, and the name of what was read.
        arms (`list[str]`):
            Arms said to have the lower and the higher reading.
        seeds (`list[int]`):
            Seeds that both arms have.
        verdict (`str`):
            `"confirmed"` if the whole interval is above 0, `"refuted"` if it is below, else `"undecided"`; `"not run"`
            with fewer than two seeds.
        means (`list[float]`, *optional*):
            Means of the two arms; `None` if not run.
        contrast ([`SeedDifference`], *optional*):
            Reading said to be higher minus the one said to be lower; `None` if not run.
    """

    finding: str
    reading: str
    arms: list[str]
    seeds: list[int]
    verdict: str = "not run"
    means: list[float] | None = None
    contrast: SeedDifference | None = None

    def row(self) -> dict[str, Any]:
        """The entry of `findings.json`."""
        row = dict(vars(self))
        contrast = row.pop("contrast")
        return row | (vars(contrast) if contrast is not None else {})


def judge(finding: Finding, runs: Mapping[str, Mapping[int, TrainedRun]]) -> Verdict:
    """Judge a finding on finished runs, by arm and seed, over the seeds that both arms have."""
    low, high = runs.get(finding.low, {}), runs.get(finding.high, {})
    seeds = sorted(low.keys() & high.keys())
    verdict = Verdict(finding.text, finding.reading.__name__, [finding.low, finding.high], seeds)
    if len(seeds) < 2:
        return verdict
    pairs = {seed: (finding.reading(low[seed]), finding.reading(high[seed])) for seed in seeds}
    contrast = SeedDifference(**paired_over_seeds(pairs))
    verdict.contrast = contrast
    verdict.means = [float(np.mean(values)) for values in zip(*pairs.values())]
    verdict.verdict = "confirmed" if contrast.low > 0 else "refuted" if contrast.high < 0 else "undecided"
    return verdict


def correct_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Correct the p-values of the findings that were run as one family (Holm)."""
    correct_family([each.contrast for each in verdicts if each.contrast is not None])


def findings_table(verdicts: Sequence[Verdict]) -> str:
    """Corrected verdicts as a Markdown table."""
    columns = ("published finding", "reading", "said to be lower", "said to be higher", "difference, 95 %", "p (Holm)")
    rows = []
    for each in verdicts:
        cells, found = ["", "", "", ""], each.contrast
        if found is not None:
            cells = [f"{arm} {mean:.4g}" for arm, mean in zip(each.arms, each.means)]
            cells.append(f"{found.difference:+.3g} [{found.low:+.3g}, {found.high:+.3g}]")
            cells.append("" if found.p_holm is None else f"{found.p_holm:.3f}")
        rows.append((each.finding, each.reading.replace("_", " "), *cells, each.verdict))
    return markdown_table((*columns, "verdict"), rows, align="llrrrrl") + "\n"
