"""
Judge the published findings of the architecture ablations on the runs of an experiment, and draw the comparisons.

```bash
python recipes/run_experiment.py --config recipes/configs/run_experiment/ablation.yaml --output_dir outputs/ablation \
    --options '{"train_file": "train.txt", "validation_file": "validation.txt"}' --jobs 2
python recipes/ablation_report.py --experiment outputs/ablation --output_dir outputs/ablation/findings
```

Outputs, in `output_dir`: `findings.md` and `findings.json` (each published finding confirmed, refuted or undecided,
with the interval over the seeds), `comparisons.png` (training loss, validation loss and gradient norm of each
comparison of which two arms are there; means and ranges over the seeds). A folder without the logs of its runs, such
as `results/ablation`, gives the validation losses of that picture only.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.callbacks.log_file import LOG_FILE_NAME
from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.recipes.experiments.findings import (
    Finding,
    TrainedRun,
    correct_verdicts,
    final_loss,
    findings_table,
    gradient_peak_ratio,
    gradient_peak_step,
    half_loss,
    judge,
    late_gain,
    late_gradient,
    late_gradient_spread,
)
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure
from hf_evidenceflow.run_folder.exit_codes import run_recipe


COMPARISONS = {
    "Llama and vanilla": ["llama", "vanilla"],
    "norm position": ["learned_pre", "learned"],
    "positions": ["rope", "nope", "vanilla", "learned"],
    "tying": ["tied", "untied"],
    "activation": ["vanilla", "silu", "gelu", "swiglu"],
}
# Label of the y axis -> where the curve stands in a run, and its key
CURVES = {
    "training loss (nats per token)": ("log", "loss"),
    "validation loss (nats per token)": ("evals", "eval_loss"),
    "gradient norm": ("log", "grad_norm"),
}
# CS336, assignment 1: one run each, read from plots. Vanilla has sinusoidal positions, ReLU and tied embeddings.
FINDINGS = [
    Finding("Llama beats vanilla at the end", "llama", "vanilla", final_loss),
    Finding("Llama beats vanilla in speed (half-way)", "llama", "vanilla", half_loss),
    Finding("Llama beats vanilla in stability", "llama", "vanilla", late_gradient_spread),
    Finding("Llama's gradient peaks later", "vanilla", "llama", gradient_peak_step),
    Finding("pre-norm ends worse than post-norm", "learned", "learned_pre", final_loss),
    Finding("post-norm's gradient has a spike at the start", "learned_pre", "learned", gradient_peak_ratio),
    Finding("RoPE beats sinusoidal positions", "rope", "vanilla", final_loss),
    Finding("RoPE beats learned positions", "rope", "learned", final_loss),
    Finding("RoPE has a lower gradient norm than sinusoidal positions", "rope", "vanilla", late_gradient),
    Finding("RoPE has a lower gradient norm than learned positions", "rope", "learned", late_gradient),
    Finding("NoPE is worse than RoPE", "rope", "nope", final_loss),
    Finding("NoPE is worse than sinusoidal positions", "vanilla", "nope", final_loss),
    Finding("NoPE is worse than learned positions", "learned", "nope", final_loss),
    Finding("learned positions lead sinusoidal ones half-way", "learned", "vanilla", half_loss),
    Finding("sinusoidal positions overtake learned ones late", "vanilla", "learned", final_loss),
    Finding("SiLU beats ReLU", "silu", "vanilla", final_loss),
    Finding("GELU beats ReLU", "gelu", "vanilla", final_loss),
    Finding("ReLU's gradient norm is higher than SiLU's", "silu", "vanilla", late_gradient),
    Finding("ReLU's gradient norm is higher than GELU's", "gelu", "vanilla", late_gradient),
    Finding("SwiGLU's gradient is smoother than ReLU's", "swiglu", "vanilla", late_gradient_spread),
    Finding("SwiGLU's gradient is smoother than SiLU's", "swiglu", "silu", late_gradient_spread),
    Finding("SwiGLU's gradient is smoother than GELU's", "swiglu", "gelu", late_gradient_spread),
    Finding("untied beats tied under post-norm", "untied", "tied", final_loss),
    Finding("untied has no gradient spike, tied has one", "untied", "tied", gradient_peak_ratio),
    Finding("tied catches up late", "untied", "tied", late_gain),
]


@dataclass
class ReportArguments:
    """
    Args:
        experiment (`str`):
            Folder of the experiment, with `results.jsonl` and `runs/`.
        output_dir (`str`):
            Folder of the report.
        skip_steps (`int`, *optional*, defaults to `25`):
            Steps cut from the beginning of the pictures, not from the readings (published: 1,000 of 40,000).
    """

    experiment: str
    output_dir: str
    skip_steps: int = 25


def load_runs(folder: Path) -> dict[str, dict[int, TrainedRun]]:
    """Finished runs by arm and seed."""
    results = folder / "results.jsonl"
    if not results.exists():
        raise FileNotFoundError(f"`{results}` does not exist. Run recipes/run_experiment.py with that folder first.")
    runs: dict[str, dict[int, TrainedRun]] = {}
    for row in read_json_lines(results):
        if row["final"]:
            path = folder / "runs" / row["id"] / LOG_FILE_NAME
            log = read_jsonl(path) if path.exists() else []
            runs.setdefault(row["cell"]["arm"], {})[row["seed"]] = TrainedRun(row["evals"], log)
    if "vanilla" in runs:
        runs.setdefault("tied", runs["vanilla"])  # a grid whose untied arm has vanilla's size needs no other
    return runs


def seed_curves(runs: dict[int, TrainedRun], rows: str, key: str, skip: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and values [S, seeds] of a curve, where all seeds have one."""
    by_step: dict[int, list[float]] = {}
    for run in runs.values():
        for row in getattr(run, rows):
            if key in row and row["step"] > skip:
                by_step.setdefault(row["step"], []).append(row[key])
    steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
    return np.array(steps), np.array([by_step[step] for step in steps])


