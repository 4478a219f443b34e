"""Files are written whole or not at all."""

import json
import os

import pytest

from hf_evidenceflow.atomic_write import atomic_file, atomic_write_json, atomic_write_text, check_writable


def test_numbers_without_a_json_form_are_read_back_by_float(tmp_path):
    path = atomic_write_json(tmp_path / "x.json", {"loss": float("-inf")})
    assert float(json.loads(path.read_text())["loss"]) == float("-inf")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = atomic_write_text(tmp_path / "x.txt", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = atomic_write_text(tmp_path / "x.bin", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path):
    assert atomic_write_text(tmp_path / "a" / "b" / "x.txt", "text").read_text() == "text"


def test_a_lone_surrogate_is_valid_in_json(tmp_path):
    path = atomic_write_json(tmp_path / "x.json", {"name": "\udcff"})
    assert json.loads(path.read_text()) == {"name": "\udcff"}


def test_where_no_file_can_be_written_is_said_beforehand(tmp_path):
    check_writable(tmp_path / "new folder" / "rows.jsonl")
    assert list((tmp_path / "new folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        check_writable(tmp_path)
