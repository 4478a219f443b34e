"""Writes files whole: a reader, or a crash, sees the old content or the new one, never a part."""

import dataclasses
import enum
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path next to `path` to write to, in whatever way. At the end of the block it is put on disk and renamed
    to `path`; on an exception it is removed, and `path` keeps its content. Missing parent folders are made.

    Example:

    ```python
    >>> with atomic_file("ids.npy") as temporary, open(temporary, "wb") as file:
    ...     np.save(file, ids)
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raises an `OSError` if no file can be written to `path`: now, not when what goes into it was computed."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file. Give the path of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


def atomic_write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 file through [`atomic_file`] and return its path."""
    with atomic_file(path) as temporary:
        # A lone surrogate (in a file name, say) has no UTF-8 form; written as `\\udc..` it is valid in JSON.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def atomic_write_json(path: str | os.PathLike, data: Any) -> Path:
    """Write `data`, reduced by [`to_plain`], as JSON through [`atomic_file`] and return its path."""
    return atomic_write_text(path, json.dumps(to_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def to_plain(value: Any) -> Any:
    """
    Reduce a value to what JSON can hold.

    Configurations become dictionaries (through `to_dict` where there is one), sets become sorted lists, enums their
    values, and anything else its `str`. Numbers that JSON has no word for become `"nan"`, `"inf"` and `"-inf"`, which
    `float` reads back.
    """
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)
