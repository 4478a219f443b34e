"""Which checkpoints go, in which order, and what a kill leaves."""

import os

import pytest
from checkpoint_folder import make_checkpoint

from hf_evidenceflow.run_folder import rotation
from hf_evidenceflow.run_folder.rotation import STAGING_FOLDER, clean_leftovers, list_checkpoints, rotate


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_rotation_goes_by_step_although_the_clock_was_set_back(tmp_path):
    for step in (3, 6, 9, 12):
        os.utime(make_checkpoint(tmp_path, step), (10_000 - step, 10_000 - step))
    rotate(tmp_path, 2, None)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-9"]


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    for step in (3, 6, 9):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, 1, tmp_path / "checkpoint-3")
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-3"]


@pytest.mark.parametrize("limit", [None, 0, 3])
def test_without_a_limit_in_the_way_all_stay(tmp_path, limit):
    for step in (3, 6, 9):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, limit, None)
    assert len(names(tmp_path)) == 3


def test_a_kill_while_rotating_leaves_no_half_checkpoint_under_its_name(tmp_path, monkeypatch):
    for step in (3, 6):
        make_checkpoint(tmp_path, step)

    def killed(path, **kwargs):
        if os.path.exists(path):
            os.unlink(os.path.join(path, "optimizer.pt"))
            raise KeyboardInterrupt

    monkeypatch.setattr(rotation.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path, 1, None)
    assert names(tmp_path) == ["checkpoint-6"]
    monkeypatch.undo()
    clean_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6"]


def test_a_checkpoint_that_was_half_written_goes_at_the_next_start(tmp_path):
    staged = make_checkpoint(tmp_path / STAGING_FOLDER, 3)
    (staged / "manifest.json").unlink()
    clean_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_only_lacked_its_name_gets_it_at_the_next_start(tmp_path):
    make_checkpoint(tmp_path / STAGING_FOLDER, 3)
    clean_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
