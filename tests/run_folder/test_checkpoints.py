import json
import logging

import pytest
from checkpoint_folder import make_checkpoint

from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder import checkpoints
from hf_evidenceflow.run_folder.checkpoints import (
    broken_weights,
    checkpoint_problem,
    is_whole_checkpoint,
    last_whole_checkpoint,
    resolve_output_dir,
)
from hf_evidenceflow.run_folder.manifest import MANIFEST_NAME, write_manifest


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def interrupted_run(output_dir):
    with pytest.raises(KeyboardInterrupt), run_record(output_dir, command=["train.py"]):
        raise KeyboardInterrupt


def test_a_complete_checkpoint_is_whole(tmp_path):
    assert is_whole_checkpoint(make_checkpoint(tmp_path, 2))


@pytest.fixture(params=[True, False], ids=["manifest", "structure"])
def checkpoint(request, tmp_path):
    """A whole checkpoint with a manifest, or one without, as the stock Trainer writes it."""
    path = make_checkpoint(tmp_path, 2)
    if not request.param:
        (path / MANIFEST_NAME).unlink()
    return path


def test_a_checkpoint_without_manifest_is_whole_by_its_files(checkpoint):
    assert is_whole_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_a_cut_file_is_named(checkpoint, name):
    cut(checkpoint / name)
    assert name in checkpoint_problem(checkpoint)


@pytest.mark.parametrize(
    "name",
    ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json"],
)
def test_a_missing_file_is_named(checkpoint, name):
    (checkpoint / name).unlink()
    problem = checkpoint_problem(checkpoint)
    assert f"{name} is missing" in problem or (name == "model.safetensors" and "no weights" in problem)


def test_a_tokenizer_that_was_written_and_is_missing_is_named(tmp_path):
    path = make_checkpoint(tmp_path, 2)
    (path / "tokenizer.json").write_text("{}")
    write_manifest(path)
    (path / "tokenizer.json").unlink()
    assert checkpoint_problem(path) == "tokenizer.json is missing, which manifest.json lists"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rollouts_0.pt"])
def test_one_flipped_bit_is_found(tmp_path, name):
    path = make_checkpoint(tmp_path, 2)
    (path / "rollouts_0.pt").write_bytes((path / "optimizer.pt").read_bytes())
    write_manifest(path)
    data = bytearray((path / name).read_bytes())
    data[-60 if name == "model.safetensors" else len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    assert f"{name} is not what was written" in checkpoint_problem(path)


@pytest.mark.parametrize("step", [-1, 3, None, "2"])
def test_a_step_that_is_not_the_folders_is_refused(tmp_path, step):
    path = make_checkpoint(tmp_path, 2)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / MANIFEST_NAME).unlink()
    assert f"step {step!r}" in checkpoint_problem(path)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"w": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-1.safetensors is missing" in broken_weights(tmp_path)


def test_the_last_checkpoint_is_that_of_the_highest_step(tmp_path):
    for step in (100, 20):
        make_checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-100")


def test_a_cut_checkpoint_is_skipped_with_a_warning(tmp_path, caplog):
    make_checkpoint(tmp_path, 2)
    cut(make_checkpoint(tmp_path, 3) / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(tmp_path).endswith("checkpoint-2")
    assert "checkpoint-3" in caplog.text and "model.safetensors" in caplog.text


@pytest.mark.parametrize("resume", [None, False, "false"])
def test_a_new_folder_starts_anew(tmp_path, resume):
    assert resolve_output_dir(tmp_path / "new", resume) is None


def test_an_unfinished_run_offers_to_resume(tmp_path):
    make_checkpoint(tmp_path, 2)
    interrupted_run(tmp_path)
    with pytest.raises(ValueError, match=r"unfinished run.*interrupted.*checkpoint-2.*--resume_from_checkpoint true"):
        resolve_output_dir(tmp_path)


def test_checkpoints_without_a_record_are_an_unfinished_run(tmp_path):
    make_checkpoint(tmp_path, 2)
    with pytest.raises(ValueError, match=r"unfinished run \(no run record.*--resume_from_checkpoint true"):
        resolve_output_dir(tmp_path)


def test_a_killed_run_without_checkpoint_is_unfinished(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "running"}')
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0}')
    with pytest.raises(ValueError, match=r"without a whole checkpoint.*another `output_dir`"):
        resolve_output_dir(tmp_path)


