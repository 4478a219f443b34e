"""
Compare base, GRPO and latent thinking under one prompt, grader and token budget, over several seeds.

```bash
python recipes/compare.py --config recipes/configs/compare/sums.yaml --output_dir outputs/compare/sums --jobs 2
```

Each arm and seed is one run of `recipes/compare_arm.py` in a folder of its own: the same command again goes on, and
finished runs stay. `--report true` writes the report of what is finished. `smoke.yaml` takes about a minute on two CPU
cores, offline.

Outputs, in `output_dir`: `status.html`, `results.jsonl` and `runs/` as of `recipes/run_experiment.py`, and `report/`:
`compare.md` (means, contrasts at equal steps, tokens and wall-clock, thinking on against off), `compare.json`,
`learning_curves.png`, and the general `report.html`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.callbacks.log_file import LOG_FILE_NAME
from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.recipes.experiments.contrasts import THINKING_OFF, contrast_arms, contrast_problems
from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions
from hf_evidenceflow.recipes.experiments.report import write_report
from hf_evidenceflow.recipes.experiments.runner import ExperimentRunner
from hf_evidenceflow.recipes.experiments.runs import is_number
from hf_evidenceflow.recipes.experiments.summary import SAMPLES_NAME
from hf_evidenceflow.report.curves import plot_training_curves
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


MEANS = {
    "accuracy": "eval_accuracy",
    "greedy": "eval_greedy",
    "accuracy, off": "eval_accuracy_off",
    "greedy, off": "eval_greedy_off",
    "accuracy, soft": "eval_accuracy_soft",
    "greedy, soft": "eval_greedy_soft",
    "greedy, swap": "eval_greedy_swap",
    "pass@32": "eval_pass32",
    "pass@32, off": "eval_pass32_off",
    "length": "eval_length",
    "hidden ratio": "hidden_ratio",
    "seconds": "train_seconds",
    "tokens": "train_tokens",
}
PASSES = "eval_pass32"
CURVES = ("reward", "completions/mean_length", "entropy", "thinking/hidden_ratio")


@dataclass
class CompareArguments:
    """
    Args:
        config (`str`):
            The arms and seeds, a YAML file as of `recipes/run_experiment.py` with one axis, `arm`.
        output_dir (`str`):
            Folder of the comparison.
        jobs (`int`, *optional*, defaults to `2`):
            Runs at once, with one thread each.
        report (`bool`, *optional*, defaults to `False`):
            Write the report of what is finished and run nothing.
    """

    config: str
    output_dir: str
    jobs: int = 2
    report: bool = False


def by_arm(grid: Grid, rows: list[dict]) -> dict[str, dict[int, dict]]:
    """Result row by arm and seed, the arms in the order of the grid."""
    results = {arm: {} for arm in grid.axes["arm"]}
    for row in rows:
        results[row["cell"]["arm"]][row["seed"]] = row
    return {arm: runs for arm, runs in results.items() if runs}


def mean_metrics(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Means over the seeds of the metrics that all of them have."""
    found = {}
    for title, name in MEANS.items():
        values = [run["metrics"].get(name) for run in runs.values()]
        if all(map(is_number, values)):
            found[title] = sum(values) / len(values)
    return found


