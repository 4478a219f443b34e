"""Reads the files that people hand us. An error names the file, the place in it, what stands there, and what to do.

A file that is missing or cannot be read is an `OSError`, one with wrong content a `ValueError`.
"""

import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml


CHECKSUM = "crc32"
REMEDY = "Correct it, or copy or download it again."
_MOST_YAML_NODES = 1_000_000  # counted with what aliases stand for, of which a few lines can make billions


def readable_file(path: str | os.PathLike) -> Path:
    """
    The path of a regular file.

    Raises:
        `OSError`: if there is none: nothing, a folder, a broken link, a pipe.
    """
    path = Path(path).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, not a file. Give the path of a file.")
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(
                f"{path} is a link to {os.readlink(path)}, which is not there. Restore it, or give another path."
            )
        if path.exists():
            raise OSError(f"{path} is no regular file. Copy its content into one, and give that one's path.")
    except OSError as error:
        raise _with_path(error, path) from error
    raise FileNotFoundError(f"There is no file {path}. Check the path; it is relative to {Path.cwd()}.")


def read_text(path: str | os.PathLike) -> str:
    """
    The text of a UTF-8 file; a byte order mark is left out.

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it is not UTF-8, or holds a NUL character.
    """
    path = readable_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _with_path(error, path) from error
    if data[:2] == b"\x1f\x8b":
        raise ValueError(f"{path} is compressed. Unpack it, such as by `gunzip`.")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16 text. Convert it to UTF-8, such as by `iconv -f UTF-16 -t UTF-8`.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{data[error.start]:02x}, which stands for nothing "
            "there. Convert it (if it is Latin-1: `iconv -f LATIN1 -t UTF-8`), or give the right file."
        ) from error
    if (at := text.find("\0")) >= 0:
        raise ValueError(
            f"{path} is no text: line {text.count(chr(10), 0, at) + 1} holds a NUL character. Give the right file, or "
            "convert it to UTF-8."
        )
    return text


def read_lines(path: str | os.PathLike) -> list[str]:
    """
    The lines of a UTF-8 file that are more than white space.

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it is no text, or has no such line.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no line of text. Write one into it, or give another file.")
    return lines


def parse_json(text: str, where: str, kind: type = dict, remedy: str = REMEDY, allow_nan: bool = False) -> Any:
    """
    The content of a JSON text.

    Args:
        text (`str`):
            The text.
        where (`str`):
            Where it stands, for errors.
        kind (`type`, *optional*, defaults to `dict`):
            Type that the whole must have.
        remedy (`str`, *optional*):
            What to do about an error: a sentence.
        allow_nan (`bool`, *optional*, defaults to `False`):
            Whether `NaN` and `Infinity`, which Python writes and JSON does not know, are accepted.

    Raises:
        `ValueError`: if it is no JSON of that type, too deep, or an object has a key twice.
    """
    if not text.strip():
        raise ValueError(f"{where} is empty. {remedy}")
    try:
        content = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{where} is no usable JSON: lists or objects lie too deep in each other. {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{where} is no valid JSON: {error}. {remedy}") from error
    if not isinstance(content, kind):
        name = {dict: "object", list: "list"}[kind]
        raise ValueError(f"{where} must hold a JSON {name}, got {_shown(content)}. {remedy}")
    if not allow_nan:
        refuse_non_finite(content, where, remedy)
    return content


def read_json(path: str | os.PathLike, kind: type = dict, remedy: str = REMEDY, allow_nan: bool = False) -> Any:
    """
    The content of a JSON file; see [`parse_json`].

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it holds no JSON of that type.
    """
    return parse_json(read_text(path), str(path), kind, remedy, allow_nan)


def read_json_lines(path: str | os.PathLike, remedy: str = REMEDY) -> list[dict[str, Any]]:
    """
    The objects of a JSON lines file; blank lines are left out. For a log that a crash may have cut, see
    [`~hf_evidenceflow.evaluation.completion_log.read_jsonl`].

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if a line is no JSON object, or there is none.
    """
    # Only "\n" ends a line: texts hold characters such as U+2028, at which `str.splitlines` would break
    lines = enumerate(read_text(path).split("\n"), 1)
    rows = [_checked_row(line, f"Line {number} of {path}", remedy) for number, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty. {remedy}")
    return rows


def row_checksum(row: Mapping[str, Any]) -> str:
    """Checksum of a row of JSON, which a log keeps under [`CHECKSUM`] in the row's line."""
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"


