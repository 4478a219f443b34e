"""The Trainer's log as a JSON lines file that grows while the training runs."""

import json
import os
from pathlib import Path

from transformers import TrainerCallback

from ..evidence.completion_log import read_jsonl
from ..reporting import atomic_write_text, to_plain


LOG_FILE_NAME = "log.jsonl"


class LogFileCallback(TrainerCallback):
    """
    Appends each row that the Trainer logs to a JSON lines file, for whoever watches the run from outside.

    A row is on disk when `on_log` returns. A resumed training drops the rows after the checkpoint's step: they are
    logged again. In a distributed run only rank 0 writes.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            File to write. If not given, `log.jsonl` in the Trainer's `output_dir`.

    Example:

    ```python
    >>> trainer.add_callback(LogFileCallback())
    >>> trainer.train()  # grows outputs/run/log.jsonl: {"loss": 3.1, ..., "epoch": 0.5, "step": 100}
    ```
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        path = self._path(args)
        if state.is_world_process_zero and path.exists():
            atomic_write_text(path, "".join(_rows_until(path, state.global_step)))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        path = self._path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {**(logs or {}), "epoch": state.epoch, "step": state.global_step}
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()

    def _path(self, args) -> Path:
        return Path(self.path if self.path is not None else Path(args.output_dir) / LOG_FILE_NAME)


def _rows_until(path: Path, step: int):
    for row in read_jsonl(path):
        if isinstance(row.get("step"), int) and row["step"] <= step:
            yield _line(row)


def _line(row) -> str:
    return json.dumps(to_plain(row), allow_nan=False) + "\n"