def draw(runs, path: Path, skip: int) -> None:
    """For each comparison a panel of each curve that the runs have: mean and range over the seeds."""
    comparisons = {title: [arm for arm in arms if arm in runs] for title, arms in COMPARISONS.items()}
    panels = [
        (title, arms, label, rows, key)
        for title, arms in comparisons.items()
        for label, (rows, key) in CURVES.items()
        if len(arms) > 1 and all(len(seed_curves(runs[arm], rows, key, skip)[0]) for arm in arms)
    ]
    if not panels:
        return
    lines = math.ceil(len(panels) / 3)
    figure = new_figure((12.4, 3.0 * lines))
    places = figure.subplots(lines, 3, squeeze=False).ravel()
    for axes, (title, arms, label, rows, key) in zip(places, panels):
        lowest = math.inf
        for arm, color in zip(arms, COLOURS):
            steps, values = seed_curves(runs[arm], rows, key, skip)
            axes.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.2, linewidth=0)
            axes.plot(steps, values.mean(1), "o-" if len(steps) < 3 else "-", color=color, label=arm, linewidth=1)
            lowest = min(lowest, values.min())
        if key != "grad_norm":
            axes.set_ylim(lowest - 0.05, lowest + 1.5)  # the end is where the arms can be told apart
        finish_panel(axes, title, "optimizer step", label)
        axes.legend(fontsize=8, frameon=False, title="mean, range of the seeds", title_fontsize=7)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> list[dict]:
    (args,) = RecipeParser(ReportArguments, __doc__).parse_args_and_config(argv)
    runs, folder = load_runs(Path(args.experiment)), Path(args.output_dir)
    draw(runs, folder / "comparisons.png", args.skip_steps)
    if not any(run.log for seeds in runs.values() for run in seeds.values()):
        print(f"`{args.experiment}` has no logs in `runs/`: the findings, which need them, are left as they are.")
        return []
    verdicts = [judge(finding, runs) for finding in FINDINGS]
    correct_verdicts(verdicts)
    table, rows = findings_table(verdicts), [verdict.row() for verdict in verdicts]
    atomic_write_json(folder / "findings.json", rows)
    atomic_write_text(folder / "findings.md", table)
    print(table)
    return rows


if __name__ == "__main__":
    run_recipe(main)
