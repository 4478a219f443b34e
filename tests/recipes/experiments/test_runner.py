"""The runner with a recipe that only pretends to train: order, resume, failures, interruption, the lock."""

import json
import os
import signal
import time

import pytest
import yaml
from filelock import FileLock
from launching import fork_script
from repository import HELPERS, RECIPES

from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions, stop_processes
from hf_evidenceflow.recipes.experiments.lock import lock_experiment
from hf_evidenceflow.recipes.experiments.runner import ExperimentRunner
from hf_evidenceflow.run_folder.lock import LOCK_NAME


RECIPE = str(HELPERS / "fake_recipe.py")


def grid_data(**changes):
    data = {
        "name": "study",
        "recipe": RECIPE,
        "axes": {"arm": {"none": {}, "mse": {"effect": -0.1}}},
        "seeds": [0, 1],
        "metrics": ["eval_loss"],
        "baseline": {"arm": "none"},
    }
    return data | changes


def make_runner(folder, launcher="python", jobs=2, **changes):
    return ExperimentRunner(parse_grid(grid_data(**changes)), folder, LaunchOptions(launcher, cpu=True), jobs)


def read_results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run_records(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}


@pytest.mark.slow
def test_a_tuned_grid_runs_to_its_end_and_is_not_repeated(tmp_path):
    tune = {"option": "learning_rate", "values": [0.003, 0.01, 0.03], "metric": "eval_loss"}
    assert make_runner(tmp_path, tune=tune, overrides={"nested": {"a": {"b": [1]}}}).run() == 0
    rows = read_results(tmp_path)
    assert len(rows) == 8
    assert {row["id"] for row in rows if row["final"]} == {
        f"arm={arm},learning_rate=0.01,seed={seed}" for arm in ("none", "mse") for seed in (0, 1)
    }
    options = json.loads((tmp_path / "runs" / rows[0]["id"] / "run.json").read_text())["options"]
    assert options["nested"] == {"a": {"b": [1]}}

    before, text = run_records(tmp_path), (tmp_path / "results.jsonl").read_text()
    assert make_runner(tmp_path, tune=tune, overrides={"nested": {"a": {"b": [1]}}}).run() == 0
    assert run_records(tmp_path) == before
    assert (tmp_path / "results.jsonl").read_text() == text


@pytest.mark.slow
def test_a_failed_run_leaves_the_others_alone_and_is_tried_again(tmp_path):
    fixed = tmp_path / "fixed"
    axes = {"arm": {"none": {}, "mse": {"fail_until": str(fixed)}}}
    runner = make_runner(tmp_path / "out", axes=axes)
    assert runner.run() == 1
    assert [row["cell"]["arm"] for row in read_results(tmp_path / "out")] == ["none", "none"]
    failure = json.loads((tmp_path / "out" / "runs" / "arm=mse,seed=0.failure.json").read_text())
    assert (failure["returncode"], failure["log_tail"][-1]) == (3, "this run <fails>")
    assert "exit code 3: this run &lt;fails&gt;" in (tmp_path / "out" / "status.html").read_text()

    fixed.touch()
    assert make_runner(tmp_path / "out", axes=axes).run() == 0
    assert len(read_results(tmp_path / "out")) == 4
    assert not list(tmp_path.glob("out/runs/*.failure.json"))


SLOW = {"seconds": 30.0, "eval_steps": 1}


def start_runner(folder, jobs=2, **changes):
    """`run_experiment.py` as a process; what it says of errors is in `errors`."""
    config = folder / "grid.yaml"
    config.write_text(yaml.safe_dump(grid_data(overrides=SLOW, **changes), sort_keys=False))
    options = {"config": config, "output_dir": folder / "out", "launcher": "python", "jobs": jobs}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return fork_script(RECIPES / "run_experiment.py", arguments, stderr=folder / "errors")


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_runs_and_the_next_call_resumes_them(tmp_path, number, code):
    process = start_runner(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("out/runs/*/log.jsonl"))) == 2)
    children = json.loads((tmp_path / "out" / "runner.json").read_text())["children"]
    with pytest.raises(RuntimeError, match=f"Another runner works on .* {process.pid} "):
        make_runner(tmp_path / "out").run()
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == code
    assert "Run the same command again" in (tmp_path / "errors").read_text()
    for child in children.values():
        with pytest.raises(ProcessLookupError):
            os.kill(child["pid"], 0)

    runner = make_runner(tmp_path / "out", overrides=SLOW)
    commands = runner.next_commands()
    assert [command.endswith("--resume_from_checkpoint true") for command in commands] == [True, True, False, False]
    with pytest.raises(ValueError, match="`seconds` was 30.0 and is now 0.0"):
        make_runner(tmp_path / "out", overrides={"seconds": 0.0, "eval_steps": 1}).run()