def test_a_run_that_ended_before_it_made_anything_is_no_obstacle(tmp_path):
    with pytest.raises(ValueError, match="a wrong option"), run_record(tmp_path):
        raise ValueError("a wrong option")
    (tmp_path / "_run.lock").touch()
    assert resolve_output_dir(tmp_path) is None


def test_a_finished_run_is_not_overwritten(tmp_path):
    with run_record(tmp_path, command=["train.py"]):
        pass
    with pytest.raises(ValueError, match=r"finished run \(`train.py`.*another `output_dir`"):
        resolve_output_dir(tmp_path)


@pytest.mark.parametrize("resume", [True, "true", "True"])
def test_resume_true_takes_the_last_whole_checkpoint(tmp_path, resume):
    path = make_checkpoint(tmp_path, 2)
    interrupted_run(tmp_path)
    assert resolve_output_dir(tmp_path, resume) == str(path)


def test_resume_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        resolve_output_dir(tmp_path, True)


def test_resume_from_a_path_inside_the_folder(tmp_path):
    path = make_checkpoint(tmp_path, 2)
    make_checkpoint(tmp_path, 3)
    assert resolve_output_dir(tmp_path, str(path)) == str(path)


def test_resume_from_a_cut_checkpoint_is_an_error(tmp_path):
    path = make_checkpoint(tmp_path, 2)
    cut(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"Cannot resume from .*checkpoint-2.*model.safetensors"):
        resolve_output_dir(tmp_path, str(path))


def test_resume_from_elsewhere_spares_the_run_of_the_folder(tmp_path):
    path = make_checkpoint(tmp_path / "first", 2)
    make_checkpoint(tmp_path / "second", 5)
    with pytest.raises(ValueError, match="unfinished run"):
        resolve_output_dir(tmp_path / "second", str(path))


def test_overwriting_removes_the_run_but_no_other_file(tmp_path):
    make_checkpoint(tmp_path, 2)
    interrupted_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert resolve_output_dir(tmp_path, overwrite=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_and_overwriting_exclude_each_other(tmp_path):
    make_checkpoint(tmp_path, 2)
    with pytest.raises(ValueError, match="choose one"):
        resolve_output_dir(tmp_path, True, overwrite=True)


def test_a_restarted_launch_without_a_checkpoint_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_torchelastic_launched", lambda: True)
    interrupted_run(tmp_path)
    assert resolve_output_dir(tmp_path, "true") is None


def test_a_finished_run_without_a_checkpoint_is_not_overwritten_by_a_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_torchelastic_launched", lambda: True)
    with run_record(tmp_path, command=["train.py"]):
        pass
    with pytest.raises(ValueError, match="no whole checkpoint"):
        resolve_output_dir(tmp_path, "true")


def test_a_launch_may_begin_in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_torchelastic_launched", lambda: True)
    assert resolve_output_dir(tmp_path / "new", "true") is None
    assert resolve_output_dir(tmp_path, "true") is None


def test_a_launch_does_not_begin_over_files_that_no_run_left(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_torchelastic_launched", lambda: True)
    (tmp_path / "model.safetensors").write_bytes(b"somebody's model")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        resolve_output_dir(tmp_path, "true")


def test_auto_resumes_where_there_is_a_checkpoint(tmp_path):
    path = make_checkpoint(tmp_path, 2)
    interrupted_run(tmp_path)
    assert resolve_output_dir(tmp_path, "auto") == str(path)


def test_auto_starts_a_new_run(tmp_path):
    assert resolve_output_dir(tmp_path / "new", "auto") is None


def test_auto_starts_anew_where_a_run_left_no_whole_checkpoint(tmp_path, caplog):
    cut(make_checkpoint(tmp_path, 2) / "model.safetensors")
    interrupted_run(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert resolve_output_dir(tmp_path, "auto") is None
    assert "holds no whole checkpoint: starting anew" in caplog.text


def test_auto_does_not_overwrite_a_finished_run_without_a_checkpoint(tmp_path):
    with run_record(tmp_path, command=["train.py"]):
        pass
    with pytest.raises(ValueError, match="nothing to resume"):
        resolve_output_dir(tmp_path, "auto")
