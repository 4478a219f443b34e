import json
import subprocess
from dataclasses import dataclass

import pytest
from transformers import TrainingArguments

from hf_evidenceflow.report import run_record as reporting
from hf_evidenceflow.report.run_record import git_revision, read_run_record, run_record


@dataclass
class Arguments:
    path: str = "model"
    seed: int = 7
    hub_token: str | None = None


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_status_runs_from_running_to_finished(tmp_path):
    with run_record(tmp_path):
        during = record_of(tmp_path)
    after = record_of(tmp_path)
    assert (during["status"], during["ended"]) == ("running", None)
    assert after["status"] == "finished"
    assert after["ended"] >= after["started"]


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_exception_sets_the_status_and_goes_on(tmp_path, error, status):
    with pytest.raises(error), run_record(tmp_path):
        raise error("no reward")
    assert record_of(tmp_path)["status"] == status


def test_failure_names_its_error(tmp_path):
    with pytest.raises(ValueError), run_record(tmp_path):
        raise ValueError("no reward")
    assert record_of(tmp_path)["error"] == "ValueError: no reward"


def test_resolved_configs_are_recorded(tmp_path):
    with run_record(tmp_path, script=Arguments(), training=TrainingArguments(str(tmp_path), learning_rate=3e-5)):
        pass
    configs = record_of(tmp_path)["configs"]
    assert configs["script"]["path"] == "model"
    assert configs["training"]["learning_rate"] == 3e-5


def test_added_entries_are_on_disk_at_once(tmp_path):
    with run_record(tmp_path) as record:
        record.add(metrics={"accuracy": 0.5})
        assert record_of(tmp_path)["metrics"] == {"accuracy": 0.5}


def test_no_secret_is_written(tmp_path):
    token = "hf_" + "a1B2" * 8
    configs = {
        "script": Arguments(hub_token="secret-1"),
        "model": {"init": {"token": "secret-2"}, "note": f"x {token}"},
    }
    command = ["train.py", "--hub_token", "secret-3", "--wandb-api-key=secret-4", "--lr", "1"]
    with run_record(tmp_path, command=command, **configs) as record:
        record.add(error=f"bad token {token}")
    written = (tmp_path / "run.json").read_text()
    assert "secret" not in written and token not in written
    assert record_of(tmp_path)["command"].endswith("--lr 1")


def test_special_tokens_are_no_secrets(tmp_path):
    with run_record(tmp_path, model={"eos_token": "</s>"}):
        pass
    assert record_of(tmp_path)["configs"]["model"]["eos_token"] == "</s>"


def test_seeds_are_collected_from_the_configs(tmp_path):
    with run_record(tmp_path, script=Arguments(), training=TrainingArguments(str(tmp_path), seed=3, data_seed=5)):
        pass
    assert record_of(tmp_path)["seeds"] == {"script.seed": 7, "training.seed": 3, "training.data_seed": 5}


def test_versions_patches_and_hardware_are_recorded(tmp_path):
    with run_record(tmp_path, patches=["optimizer"]):
        pass
    record = record_of(tmp_path)
    assert record["versions"].keys() >= {"python", "torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert record["versions"]["hf-evidenceflow"] is not None
    assert record["patches"] == ["optimizer"]
    assert record["hardware"]["cpus"] >= 1


def test_an_earlier_record_is_kept_in_short(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_record(tmp_path, command=["first"]):
        raise KeyboardInterrupt
    with run_record(tmp_path, command=["second"]):
        pass
    with run_record(tmp_path, command=["third"]):
        pass
    previous = record_of(tmp_path)["previous"]
    assert [(run["command"], run["status"]) for run in previous] == [("first", "interrupted"), ("second", "finished")]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with run_record(tmp_path / "run") as record:
        record.add(metrics=1)
    assert not (tmp_path / "run").exists()


def test_a_foreign_run_json_is_an_error(tmp_path):
    (tmp_path / "run.json").write_text('{"my": "own file"}')
    with pytest.raises(ValueError, match=r"not a run record.*use another folder"):
        read_run_record(tmp_path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit, of which `reporting.py` is said to be a file."""

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    file = tmp_path / "reporting.py"
    file.write_text("x = 1\n")
    git("init")
    git("add", "reporting.py")
    git("commit", "-m", "one")
    monkeypatch.setattr(reporting, "__file__", str(file))
    return file, git


def test_git_revision_is_the_full_hash(checkout):
    assert git_revision() == checkout[1]("rev-parse", "HEAD")


def test_git_revision_of_changed_files_is_dirty(checkout):
    file, git = checkout
    file.write_text("x = 2\n")
    assert git_revision() == git("rev-parse", "HEAD") + "-dirty"


def test_a_wheel_inside_a_foreign_checkout_has_no_revision(checkout, monkeypatch):
    installed = checkout[0].parent / "venv" / "reporting.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(reporting, "__file__", str(installed))
    assert git_revision() is None