@pytest.mark.slow
def test_a_runner_that_was_killed_is_noticed_with_its_runs(tmp_path):
    process = start_runner(tmp_path, jobs=1, seeds=[0])
    wait_for(lambda: list(tmp_path.glob("out/runs/*/log.jsonl")))
    ((run, child),) = json.loads((tmp_path / "out" / "runner.json").read_text())["children"].items()
    process.kill()
    process.join()
    try:
        with pytest.raises(RuntimeError, match=f"was killed, but runs that it started go on: .*{child['pid']}"):
            make_runner(tmp_path / "out").run()
    finally:
        os.kill(child["pid"], signal.SIGKILL)
    # The run is this runner's to take up although its record still says "running"; what was killed may be ending yet
    commands = make_runner(tmp_path / "out", overrides=SLOW, seeds=[0]).next_commands()
    assert run in commands[0]


@pytest.mark.slow
def test_a_real_launch_with_accelerate_finishes(tmp_path):
    assert make_runner(tmp_path, launcher="accelerate", seeds=[0], axes={}, baseline=None).run() == 0
    assert "accelerate.commands.launch" in (tmp_path / "runs" / "seed=0.log").read_text()
    assert len(read_results(tmp_path)) == 1


def test_printed_jobs_are_the_tuning_runs_first_and_start_nothing(tmp_path):
    tune = {"option": "learning_rate", "values": [0.003, 0.01], "metric": "eval_loss"}
    commands = make_runner(tmp_path, tune=tune).next_commands()
    assert len(commands) == 4
    assert all("seed=0" in command and "--seed 0" in command for command in commands)
    assert run_records(tmp_path) == {}
    assert yaml.safe_load((tmp_path / "runs" / "arm=mse,learning_rate=0.01,seed=0.yaml").read_text()) == {
        "effect": -0.1,
        "learning_rate": 0.01,
    }


def test_printed_jobs_leave_out_runs_that_go_on_elsewhere(tmp_path):
    folder = tmp_path / "runs" / "arm=none,seed=1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "running"}')
    commands = make_runner(tmp_path).next_commands()
    assert len(commands) == 3
    assert not any("arm=none,seed=1" in command for command in commands)
    assert folder.exists()


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    make_runner(tmp_path).next_commands()
    with pytest.raises(ValueError, match="holds another experiment"):
        make_runner(tmp_path, name="other").next_commands()


def test_a_locked_folder_is_refused_and_a_stale_lock_is_not(tmp_path):
    (tmp_path / "runner.json").write_text('{"pid": 1, "host": "elsewhere", "children": {}}')
    with (
        lock_experiment(tmp_path),
        pytest.raises(RuntimeError, match="Another runner works"),
        lock_experiment(tmp_path),
    ):
        pass
    FileLock(tmp_path / LOCK_NAME).acquire().lock.release()  # the file of a runner that is gone
    with lock_experiment(tmp_path) as runner_file:
        assert runner_file.orphans == set()


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came in time"
        time.sleep(0.05)


class _Run:
    """A run that ends at a signal."""

    def __init__(self):
        self.got = []

    def signal(self, number):
        self.got.append(number)

    def group_is_alive(self):
        return not self.got


class _SlowStep(_Run):
    """A run whose step takes longer than the time after Ctrl-C; at its end it saves."""

    left = 3

    def group_is_alive(self):
        self.left -= 1
        return self.left > 0


def test_a_run_may_finish_its_step_and_save_after_sigterm(monkeypatch):
    monkeypatch.setattr("hf_evidenceflow.recipes.experiments.launcher.INTERRUPT_SECONDS", 0.0)
    run = _SlowStep()
    stop_processes([run], signal.SIGTERM)
    assert run.got == [signal.SIGTERM] and run.left == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_get_the_signal_that_ended_the_runner(number):
    run = _Run()
    stop_processes([run], number)
    assert run.got == [number]
