"""The runner: works off the plan of a grid with several processes at once, and keeps results and status current."""

import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text, to_plain
from hf_evidenceflow.files import read_json
from hf_evidenceflow.recipes.experiments.cluster import ClusterRun, is_queued, submit_runs
from hf_evidenceflow.recipes.experiments.grid import Grid, RunSpec
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions, RunProcess, launch_command, stop_processes
from hf_evidenceflow.recipes.experiments.lock import RunnerFile, lock_experiment
from hf_evidenceflow.recipes.experiments.plan import Plan, make_plan
from hf_evidenceflow.recipes.experiments.progress import Progress, collect_progress
from hf_evidenceflow.recipes.experiments.runs import RunFiles, result_row
from hf_evidenceflow.recipes.experiments.status_page import write_status_page
from hf_evidenceflow.recipes.experiments.terminal import Terminal
from hf_evidenceflow.run_folder.termination import Terminated, handle_sigterm


RESULTS_NAME = "results.jsonl"
EXPERIMENT_NAME = "experiment.json"
JOBS_NAME = "jobs"  # scripts and logs of a cluster's jobs
POLL_SECONDS = 0.1


class ExperimentRunner:
    """
    Runs the grid in one folder; a second call goes on where the first one ended.

    Finished runs are not repeated, unfinished ones are resumed from their last whole checkpoint or begun anew, failed
    ones are tried again by the next call.

    Args:
        grid ([`Grid`]):
            The grid.
        output_dir (`str` or `os.PathLike`):
            Folder of the experiment.
        launch ([`LaunchOptions`], *optional*):
            How runs are started.
        jobs (`int`, *optional*, defaults to `1`):
            Runs at once.
        refresh_seconds (`float`, *optional*, defaults to `5.0`):
            How often the status page is written.

    Example:

    ```python
    >>> grid = load_grid("recipes/configs/run_experiment/smoke.yaml")
    >>> ExperimentRunner(grid, "outputs/smoke", jobs=2).run()  # 0 if nothing failed
    ```
    """

    def __init__(
        self,
        grid: Grid,
        output_dir: str | os.PathLike,
        launch: LaunchOptions | None = None,
        jobs: int = 1,
        refresh_seconds: float = 5.0,
    ):
        if jobs < 1:
            raise ValueError(f"`jobs` must be at least 1, got {jobs}.")
        if not refresh_seconds > 0:
            raise ValueError(f"`refresh_seconds` must be above 0, got {refresh_seconds}.")
        self.grid = grid
        self.output_dir = str(output_dir)
        self.launch = launch or LaunchOptions()
        self.jobs = jobs
        self.refresh_seconds = refresh_seconds
        self.records: dict[str, dict[str, Any]] = {}  # of finished runs, by id
        self.children: dict[str, RunProcess] = {}
        self.failed: set[str] = set()
        self._progress_cache: dict = {}

    def run(self) -> int:
        """
        Run what is left of the grid.

        Returns:
            `int`: Exit code: 1 if a run failed, else 0.

        Raises:
            RuntimeError: If another runner is at work in the folder.
            ValueError: If the folder holds another experiment, or a run with other options.
            Terminated: After SIGTERM; the runs have saved a checkpoint.
        """
        with lock_experiment(self.output_dir) as runner_file, handle_sigterm(), Terminal() as terminal:
            plan, number = self._checked_plan(), signal.SIGINT
            try:
                self._loop(plan, runner_file, terminal)
            except Terminated:
                number = signal.SIGTERM
                raise
            finally:
                stop_processes(self.children.values(), number)
                # One that had to be killed says "running" for ever; the next call must know better.
                runner_file.orphans |= set(self.children)
                self.children = {}
                runner_file.write({})
                plan = self.plan()
                self._write_results(plan)
                progress = self._report_status(plan, terminal, live=False)
            if elsewhere := progress.counts["running"]:
                terminal.line(f"{elsewhere} runs go on elsewhere: call again when they have ended")
        return 1 if self.failed else 0

    def next_commands(self) -> list[str]:
        """
        Prepare the runs that can be started now and return their commands, for a cluster's scheduler; runs nothing.

        Returns:
            `list[str]`: Shell commands, one per run. Runs that seem to go on elsewhere are left out. With `tune`, a
            second call gives the remaining seeds once the tuning runs are done.
        """
        with lock_experiment(self.output_dir) as runner_file:
            plan, commands = self._checked_plan(), []
            for spec in self._due(plan, runner_file):
                files = RunFiles(self.output_dir, spec)
                commands.append(shlex.join(launch_command(self.grid, files, self.launch, resume=files.prepare())))
            self._write_results(plan)
            self._report_status(plan, None, live=False)
        return commands

    def submit(self) -> list[str]:
        """
        Submit the runs that can be started now as Slurm jobs, by the grid's `slurm` options, and wait for none.

        Returns:
            `list[str]`: Ids of the jobs. Runs whose jobs wait or run are left out; a later call submits what has
            failed or, with `tune`, has become due since.
        """
        if self.grid.slurm is None:
            raise ValueError(f"The grid `{self.grid.name}` has no `slurm` options. Add `slurm: {{time: MINUTES}}`.")
        with lock_experiment(self.output_dir) as runner_file:
            plan = self._checked_plan()
            runs = [
                ClusterRun(self.grid, RunFiles(self.output_dir, spec), self.launch)
                for spec in self._due(plan, runner_file)
            ]
            ids = submit_runs(runs, Path(self.output_dir) / JOBS_NAME, self.jobs, self.grid.slurm)
            self._write_results(plan)
            self._report_status(plan, None, live=False)
        return ids

    def plan(self) -> Plan:
        """The runs of the grid with what is finished on disk."""
        return make_plan(self.grid, lambda spec: (self._finished(spec) or {}).get("metrics"))

    def results(self) -> list[dict[str, Any]]:
        """A row for each finished run; `results.jsonl` is written with them."""
        plan = self.plan()
        self._write_results(plan)
        return self._rows(plan)

    def _rows(self, plan: Plan) -> list[dict[str, Any]]:
        tuned = self.grid.tune.option if self.grid.tune is not None else None
        return [
            result_row(RunFiles(self.output_dir, spec), record, tuned, spec.id in plan.final)
            for spec in plan.runs
            if (record := self._finished(spec)) is not None
        ]

    def _loop(self, plan: Plan, runner_file: RunnerFile, terminal: Terminal) -> None:
        last_status = -self.refresh_seconds
        self._write_results(plan)
        while True:
            if free := self.jobs - len(self.children):
                for spec in self._due(plan, runner_file)[:free]:
                    self._start(spec, runner_file, terminal)
            if time.monotonic() - last_status >= self.refresh_seconds:
                self._report_status(plan, terminal)
                last_status = time.monotonic()
            if not self.children:
                return
            if ended := [run for run, process in self.children.items() if process.returncode() is not None]:
                for run in ended:
                    self._end(run, runner_file, terminal)
                plan = self.plan()
                self._write_results(plan)
                last_status = -self.refresh_seconds
            else:
                time.sleep(POLL_SECONDS)

    def _due(self, plan: Plan, runner_file: RunnerFile) -> list[RunSpec]:
        return [
            spec
            for spec in plan.runs
            if spec.id not in self.children
            and spec.id not in self.failed
            and self._finished(spec) is None
            and (spec.id in runner_file.orphans or not self._goes_on_elsewhere(spec))
        ]

    def _goes_on_elsewhere(self, spec: RunSpec) -> bool:
        files = RunFiles(self.output_dir, spec)
        return files.runs_elsewhere() or is_queued(files, Path(self.output_dir) / JOBS_NAME)

    def _start(self, spec: RunSpec, runner_file: RunnerFile, terminal: Terminal) -> None:
        files = RunFiles(self.output_dir, spec)
        resume = files.prepare()
        command = launch_command(self.grid, files, self.launch, resume)
        self.children[spec.id] = RunProcess(files, command, self.launch.threads)
        runner_file.orphans.discard(spec.id)
        runner_file.write({run: child.process.pid for run, child in self.children.items()})
        terminal.line(f"{'resumed' if resume else 'started'}  {spec.id}")

    def _end(self, run: str, runner_file: RunnerFile, terminal: Terminal) -> None:
        process = self.children.pop(run)
        runner_file.write({run: child.process.pid for run, child in self.children.items()})
        if self._finished(process.files.spec) is not None:
            terminal.line(f"finished  {run}")
            return
        process.files.record_failure(process.returncode(), process.command)
        self.failed.add(run)
        terminal.line(f"failed    {run}: exit code {process.returncode()}, see {process.files.log}")
        for line in process.files.tail()[-5:]:
            terminal.line(f"    {line}")

    def _finished(self, spec: RunSpec) -> dict[str, Any] | None:
        if spec.id not in self.records:
            record = RunFiles(self.output_dir, spec).finished_record()
            if record is None:
                return None
            self.records[spec.id] = record
        return self.records[spec.id]

    def _checked_plan(self) -> Plan:
        path = Path(self.output_dir) / EXPERIMENT_NAME
        identity = {"name": self.grid.name, "recipe": self.grid.recipe}
        if path.exists() and (known := read_json(path)) != identity:
            raise ValueError(
                f"`{self.output_dir}` holds another experiment, {known}; this grid's is {identity}. Choose another "
                "output folder."
            )
        plan = self.plan()
        for spec in plan.runs:
            RunFiles(self.output_dir, spec).check_options()
        atomic_write_json(path, identity)
        return plan

    def _write_results(self, plan: Plan) -> None:
        rows = [json.dumps(to_plain(row), ensure_ascii=False, allow_nan=False) for row in self._rows(plan)]
        atomic_write_text(Path(self.output_dir) / RESULTS_NAME, "".join(f"{row}\n" for row in rows))

    def _report_status(self, plan: Plan, terminal: Terminal | None, live: bool = True) -> Progress:
        progress = collect_progress(self.grid, plan, self.output_dir, self.children, self._progress_cache)
        write_status_page(progress, Path(self.output_dir) / "status.html", self.refresh_seconds if live else None)
        if terminal is not None:
            terminal.update(progress)
        return progress
