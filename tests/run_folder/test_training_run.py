"""A run's folder from its start to each kind of end."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from launching import fork_script
from repository import RECIPES

from hf_evidenceflow.report import run_record as reporting
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.lock import OWNER_NAME, FolderInUseError, folder_owner
from hf_evidenceflow.run_folder.termination import Terminated
from hf_evidenceflow.run_folder.training_run import training_run


def status(folder):
    return read_run_record(folder)["status"]


def test_a_run_holds_its_folder_and_is_finished(tmp_path):
    with training_run(tmp_path / "run", settings={"a": 1}) as run:
        assert (run.checkpoint, status(tmp_path / "run")) == (None, "running")
        assert folder_owner(tmp_path / "run").pid == os.getpid()
        run.record.add(metrics={"accuracy": 0.5})
    assert status(tmp_path / "run") == "finished"
    assert folder_owner(tmp_path / "run") is None


def test_a_second_run_of_the_folder_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_evidenceflow.run_folder.lock.WAIT_SECONDS", 0.1)
    with training_run(tmp_path):
        before = (tmp_path / "run.json").read_text()
        with pytest.raises(FolderInUseError), training_run(tmp_path, "auto"):
            pass
        assert (tmp_path / "run.json").read_text() == before


def test_sigterm_outside_training_ends_the_run_at_once(tmp_path, capsys):
    with pytest.raises(Terminated) as ended, training_run(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert (ended.value.code, status(tmp_path)) == (143, "interrupted")
    assert "Interrupted (SIGTERM)" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_rank_0_holds_the_folder(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    with training_run(tmp_path):
        assert (tmp_path / OWNER_NAME).exists() == (rank == "0")


def test_on_a_full_disk_the_status_is_changed_in_place(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), training_run(tmp_path):
        monkeypatch.setattr(reporting, "atomic_write_json", full)
        raise OSError("No space left")
    assert status(tmp_path) == "failed"


def test_a_status_that_cannot_be_noted_hides_no_error(tmp_path, caplog):
    with pytest.raises(KeyError), training_run(tmp_path):
        (tmp_path / "run.json").unlink()
        (tmp_path / "run.json").mkdir()
        raise KeyError
    assert "'failed', could not be noted" in caplog.text


def test_a_run_whose_folder_was_removed_is_noted_as_failed(tmp_path):
    import shutil

    with pytest.raises(KeyError), training_run(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        raise KeyError
    assert status(tmp_path / "run") == "failed"


@pytest.mark.parametrize(
    "error, code",
    [(None, 0), (KeyboardInterrupt(), 130), (Terminated(), 143), (OSError("no room"), "Error: no room")],
)
def test_a_recipe_ends_with_its_exit_code(error, code):
    def main():
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as ended:
        run_recipe(main)
    assert ended.value.code == code


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_recipe(lambda: 1 / 0)


def arguments(folder, steps=2000):
    """Of `pretrain_clm.py` at its smallest size."""
    options = {
        "config": RECIPES / "configs/pretrain_clm/smoke.yaml",
        "config_overrides": '{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}',
        "generated_documents": 40,
        "train_vocab_size": 270,
        "block_size": 16,
        "max_steps": steps,
        "save_steps": 1000,
        "eval_steps": 1000,
        "plot": False,
        "output_dir": folder,
        "resume_from_checkpoint": "auto",
    }
    return [str(part) for key, value in options.items() for part in (f"--{key}", value)]


def wait_until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


ACCELERATE = ("-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", "--num_machines", "1", "--cpu")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no")


@contextlib.contextmanager
def launched(*arguments):
    """By `accelerate launch`; it and what it starts are a process group, of which nothing is left."""
    command = [sys.executable, *ACCELERATE, str(RECIPES / "pretrain_clm.py"), *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def forked(*arguments, errors=os.devnull):
    """The recipe alone."""
    process = fork_script(RECIPES / "pretrain_clm.py", arguments, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_sigterm_to_the_launcher_saves_and_the_same_command_goes_on_to_the_end(tmp_path):
    log = tmp_path / "log.jsonl"
    with launched(*arguments(tmp_path)) as launcher:
        wait_until(log.exists)
        trainer = json.loads((tmp_path / OWNER_NAME).read_text())["pid"]
        assert trainer != launcher.pid
        launcher.send_signal(signal.SIGTERM)
        wait_until(lambda: not psutil.pid_exists(trainer), seconds=60)
    assert status(tmp_path) == "interrupted"
    (first,) = tmp_path.glob("checkpoint-*")

    with forked(*arguments(tmp_path), errors=tmp_path / "errors") as alone:
        rows = log.read_text().count("\n")
        wait_until(lambda: log.read_text().count("\n") > rows + 1)
        os.kill(alone.pid, signal.SIGTERM)
        alone.join(timeout=60)
        assert alone.exitcode == 143
    assert "Go on with the same command" in (tmp_path / "errors").read_text()
    second = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert second != first

    steps = int(second.name.split("-")[1])
    with forked(*arguments(tmp_path, steps)) as done:
        done.join(timeout=240)
        assert done.exitcode == 0
    assert status(tmp_path) == "finished"
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == steps
