"""
Does latent training pay? Arms of supervised latent thinking and their controls, over seeds and rules of one task.

```bash
python recipes/compare_latent.py --config recipes/configs/compare_latent/tuning.yaml --output_dir outputs/tuning
python recipes/compare_latent.py --config recipes/configs/compare_latent/headline.yaml --output_dir outputs/headline
```

The arms are those of `recipes/experiments/latent_arms.py`. Each with a seed is one run of
`recipes/compare_latent_arm.py`, or of `recipes/compare_latent_rl.py`, in a folder of its own: the same command again
goes on, and finished runs stay. `tuning.yaml` picks learning rates on validation problems; the other grids read test
problems. `--report true` writes the report of what is finished. `smoke.yaml` takes a minute on one CPU core, offline.

Outputs, in `output_dir`: `status.html`, `results.jsonl` and `runs/` as of `recipes/run_experiment.py`, and `report/`:
`report.md` (means, the studied arm against each control, arms against themselves without their states), `report.json`,
`accuracy.png`, and for a grid that tunes `picked.yaml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import yaml

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.latent_report import (
    arm_means,
    by_group,
    control_contrasts,
    plot_accuracy,
    report_markdown,
    state_contrasts,
)
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions
from hf_evidenceflow.recipes.experiments.plan import Plan
from hf_evidenceflow.recipes.experiments.runner import ExperimentRunner
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class CompareLatentArguments:
    """
    Args:
        config (`str`):
            The arms and seeds, a YAML file as of `recipes/run_experiment.py` with the axis `arm`. Levels of an axis
            `rule` count as further seeds; those of other axes are compared with each other.
        output_dir (`str`):
            Folder of the comparison.
        jobs (`int`, *optional*, defaults to `1`):
            Runs at once, with one thread each.
        report (`bool`, *optional*, defaults to `False`):
            Write the report of what is finished and run nothing.
    """

    config: str
    output_dir: str
    jobs: int = 1
    report: bool = False


def check_grid(grid: Grid, path: str) -> None:
    """Refuse a grid without arms and a studied one, and one that would tune on test problems."""
    if "arm" not in grid.axes or list(grid.baseline or {}) != ["arm"]:
        raise ValueError(f"`{path}` must have an axis `arm` and one of its levels as `baseline`, got {grid.baseline}.")
    splits = {cell.options.get("evaluate_on", "validation") for cell in grid.cells}
    if grid.tune is not None and splits != {"validation"}:
        raise ValueError(
            f"`{path}` tunes `{grid.tune.option}` with runs that evaluate on {', '.join(sorted(splits))}. Set "
            "`evaluate_on: validation`: a value that test problems have picked proves nothing on them."
        )
    if wrong := [name for name in grid.metrics if not name.startswith(tuple(f"{split}_" for split in splits))]:
        raise ValueError(f"`metrics` of `{path}` names {wrong}, but the runs evaluate on {', '.join(sorted(splits))}.")


def picked_values(grid: Grid, plan: Plan) -> dict[str, Any]:
    """The chosen value of the tuned option by arm, or by `arm,level` where an arm has several."""
    cells = [cell for cell in grid.cells if cell.name in plan.chosen]
    values: dict[str, set] = {cell.levels["arm"]: set() for cell in cells}
    for cell in cells:
        values[cell.levels["arm"]].add(plan.chosen[cell.name])
    axes = ["arm"] if all(len(each) == 1 for each in values.values()) else (grid.tune.per or list(grid.axes))
    return {",".join(cell.levels[axis] for axis in axes): plan.chosen[cell.name] for cell in cells}


def write_comparison(grid: Grid, plan: Plan, rows: list[Mapping[str, Any]], output_dir: str) -> dict[str, Any]:
    """Write `report/` of the finished runs; returns the content of `report.json`."""
    folder, groups = Path(output_dir) / "report", by_group(grid, rows)
    means = [arm_means(grid, group, arm, runs) for group, arms in groups.items() for arm, runs in arms.items()]
    contrasts = [each for group, arms in groups.items() for each in control_contrasts(grid, group, arms)]
    states = [
        each
        for group, arms in groups.items()
        for arm, runs in arms.items()
        for each in state_contrasts(grid, group, arm, runs)
    ]
    content = {
        "name": grid.name,
        "studied": grid.baseline["arm"],
        "seeds": grid.seeds,
        "arms": means,
        "contrasts": contrasts,
        "states": states,
    }
    if grid.tune is not None:
        picked = picked_values(grid, plan)
        content |= {"picked": picked, "tuning": tuning_table(grid, rows)}
        atomic_write_text(folder / "picked.yaml", yaml.safe_dump({grid.tune.option: picked}, sort_keys=False))
    atomic_write_json(folder / "report.json", content)
    atomic_write_text(folder / "report.md", report_markdown(grid, means, contrasts, states))
    if means:
        plot_accuracy(grid, means, folder / "accuracy.png")
    return content


def tuning_table(grid: Grid, rows: list[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The metric that decides, by arm and value."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        value = str(row["tuned"][grid.tune.option])
        table.setdefault(row["cell"]["arm"], {})[value] = row["metrics"][grid.tune.metric]
    return table


def main(argv: list[str] | None = None) -> int:
    (args,) = RecipeParser(CompareLatentArguments, __doc__).parse_args_and_config(argv)
    grid = load_grid(args.config)
    check_grid(grid, args.config)
    runner = ExperimentRunner(grid, args.output_dir, LaunchOptions("python", threads=1), args.jobs)
    code = 0 if args.report else runner.run()
    rows = runner.results()
    if not rows:
        print(f"No run in {args.output_dir} is finished: there is nothing to report.")
        return code
    write_comparison(grid, runner.plan(), rows, args.output_dir)
    print(f"{len(rows)} runs in {Path(args.output_dir) / 'report' / 'report.md'}")
    return code


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Run the same command again to go on.")
