"""
The published figures of TinySeek, drawn from runs made here: means over the seeds, bands of their range.

```bash
python docs/gallery_figures.py                                # draw docs/assets/gallery from results/tinyseek
python docs/gallery_figures.py --runs outputs/tinyseek_curves # read the logs of runs first, of full-0, none-2, ...
```
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.report.curves import KNOWN_CURVES, curve, load_log_history
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.run_curves import plot_log_fit
from hf_evidenceflow.report.run_metrics import LOSS_KEY, run_metrics, with_derived


ROOT = Path(__file__).parents[1]
STUDY, PICTURES = ROOT / "results" / "tinyseek" / "study", ROOT / "docs" / "assets" / "gallery"
CURVES = STUDY.parent / "curves"
ARMS = {
    "full": "full (Loss_p)",
    "no_warmup": "full, no warm-up",
    "none": "none (without Loss_p)",
    "head_only": "head only (as published)",
}
# Picture -> logged key; the first five have a picture of the full run alone, too
FIGURES = {
    "loss": "derived/loss",
    "loss_p": "evidence_flow/loss",
    "perplexity": "derived/perplexity",
    "balance": "router_balance",
    "learning_rate": "learning_rate",
    "cv": "derived/perplexity_cv",
    "eval_perplexity": "eval_perplexity",
}
LOG_FIT = "log_fit"
ALONE = "_full"
PICTURE_NAMES = (*(f"{name}{ALONE}" for name in list(FIGURES)[:5]), *FIGURES)
_LOG_SCALE = ("derived/perplexity", "eval_perplexity", "evidence_flow/loss")
_KEPT = ("step", "loss", "learning_rate", "evidence_flow/model_loss", "evidence_flow/loss", "router_balance")
_KEPT += ("router_dead_experts", "eval_loss", "eval_perplexity")

# Where the study's runs end
_STUDY_ARMS = {"full": "mse", "no_warmup": "mse_no_warmup", "none": "none", "head_only": "head_only"}
ENDS = {
    "perplexity": "held-out perplexity",
    "loss_p": "Loss_p, sum over loops",
    "balance": "balance, 0 is even",
    "dead_experts": "experts without a token, share",
}
_METRICS = {
    "perplexity": "eval_perplexity",
    "balance": "eval_router_balance",
    "dead_experts": "eval_router_dead_experts",
}

Logs = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]  # arm -> a log for each seed


def collect(runs: Path, folder: Path = CURVES) -> None:
    """Write the logs of runs, shortened, and what the gallery says of them."""
    lines = []
    for arm in ARMS:
        for run in sorted(runs.glob(f"{arm}-*")):
            rows = [{key: row[key] for key in _KEPT if key in row} for row in load_log_history(run)]
            rows = [{key: float(f"{value:.5g}") for key, value in row.items()} for row in rows if len(row) > 1]
            lines.append(json.dumps({"arm": arm, "seed": int(run.name.rpartition("-")[2]), "log": rows}))
    atomic_write_text(folder / "logs.jsonl", "\n".join(lines) + "\n")
    atomic_write_json(folder / "summary.json", {arm: summary(logs) for arm, logs in read_logs(folder).items()})


def read_logs(folder: Path = CURVES) -> dict[str, list[list[dict[str, float]]]]:
    """The logs of each arm that has any, one for each seed."""
    runs = [json.loads(line) for line in (folder / "logs.jsonl").read_text(encoding="utf-8").splitlines()]
    return {arm: [run["log"] for run in runs if run["arm"] == arm] for arm in {run["arm"]: None for run in runs}}


def summary(logs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float | None]:
    """Means over the seeds of an arm: at the end over the last 50 steps, Loss_p at the first log, too."""
    found = []
    for log in logs:
        metrics, rows = run_metrics(log), with_derived(log)
        values = {name: _end(rows, FIGURES[name]) for name in ("loss", "loss_p", "balance")}
        loss_p = curve(rows, FIGURES["loss_p"])[1]
        found.append(
            {
                "seeds": len(logs),
                "evaluations": len(curve(log, "eval_loss")[0]),
                "loss": values["loss"],
                "balance": values["balance"],
                "loss_p_first": loss_p[0] if loss_p else None,
                "loss_p_last": values["loss_p"],
                "eval_perplexity": curve(rows, "eval_perplexity")[1][-1],
                "cv_above": metrics["perplexity_cv"]["share_above"],
                "fit_r_squared": metrics["log_fit"]["r_squared"],
            }
        )
    return {key: None if found[0][key] is None else float(np.mean([each[key] for each in found])) for key in found[0]}


def study_ends(study: Path = STUDY) -> dict[str, dict[str, list[float]]]:
    """Of each arm the values of [`ENDS`] at the end of the study's runs, by seed."""
    cells = json.loads((study / "summary.json").read_text(encoding="utf-8"))["cells"]
    metrics = {cell["arm"]: cell["metrics"] for cell in cells if cell["group"] == "looped_post"}
    rows = [json.loads(line) for line in (study / "layers.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for arm, name in _STUDY_ARMS.items():
        found[arm] = {key: list(metrics[name][metric]["values"].values()) for key, metric in _METRICS.items()}
        loss_p: dict[int, float] = {}
        for row in rows:
            if row["group"] == "looped_post" and row["arm"] == name:
                loss_p[row["seed"]] = loss_p.get(row["seed"], 0.0) + row["mse_to_target"]
        found[arm]["loss_p"] = list(loss_p.values())
    return found


def draw_ends(ends: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Draw them, a point for each seed."""
    figure = new_figure((10.4, 2.9))
    panels = figure.subplots(1, len(ENDS), sharey=True)
    for panel, (key, unit) in zip(panels, ENDS.items()):
        for place, arm in enumerate(ends):
            values = ends[arm][key]
            panel.plot(values, [place] * len(values), "o", color=COLOURS[list(ARMS).index(arm)], alpha=0.6)
            panel.plot(np.mean(values), place, "|", color="0.2", markersize=16)
        finish_panel(panel, x=unit)
    panels[0].set_yticks(range(len(ends)), [ARMS[arm] for arm in ends])
    panels[0].set_ylim(len(ends) - 0.5, -0.5)
    return save_figure(figure, path)


def _end(rows, key: str, steps: int = 50) -> float | None:
    at, values = curve(rows, key)
    return float(np.mean([value for step, value in zip(at, values) if step > at[-1] - steps])) if at else None


def draw(logs: Logs, folder: Path = PICTURES, only: str | None = None) -> list[Path]:
    """Draw all figures or one, and return their paths."""
    rows = {arm: [with_derived(log) for log in runs] for arm, runs in logs.items()}
    paths = [_draw(rows, name, folder / f"{name}.png") for name in PICTURE_NAMES if only in (None, name)]
    if only not in (None, LOG_FIT):
        return paths
    first = {ARMS[arm]: runs[0] for arm, runs in logs.items() if curve(with_derived(runs[0]), LOSS_KEY)[0]}
    return [*paths, plot_log_fit(first, folder / f"{LOG_FIT}.png")]


def _draw(rows, name: str, path: Path) -> Path:
    key = FIGURES[name.removesuffix(ALONE)]
    heading, unit = KNOWN_CURVES[key]
    arms = ["full"] if name.endswith(ALONE) else list(rows)
    figure = new_figure((4.2, 3.6))  # as wide as a phone
    panel = figure.subplots()
    for arm in arms:
        _band(panel, rows[arm], key, arm)
    finish_panel(panel, heading, "optimizer step", unit)
    if key in _LOG_SCALE:
        panel.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, path)


def _band(panel, logs, key: str, arm: str) -> None:
    curves = [curve(log, key) for log in logs]
    if not curves[0][0]:
        return
    values = np.array([each for _, each in curves])
    number = list(ARMS).index(arm)
    style = {"color": COLOURS[number], "linestyle": LINE_STYLES[number % len(LINE_STYLES)]}
    panel.plot(curves[0][0], values.mean(0), label=ARMS[arm], linewidth=1.6, **style)
    panel.fill_between(curves[0][0], values.min(0), values.max(0), color=COLOURS[number], alpha=0.18, linewidth=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folders of the runs, to be read first")
    if (given := parser.parse_args()).runs is not None:
        collect(given.runs)
    ends = study_ends()
    means = {arm: {key: float(np.mean(values)) for key, values in of.items()} for arm, of in ends.items()}
    atomic_write_json(STUDY / "ends.json", means)
    draw_ends(ends, PICTURES / "ends.png")
    if (CURVES / "logs.jsonl").exists():
        draw(read_logs())
