"""Runs as Slurm jobs: what is submitted and when, how a job ends, and what preemption leaves behind."""

import json
import os
import signal
import time

import pytest
from fake_slurm import FakeSlurm
from repository import HELPERS

from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions
from hf_evidenceflow.recipes.experiments.runner import ExperimentRunner
from hf_evidenceflow.recipes.run_experiment import RunnerArguments


pytest.importorskip("submitit")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    return slurm


def make_runner(folder, slurm_options=("partition", "gpu"), jobs=2, **overrides):
    data = {
        "name": "study",
        "recipe": str(HELPERS / "fake_recipe.py"),
        "axes": {"arm": {"none": {}, "mse": {"effect": -0.1}}},
        "seeds": [0, 1],
        "metrics": ["eval_loss"],
        "overrides": overrides,
        "slurm": {"time": 60, **dict([slurm_options])},
    }
    return ExperimentRunner(parse_grid(data), folder, LaunchOptions("python", threads=3), jobs)


def test_all_runs_are_one_array_with_the_options_of_the_grid(slurm, tmp_path):
    assert make_runner(tmp_path / "out").submit() == [f"{slurm.job}_{task}" for task in range(4)]
    options = {line.split(" --", 1)[1] for line in slurm.script.splitlines() if line.startswith("#SBATCH")}
    assert {"array=0-3%2", "time=60", "partition=gpu", "cpus-per-task=3", "job-name=study"} <= options
    assert (tmp_path / "out" / "runs" / "arm=none,seed=1.job").read_text() == f"{slurm.job}_1\n"


@pytest.mark.parametrize("state, again", [("PENDING", 0), ("RUNNING", 0), ("NODE_FAIL", 4)])
def test_a_run_is_submitted_again_only_when_its_job_is_gone(slurm, tmp_path, state, again):
    make_runner(tmp_path / "out").submit()
    slurm.set_states(dict.fromkeys(range(4), state))
    assert len(make_runner(tmp_path / "out").submit()) == again


def test_a_job_that_the_accounting_does_not_know_yet_counts_as_queued(slurm, tmp_path):
    make_runner(tmp_path / "out").submit()
    assert make_runner(tmp_path / "out").next_commands() == []


def test_an_unknown_option_is_refused_before_anything_is_submitted(slurm, tmp_path):
    with pytest.raises(ValueError, match="partitions"):
        make_runner(tmp_path / "out", ("partitions", "gpu")).submit()
    assert not (slurm.folder / "script.sh").exists() and not list(tmp_path.glob("out/runs/*.job"))


def test_a_grid_without_slurm_options_is_refused(tmp_path):
    runner = make_runner(tmp_path)
    object.__setattr__(runner.grid, "slurm", None)
    with pytest.raises(ValueError, match="has no `slurm` options"):
        runner.submit()


@pytest.mark.parametrize("slurm", [{"partition": "gpu"}, {"time": 0}, {"time": "1:00:00"}, "gpu"])
def test_slurm_options_need_a_time_in_minutes(slurm):
    with pytest.raises(ValueError, match="`time` in whole minutes"):
        parse_grid({"name": "a", "recipe": "a.py", "seeds": [0], "metrics": ["loss"], "slurm": slurm})


def test_a_cluster_and_printed_jobs_exclude_each_other():
    with pytest.raises(ValueError, match="choose one"):
        RunnerArguments("grid.yaml", "out", cluster="slurm", print_jobs=True)


@pytest.mark.slow
def test_a_failure_of_a_job_is_noted(slurm, tmp_path):
    make_runner(tmp_path, fail_until=str(tmp_path / "never")).submit()
    slurm.start(0).join(timeout=240)
    failure = json.loads((tmp_path / "runs" / "arm=none,seed=0.failure.json").read_text())
    assert (failure["returncode"], failure["log_tail"][-1]) == (3, "this run <fails>")


@pytest.mark.slow
def test_a_preempted_job_saves_is_queued_again_and_brings_its_run_to_the_end(slurm, tmp_path):
    make_runner(tmp_path / "out", seconds=30.0, eval_steps=1).submit()
    folder = tmp_path / "out" / "runs" / "arm=mse,seed=0"
    first = slurm.start(2)
    wait_for(lambda: (folder / "log.jsonl").exists())
    os.kill(first.pid, signal.SIGUSR2)
    first.join(timeout=240)
    assert slurm.requeued == f"requeue {slurm.job}_2\n"
    assert list(folder.glob("checkpoint-*"))

    second = slurm.start(2)
    second.join(timeout=240)
    assert second.exitcode == 0
    assert json.loads((folder / "run.json").read_text())["resumed"]
    (row,) = make_runner(tmp_path / "out", seconds=30.0, eval_steps=1).results()
    assert row["id"] == "arm=mse,seed=0"


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came in time"
        time.sleep(0.05)