def mean_history(histories: list[list[dict]], keys=CURVES) -> list[dict]:
    """One training log out of those of several seeds: means of the steps that all of them have."""
    by_step = [{row["step"]: row for row in history if "reward" in row} for history in histories]
    steps = sorted(set.intersection(*map(set, by_step)))
    return [
        {"step": step}
        | {
            key: sum(log[step][key] for log in by_step) / len(by_step)
            for key in keys
            if all(is_number(log[step].get(key)) for log in by_step)
        }
        for step in steps
    ]


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown tables."""
    seeds, baseline = ", ".join(map(str, comparison["seeds"])), comparison["baseline"]
    titles = [title for title in MEANS if any(title in entry["means"] for entry in comparison["arms"].values())]
    lines = [f"# {comparison['name']}", "", f"Means over the finished ones of the seeds {seeds}.", ""]
    means = [
        (arm, len(entry["seeds"]), *(_or_empty(entry["means"].get(title), ".4g") for title in titles))
        for arm, entry in comparison["arms"].items()
    ]
    contrasts = _contrast_rows(comparison["contrasts"])
    passes = _contrast_rows(row for row in comparison["passes"] if row.basis in ("steps", THINKING_OFF))
    problems = [
        (row["arm"], row["seed"], *_difference(row["difference"], row["low"], row["high"]))
        for row in comparison["problems"]
    ]
    interval = ("difference", "95 % interval")
    lines += [
        markdown_table(("arm", "seeds", *titles), means),
        "",
        "`off` is the same weights without thinking, `swap` with the states of another problem, `soft` with soft "
        "thinking, which few arms were trained for.",
        "",
        f"Differences of the sampled accuracy to {baseline} at equal steps, tokens and wall-clock, and of each arm to "
        "itself without thinking: paired t interval over the seeds, p corrected over the arms (Holm).",
        "",
        markdown_table(_CONTRAST_COLUMNS, contrasts, align="llr"),
        "",
        *_passes(passes, baseline),
        f"Sampled accuracy minus that of {baseline} inside one seed: paired bootstrap over the problems.",
        "",
        markdown_table(("arm", "seed", *interval), problems),
        "",
        "![curves](learning_curves.png)",
        "",
    ]
    return "\n".join(lines)


_CONTRAST_COLUMNS = ("arm", "basis", "seeds", "difference", "95 % interval", "p", "p (Holm)")


def _contrast_rows(contrasts) -> list[tuple]:
    return [
        (row.arm, row.basis, len(row.seeds), *_difference(row.difference, row.low, row.high), *_p_values(row))
        for row in contrasts
    ]


def _passes(rows: list[tuple], baseline: str) -> list[str]:
    if not rows:
        return []
    text = f"Differences of pass@32 to {baseline} at equal steps, and to the same arm without thinking:"
    return [text, "", markdown_table(_CONTRAST_COLUMNS, rows, align="llr"), ""]


def _difference(difference: float, low: float, high: float) -> tuple[str, str]:
    return f"{difference:+.4f}", f"[{low:+.4f}, {high:+.4f}]"


def _p_values(row) -> list[str]:
    return [_or_empty(p, ".3f") for p in (row.p_value, row.p_holm)]


def _or_empty(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def write_comparison(grid: Grid, rows: list[dict], output_dir: str) -> dict[str, Any]:
    """Write `compare.md`, `compare.json` and `learning_curves.png` of the finished runs."""
    results, runs_dir, folder = by_arm(grid, rows), Path(output_dir) / "runs", Path(output_dir) / "report"
    baseline = grid.baseline["arm"]
    problems = []
    for arm, runs in results.items():
        for seed in runs if arm != baseline else ():
            if seed in results.get(baseline, {}):
                first, second = (
                    read_jsonl(runs_dir / results[name][seed]["id"] / SAMPLES_NAME) for name in (baseline, arm)
                )
                found = contrast_problems(first, second, "accuracy")._asdict()
                problems.append({"arm": arm, "seed": seed, "difference": found.pop("value")} | found)
    sampled = all(PASSES in run["metrics"] for runs in results.values() for run in runs.values())
    comparison = {
        "name": grid.name,
        "baseline": baseline,
        "seeds": grid.seeds,
        "arms": {arm: {"seeds": list(runs), "means": mean_metrics(runs)} for arm, runs in results.items()},
        "contrasts": contrast_arms(results, baseline) if baseline in results else [],
        "passes": contrast_arms(results, baseline, PASSES) if baseline in results and sampled else [],
        "problems": problems,
    }
    histories = {
        arm: mean_history([read_jsonl(runs_dir / run["id"] / LOG_FILE_NAME) for run in runs.values()])
        for arm, runs in results.items()
    }
    if histories := {arm: history for arm, history in histories.items() if history}:
        plot_training_curves(histories, folder / "learning_curves.png", keys=_logged(histories))
    atomic_write_json(folder / "compare.json", comparison)
    atomic_write_text(folder / "compare.md", markdown(comparison))
    return comparison


def _logged(histories: Mapping[str, list[dict]]) -> list[str]:
    return [key for key in CURVES if any(key in row for history in histories.values() for row in history)]


def main(argv: list[str] | None = None) -> int:
    (args,) = RecipeParser(CompareArguments, __doc__).parse_args_and_config(argv)
    grid = load_grid(args.config, {"warm_up_dir": str(Path(args.output_dir) / "warm-up")})
    if list(grid.axes) != ["arm"] or not grid.baseline:
        raise ValueError(f"`{args.config}` must have one axis, `arm`, and a `baseline`, got axes {list(grid.axes)}.")
    runner = ExperimentRunner(grid, args.output_dir, LaunchOptions("python", threads=1), args.jobs)
    code = 0 if args.report else runner.run()
    rows = runner.results()
    if not rows:
        print(f"No run in {args.output_dir} is finished: there is nothing to report.")
        return code
    write_report(grid, runner.plan(), rows, args.output_dir)
    write_comparison(grid, rows, args.output_dir)
    print(f"{len(rows)} runs in {Path(args.output_dir) / 'report' / 'compare.md'}")
    return code


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Run the same command again to go on.")