def _checked_row(line: str, where: str, remedy: str) -> dict[str, Any]:
    row = parse_json(line, where, remedy=remedy)
    if row.pop(CHECKSUM, None) not in (None, row_checksum(row)):
        raise ValueError(f"{where} was changed: it does not have its checksum `{CHECKSUM}`. {remedy}")
    return row


def read_yaml(path: str | os.PathLike, remedy: str = REMEDY, allow_infinity: bool = False) -> dict[str, Any]:
    """
    The mapping in a YAML file, by the safe loader: tags of Python objects are refused, and `.inf` unless allowed.

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it holds no mapping, a key twice, `.nan` or infinity, or is no valid YAML.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty. {remedy}")
    try:
        stream = io.StringIO(text)
        stream.name = str(path)  # what errors call it
        loader = yaml.SafeLoader(stream)
        node = loader.get_single_node()
        _check_node(node)
        content = loader.construct_document(node) if node is not None else None
    except RecursionError:
        raise ValueError(f"{path} is no usable YAML: lists or mappings lie too deep in each other. {remedy}") from None
    except Exception as error:  # besides YAMLError, values such as `2020-99-99` raise whatever their parser raises
        problem = str(error) or type(error).__name__
        raise ValueError(f"{path} is no valid YAML: {problem.rstrip('.')}. {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping, got {_shown(content)}. {remedy}")
    refuse_non_finite(content, str(path), remedy, infinite=not allow_infinity)
    return content


def read_array(path: str | os.PathLike, remedy: str = REMEDY) -> np.ndarray:
    """
    A memory-mapped `.npy` file.

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it is no whole array of numbers.
    """
    path = readable_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a broken header raises what its parts raise: SyntaxError, TypeError, EOFError, ...
        raise ValueError(f"{path} is no whole numpy array ({type(error).__name__}: {error}). {remedy}") from error


def read_tensors(path: str | os.PathLike, remedy: str = REMEDY) -> dict:
    """
    The tensors of a safetensors file, on the CPU.

    Raises:
        `OSError`: if the file is not there or cannot be read.
        `ValueError`: if it is no whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = readable_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}). {remedy}") from error


def check_fields(content: Mapping[str, Any], where: str | os.PathLike, remedy: str = REMEDY, **kinds: type) -> None:
    """
    Raises a `ValueError` for a field of a JSON object or YAML mapping that is missing or of another type.

    Args:
        content (`Mapping[str, Any]`):
            The object.
        where (`str` or `os.PathLike`):
            Its file.
        remedy (`str`, *optional*):
            What to do about it: a sentence.
        kinds (`type`):
            Type of each needed field.
    """
    for name, kind in kinds.items():
        if name not in content:
            raise ValueError(f"{where} has no `{name}`. {remedy}")
        value = content[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"`{name}` in {where} must be {kind.__name__}, got {_shown(value)}. {remedy}")


def refuse_non_finite(content: Any, where: str, remedy: str = REMEDY, infinite: bool = True) -> None:
    """Raises a `ValueError` that names the first key under which NaN (or, with `infinite`, infinity) stands."""
    for key, value in _leaves(content):
        if isinstance(value, float) and (math.isnan(value) or (infinite and math.isinf(value))):
            raise ValueError(f"`{key}` in {where} is {value}, which is no number to compute with. {remedy}")


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    stack = [("", content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            stack += [(f"{key}.{name}" if key else str(name), item) for name, item in inner]
        else:
            yield key, value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in found if names.count(name) > 1)!r} stands twice")
    return found


def _check_node(root: yaml.Node | None) -> None:
    """Refuses keys that stand twice, and aliases that stand for themselves or for more than memory holds."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise ValueError(f"an alias stands for what it lies in{_place(node)}")
            return sizes[id(node)]
        sizes[id(node)] = None
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise ValueError(f"the key {twice!r} stands twice{_place(node)}")
            inner = [part for pair in node.value for part in pair]
        sizes[id(node)] = total = 1 + sum(map(size, inner))
        if total > _MOST_YAML_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_YAML_NODES:,} values")
        return total

    if root is not None:
        size(root)


def _place(node: yaml.Node) -> str:
    return f" in the part that begins in line {node.start_mark.line + 1}"


def _with_path(error: OSError, path: Path) -> OSError:
    """The error itself if it is one of ours, else one of its kind with the path and what to do."""
    if error.errno is None:
        return error
    return type(error)(f"{path} cannot be read: {error.strerror}. Check the path, its permissions and the disk.")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
