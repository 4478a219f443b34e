"""One run's files: when it is resumed, begun anew or refused; and its results."""

import json
import os
import struct
import time
import zipfile

import pytest
import yaml

from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions, launch_command
from hf_evidenceflow.recipes.experiments.runs import RunFiles, eval_rows, result_row


def make_grid(**options):
    return parse_grid(
        {"name": "study", "recipe": "recipe.py", "overrides": options, "seeds": [3], "metrics": ["eval_loss"]}
    )


def make_files(folder, **options):
    grid = make_grid(**options)
    return RunFiles(folder, grid.run(grid.cells[0], 3))


def make_checkpoint(files, step=5):
    folder = files.folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        zipfile.ZipFile(folder / name, "w").close()
    (folder / "config.json").write_text("{}")
    state = {"global_step": step, "log_history": [{"step": step, "loss": 2.5}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def write_record(files, status, **entries):
    files.folder.mkdir(parents=True, exist_ok=True)
    (files.folder / "run.json").write_text(json.dumps({"status": status} | entries))


def test_options_that_are_mappings_survive_the_yaml(tmp_path):
    options = {"nested": {"a": [1, 2], "b": {"c": None}}, "text": "1e-3", "rate": 1e-05, "off": False}
    files = make_files(tmp_path, **options)
    files.prepare()
    assert yaml.safe_load(files.options.read_text()) == options


def test_a_run_with_a_whole_checkpoint_is_resumed(tmp_path):
    files = make_files(tmp_path)
    make_checkpoint(files)
    assert files.prepare() is True
    command = launch_command(make_grid(), files, LaunchOptions("python"), resume=True)
    assert command[-2:] == ["--resume_from_checkpoint", "true"]


def test_a_run_without_a_whole_checkpoint_begins_anew(tmp_path):
    files = make_files(tmp_path)
    make_checkpoint(files)
    (files.folder / "checkpoint-5" / "model.safetensors").unlink()
    assert files.prepare() is False
    assert not files.folder.exists()


def test_a_finished_run_with_other_options_is_refused(tmp_path):
    files = make_files(tmp_path, width=3)
    files.prepare()
    write_record(files, "finished")
    with pytest.raises(ValueError, match="`width` was 3 and is now 5"):
        make_files(tmp_path, width=5).check_options()


def test_a_failed_run_without_a_checkpoint_may_change_its_options(tmp_path):
    files = make_files(tmp_path, width=3)
    files.prepare()
    write_record(files, "failed")
    make_files(tmp_path, width=5).check_options()


def test_where_a_finished_run_reports_to_may_change(tmp_path):
    files = make_files(tmp_path, report_to="none")
    files.prepare()
    write_record(files, "finished")
    make_files(tmp_path, report_to="trackio").check_options()


def test_a_recent_sign_of_an_unknown_runner_counts_as_alive(tmp_path):
    files = make_files(tmp_path)
    write_record(files, "running")
    assert files.runs_elsewhere()
    old = time.time() - 3600
    os.utime(files.folder / "run.json", (old, old))
    os.utime(files.folder, (old, old))
    assert not files.runs_elsewhere()


def test_the_result_holds_metrics_and_evaluations(tmp_path):
    files = make_files(tmp_path)
    record = {"metrics": {"eval_loss": "nan", "n": 3}, "git": "0123abc", "versions": {"torch": "2"}}
    write_record(files, "finished", **record)
    (files.folder / "log.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 5, "eval_loss": 2.5, "epoch": 0.5}\n')
    row = result_row(files, files.finished_record(), None, final=True)
    assert row["metrics"]["eval_loss"] != row["metrics"]["eval_loss"]
    assert row["evals"] == [{"step": 5, "epoch": 0.5, "eval_loss": 2.5}]
    assert (row["seed"], row["git"], row["final"]) == (3, "0123abc", True)


def test_without_a_log_file_the_trainer_state_is_read(tmp_path):
    files = make_files(tmp_path)
    make_checkpoint(files)
    assert files.history() == [{"step": 5, "loss": 2.5}]


def test_a_step_that_was_evaluated_twice_counts_once_with_the_last_value():
    history = [{"step": 4, "eval_loss": 3.0}, {"step": 2, "eval_loss": 4.0}, {"step": 4, "eval_loss": 2.0}]
    assert [(row["step"], row["eval_loss"]) for row in eval_rows(history)] == [(2, 4.0), (4, 2.0)]


def test_accelerate_gets_all_that_it_would_ask_for():
    command = LaunchOptions(threads=3, cpu=True).prefix()
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert command[4:6] == ["--num_cpu_threads_per_process", "3"]
    assert "--cpu" in command


def test_an_unknown_launcher_is_an_error():
    with pytest.raises(ValueError, match="got 'torchrun'"):
        LaunchOptions("torchrun")
