"""Files that people hand over: what is wrong with one is said with its name, the place and what to do."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_evidenceflow.files import (
    check_fields,
    parse_json,
    read_array,
    read_json,
    read_json_lines,
    read_lines,
    read_tensors,
    read_text,
    read_yaml,
    row_checksum,
)


def written(tmp_path, content, name="some.file"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(reader, path, error=ValueError):
    with pytest.raises(error) as raised:
        reader(path)
    text = str(raised.value)
    assert str(path) in text
    assert any(word in text for word in ("orrect it", "heck the path", "Give", "give", "Convert", "Unpack")), text
    return text


def test_the_readers_give_what_was_written(tmp_path):
    assert read_text(written(tmp_path, "﻿ä\nb")) == "ä\nb"
    assert read_lines(written(tmp_path, "a\n\n b\n")) == ["a", " b"]
    assert read_json(written(tmp_path, '{"a": [1, 2.5]}')) == {"a": [1, 2.5]}
    assert read_json_lines(written(tmp_path, '{"a": "\u2028"}\n\n{"b": 2}\n')) == [{"a": "\u2028"}, {"b": 2}]
    assert read_yaml(written(tmp_path, "base: &b {x: 1}\nother: {<<: *b, y: 2}")) == {
        "base": {"x": 1},
        "other": {"x": 1, "y": 2},
    }
    np.save(tmp_path / "ids.npy", np.arange(3))
    assert read_array(tmp_path / "ids.npy").tolist() == [0, 1, 2]


READERS = [read_text, read_lines, read_json, read_json_lines, read_yaml, read_array, read_tensors]


@pytest.mark.parametrize("reader", READERS)
def test_a_path_without_a_file_is_an_os_error(tmp_path, reader):
    message(reader, tmp_path / "nothing", FileNotFoundError)
    message(reader, tmp_path, IsADirectoryError)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "link to" in message(reader, tmp_path / "link", FileNotFoundError)
    message(reader, tmp_path / ("a" * 300), OSError)
    os.mkfifo(tmp_path / "pipe")
    message(reader, tmp_path / "pipe", OSError)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("one\nä".encode("latin-1"), "line 2 has the byte 0xe4"),
        ("ab".encode("utf-16"), "UTF-16"),
        (b"ab\n\n\0", "line 3 holds a NUL"),
        (b"\x1f\x8b\x08", "compressed"),
    ],
)
@pytest.mark.parametrize("reader", [read_text, read_lines, read_json, read_json_lines, read_yaml])
def test_what_is_no_utf8_text_is_refused(tmp_path, reader, data, words):
    assert words in message(reader, written(tmp_path, data))


@pytest.mark.parametrize("reader", [read_lines, read_json, read_json_lines, read_yaml, read_array, read_tensors])
def test_an_empty_file_is_refused(tmp_path, reader):
    message(reader, written(tmp_path, ""))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1', "line 1"),
        ("[" * 100_000 + "]" * 100_000, "too deep"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
        ('{"a": {"b": [NaN]}}', "`a.b.0`"),
        ('{"a": 1e999}', "`a`"),
        ("[1]", "must hold a JSON object, got list [1]"),
        ('{"a": ' + "1" * 5000 + "}", "JSON"),
    ],
)
def test_json_that_cannot_be_used_is_refused(tmp_path, content, words):
    assert words in message(read_json, written(tmp_path, content))


def test_nan_is_read_where_it_is_allowed(tmp_path):
    assert str(read_json(written(tmp_path, '{"a": NaN}'), allow_nan=True)["a"]) == "nan"


@pytest.mark.parametrize("line", ['{"a": 1', "[1]", json.dumps({"a": 3, "crc32": row_checksum({"a": 2})})])
def test_a_line_of_json_lines_is_named(tmp_path, line):
    good = json.dumps({"a": 2, "crc32": row_checksum({"a": 2})})
    assert "Line 3 of" in message(read_json_lines, written(tmp_path, f"{good}\n\n{line}\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "line 1"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("- a", "must hold a YAML mapping"),
        ("# nothing", "must hold a YAML mapping, got NoneType"),
        ("a: {b: .nan}", "`a.b`"),
        ("a: {b: -.inf}", "`a.b`"),
        ("a: 2020-99-99", "month"),
        ("a: !!timestamp x", "YAML"),
        ("a: !!python/object/apply:os.getcwd []", "python/object"),
        ("a: " + "[" * 5000 + "]" * 5000, "too deep"),
        ("a: &a [*a]", "alias"),
        ("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '0'] * 9)}]" for i in range(10)), "aliases"),
        ("a: 'b\x07'", "#x0007"),
    ],
)
def test_yaml_that_cannot_be_used_is_refused(tmp_path, content, words):
    text = message(read_yaml, written(tmp_path, content))
    assert words in text
    assert "unicode string" not in text


@pytest.mark.parametrize("cut", [5, 40, 130])
def test_a_cut_array_is_refused(tmp_path, cut):
    np.save(tmp_path / "ids.npy", np.arange(7))
    message(read_array, written(tmp_path, (tmp_path / "ids.npy").read_bytes()[:cut]))


def test_pickled_objects_in_an_array_are_refused(tmp_path):
    np.save(tmp_path / "some.npy", np.array([{}]), allow_pickle=True)
    message(read_array, tmp_path / "some.npy")


def test_a_cut_safetensors_file_is_refused(tmp_path):
    save_file({"w": torch.ones(5)}, tmp_path / "w.safetensors")
    message(read_tensors, written(tmp_path, (tmp_path / "w.safetensors").read_bytes()[:-3]))


def test_fields_are_checked_by_name_and_type():
    check_fields({"a": 1, "b": "x"}, "some.json", a=int, b=str)
    with pytest.raises(ValueError, match="some.json has no `c`"):
        check_fields({"a": 1}, "some.json", c=int)
    with pytest.raises(ValueError, match="`a` in some.json must be int, got str '1'"):
        check_fields({"a": "1"}, "some.json", a=int)


def test_a_text_that_is_no_file_is_named_as_given():
    with pytest.raises(ValueError, match="`options` is no valid JSON.*Write an object"):
        parse_json("{", "`options`", remedy="Write an object.")
