"""The Trainer's log as a JSON lines file that grows while the training runs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..atomic_write import atomic_write_text, to_plain
from ..evaluation.completion_log import read_jsonl


LOG_FILE_NAME = "log.jsonl"


class LogFileCallback(TrainerCallback, ExportableState):
    """
    Appends each row that the Trainer logs to a JSON lines file (`path`, or `log.jsonl` in the `output_dir`), for
    whoever watches the run from outside.

    A row is on disk when `on_log` returns. A resumed training drops the rows that were written after its checkpoint:
    they are logged again. In a distributed run only rank 0 writes.

    Example:

    ```python
    >>> trainer.add_callback(LogFileCallback())
    >>> trainer.train()  # grows outputs/run/log.jsonl: {"loss": 3.1, ..., "epoch": 0.5, "step": 100}
    ```
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = path
        self.rows = 0

    def state(self) -> dict:
        path = None if self.path is None else str(self.path)
        return {"args": {"path": path}, "attributes": {"rows": self.rows}}

    def on_train_begin(self, args, state, control, **kwargs):
        path = self._path(args)
        if not state.is_world_process_zero or not path.exists():
            return
        # A resumed state holds the checkpoint's callbacks, a fresh one this one's own
        kept, rows = state.stateful_callbacks.get(type(self).__name__), read_jsonl(path)
        if isinstance(kept, dict):
            rows = rows[: kept["attributes"]["rows"]]
        else:
            rows = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= state.global_step]
        self.rows = len(rows)
        atomic_write_text(path, "".join(map(_line, rows)))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.write(args, state, {**(logs or {}), "epoch": state.epoch})

    def write(self, args, state, row: Mapping[str, Any]) -> None:
        """Append a row, with the step; `args` and `state` as a callback gets them."""
        if not state.is_world_process_zero:
            return
        path = self._path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line({**row, "step": state.global_step}))
            file.flush()
        self.rows += 1

    def _path(self, args) -> Path:
        return Path(self.path if self.path is not None else Path(args.output_dir) / LOG_FILE_NAME)


def _line(row) -> str:
    return json.dumps(to_plain(row), allow_nan=False) + "\n"
