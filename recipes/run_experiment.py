"""
Run an ablation study: a YAML grid (variants x seeds) over any recipe, resumable, with a live status page and a report.

```bash
python recipes/run_experiment.py --config recipes/configs/run_experiment/smoke.yaml --output_dir outputs/experiment \
    --jobs 2 --threads 1
```

`--options '{"train_file": "my.txt"}'` sets recipe options for all runs.

The same command again goes on: finished runs stay, unfinished ones are resumed, failed ones tried again. Other uses:

```bash
# As Slurm jobs, by the grid's `slurm: {time: 120, partition: gpu}`; the same command later submits what is left
python recipes/run_experiment.py --config grid.yaml --output_dir outputs/experiment --cluster slurm --jobs 16
# The commands that can be started now, one per line, for another scheduler; again after them for the next stage
python recipes/run_experiment.py --config grid.yaml --output_dir outputs/experiment --print_jobs true > jobs.txt
# The report alone, of what is finished
python recipes/run_experiment.py --config grid.yaml --output_dir outputs/experiment --report true
```

The keys of the grid: [`~recipes.experiments.grid_file.load_grid`]. `smoke.yaml` takes about three minutes on two CPU
cores, offline.

Outputs, in `output_dir`:
- `status.html`: the live page (reloads itself); `results.jsonl`: one row for each finished run;
- `runs/ID.yaml`, `runs/ID/`, `runs/ID.log`: options, output folder and log of each run (`runs/ID.job`: its Slurm job);
- `report/`: `report.html` (everything on one page), `table.md`, `summary.json`, `differences.png`, `curves_*.png`.

The exit code is 1 if a run failed, 130 after Ctrl-C, 143 after SIGTERM.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.files import parse_json
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions
from hf_evidenceflow.recipes.experiments.report import write_report
from hf_evidenceflow.recipes.experiments.runner import ExperimentRunner
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class RunnerArguments:
    """
    Args:
        config (`str`):
            The grid, a YAML file.
        output_dir (`str`):
            Folder of the experiment.
        options (`str`, *optional*):
            Recipe options for all runs over those of the grid, as JSON: where the data lies, for example.
        jobs (`int`, *optional*, defaults to `1`):
            Runs at once.
        threads (`int`, *optional*, defaults to `1`):
            CPU threads of each run.
        launcher (`str`, *optional*, defaults to `"accelerate"`):
            `accelerate` for `accelerate launch`, `python` for the recipe without it.
        cpu (`bool`, *optional*, defaults to `False`):
            Whether `accelerate launch` gets `--cpu`.
        accelerate_config (`str`, *optional*):
            Config file of `accelerate launch`.
        refresh_seconds (`float`, *optional*, defaults to `5.0`):
            How often the status page is written.
        cluster (`str`, *optional*):
            `slurm`: submit the runs that can be started now as Slurm jobs, at most `jobs` at once, and wait for none.
        print_jobs (`bool`, *optional*, defaults to `False`):
            Print the commands that can be started now, instead of running them.
        report (`bool`, *optional*, defaults to `False`):
            Write the report of what is finished and run nothing. It is also written at the end of a call that runs.
    """

    config: str
    output_dir: str
    options: str | None = None
    jobs: int = 1
    threads: int = 1
    launcher: str = "accelerate"
    cpu: bool = False
    accelerate_config: str | None = None
    refresh_seconds: float = 5.0
    cluster: str | None = None
    print_jobs: bool = False
    report: bool = False

    def __post_init__(self):
        if self.cluster not in (None, "slurm"):
            raise ValueError(f"`cluster` must be 'slurm' or left out, got {self.cluster!r}.")
        if (self.cluster is not None) + self.print_jobs + self.report > 1:
            raise ValueError("`cluster`, `print_jobs` and `report` are different things to do: choose one.")


def parse_options(options: str | None) -> dict:
    """The `options` of the command line."""
    return parse_json(options or "{}", "`options`", remedy=f"It must be a JSON object, got {options!r}.")


def main(argv: list[str] | None = None) -> int:
    (args,) = RecipeParser(RunnerArguments, __doc__).parse_args_and_config(argv)
    grid = load_grid(args.config, parse_options(args.options))
    launch = LaunchOptions(args.launcher, args.threads, args.cpu, args.accelerate_config)
    runner = ExperimentRunner(grid, args.output_dir, launch, args.jobs, args.refresh_seconds)
    if args.print_jobs:
        for command in runner.next_commands():
            print(command)
        return 0

    if args.cluster is not None:
        ids = runner.submit()
        print(f"{len(ids)} jobs submitted" + (f": {', '.join(ids)}" if ids else "; call again when others have ended"))
    code = 0 if args.report or args.cluster else runner.run()
    rows = runner.results()
    if not rows:
        print(f"No run in {args.output_dir} is finished: there is nothing to report.")
        return code
    summary = write_report(grid, runner.plan(), rows, args.output_dir)
    print(f"{summary.finished} of {summary.total} runs in {Path(args.output_dir) / 'report' / 'report.html'}")
    return code


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Run the same command again to go on.")
