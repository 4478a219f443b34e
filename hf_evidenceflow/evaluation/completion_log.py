"""The completions of an evaluation on disk, from which a rerun of the same command goes on without repeat or gap."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_json, atomic_write_text, to_plain
from ..files import CHECKSUM, read_json, readable_file, row_checksum


logger = logging.getLogger(__name__)

SETTINGS_NAME = "settings.json"


def claim_folder(output_dir: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """
    Make sure that a folder's completions were, and will be, made with one set of settings.

    As long as the folder holds no completion, its settings can still change. Settings that are known only later, such
    as a fingerprint of the weights, can be claimed by a second call.

    Raises:
        ValueError: If a setting differs from the folder's, or if the folder holds something else.
    """
    folder, settings = Path(output_dir), to_plain(dict(settings))
    path = folder / SETTINGS_NAME
    if not path.exists() and (foreign := sorted(entry.name for entry in folder.glob("*"))):
        raise ValueError(
            f"`{folder}` is not empty ({', '.join(foreign[:3])}) and holds no evaluation, as {SETTINGS_NAME} is "
            "missing. Choose another `output_dir`."
        )
    known = {}
    if any(file.stat().st_size for file in folder.glob("*.jsonl")):
        known = read_json(path, remedy="Put it back as it was, or choose another `output_dir`.")
    if differing := [name for name in settings if name in known and known[name] != settings[name]]:
        listed = "; ".join(f"`{name}` was {known[name]!r} and is now {settings[name]!r}" for name in differing)
        raise ValueError(
            f"`{folder}` holds an evaluation with other settings: {listed}. Choose another `output_dir`, or use the "
            "settings of before to go on with it."
        )
    atomic_write_json(path, known | settings)


class CompletionLog:
    """
    A JSON lines file with one row per completion, appended to batch by batch.

    What a crash left of a batch is dropped when the file is opened again, so that the batch is made anew as a whole.

    Args:
        plan (`Sequence[Sequence[tuple[int, int]]]`):
            Batches of `(prompt index, sample number)`, from [`~hf_evidenceflow.evaluation.completions.plan_batches`].
            Rows have these two under `"id"` and `"sample"`; in the file each also has a checksum, `"crc32"`.

    Attributes:
        rows (`list[dict]`), batches_done (`int`):
            Rows and number of the whole batches.
    """

    def __init__(self, path: str | os.PathLike, plan: Sequence[Sequence[tuple[int, int]]]):
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self.batches_done = 0
        found = read_jsonl(self.path)
        for batch in plan:
            rows = found[len(self.rows) : len(self.rows) + len(batch)]
            if [(row.get("id"), row.get("sample")) for row in rows] != list(batch):
                break
            self.rows += rows
            self.batches_done += 1
        if self.path.exists():
            self.rewrite(self.rows)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of one batch, one per completion; they are on disk when the method returns."""
        rows = [to_plain(row) for row in rows]
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(map(_line, rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
        self.batches_done += 1

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rows, such as by the same completions with new scores."""
        self.rows = [to_plain(row) for row in rows]
        atomic_write_text(self.path, "".join(map(_line, self.rows)))


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Read the rows of a JSON lines file up to the first line that a crash cut short, or that was changed since.

    A line that is no JSON object or does not have its checksum, and what comes after it, is left out with a warning; a
    missing file has no rows.
    """
    path, rows = Path(path), []
    if not path.exists() or path.stat().st_size == 0:
        return rows
    # Only "\n" ends a line: completions hold characters such as U+2028, at which `str.splitlines` would break.
    for number, line in enumerate(readable_file(path).read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or row.pop(CHECKSUM, None) not in (None, row_checksum(row)):
                raise ValueError
        except (ValueError, RecursionError):
            logger.warning("%s: line %d is not whole; it and what follows it are left out.", path, number)
            break
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps({**row, CHECKSUM: row_checksum(row)}, ensure_ascii=False, allow_nan=False) + "\n"
