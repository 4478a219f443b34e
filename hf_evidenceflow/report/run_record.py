"""The run record (`run.json`): what was run, with which settings, on what, and how it ended.

Every recipe writes one, so that each number in a results folder can be traced to a command, a commit and a seed.
"""

import importlib.metadata
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_json, to_plain
from ..files import read_json
from ..run_folder.termination import Terminated, ignored


logger = logging.getLogger(__name__)

RUN_RECORD_NAME = "run.json"
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "hf-evidenceflow")

# Access tokens only: `eos_token` and the like are settings, and a reader needs them.
_SECRET_NAME = re.compile(r"(^|_)((hub|auth|access)_token|api_key|password|secret)$|^token$")
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_REDACTED = "<redacted>"


class RunRecord:
    """The content (`data`) of one `run.json` (`path`), written again at each change. Made by [`run_record`]."""

    def __init__(self, path: Path, data: dict[str, Any], writes: bool):
        self.path = path
        self.data = data
        self._writes = writes

    def end(self, status: str, **entries: Any) -> None:
        """
        Note that the run is over (`status`: `"interrupted"` or `"failed"`), even on a full disk, with entries as in
        [`add`]; that it cannot be noted hides no other error.
        """
        with ignored():
            try:
                self.add(status=status, ended=_now(), **entries)
            except OSError as error:
                _overwrite_status(self.path, status, error)

    def add(self, **entries: Any) -> None:
        """Add top-level entries, such as `metrics={...}`, to the record, or replace them, and write it."""
        self.data.update(_without_secrets(to_plain(entries)))
        if self._writes:
            atomic_write_json(self.path, self.data)


@contextmanager
def run_record(
    output_dir: str | os.PathLike,
    *,
    patches: Iterable[Any] = (),
    seeds: Mapping[str, int] | None = None,
    command: Sequence[str] | None = None,
    **configs: Any,
) -> Iterator[RunRecord]:
    """
    Record a run in `output_dir/run.json` from its start to its end.

    The status is `"running"` inside the `with` block, then `"finished"`, `"interrupted"` (Ctrl-C, SIGTERM) or
    `"failed"`; the exception goes on to the caller. A killed process leaves `"running"` behind, see
    [`~run_folder.lock.folder_owner`]. Access tokens are removed. In a
    distributed run only rank 0 writes. A short form of an earlier record of the folder is kept under `"previous"`.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the run; made when missing.
        patches (`Iterable`, *optional*, defaults to `()`):
            Active patches, each recorded by its `str`.
        seeds (`Mapping[str, int]`, *optional*):
            Seeds by name. If `None`, the `seed` and `data_seed` entries of the configurations.
        command (`Sequence[str]`, *optional*):
            Command line as given. If `None`, `sys.argv`.
        **configs (`Any`):
            Resolved configurations by name: dataclasses, Transformers and PEFT configurations, dictionaries.

    Yields:
        [`RunRecord`]: The record, to which results can be added.

    Example:

    ```python
    >>> from hf_evidenceflow.report.run_record import run_record

    >>> with run_record("outputs/hrpo", training=training_args, model=model_args) as record:
    ...     trainer.train()
    ...     record.add(metrics={"accuracy": 0.72})
    ```
    """
    configs = _without_secrets(to_plain(configs))
    data = {
        "command": _redacted_command(sys.argv if command is None else command),
        "status": "running",
        "started": _now(),
        "ended": None,
        "configs": configs,
        "seeds": to_plain(seeds) if seeds is not None else _seeds_of(configs),
        "patches": [str(patch) for patch in patches],
        "versions": package_versions(),
        "git": git_revision(),
        "hardware": _hardware(),
    }
    earlier = read_run_record(output_dir)
    if earlier is not None:
        kept = ("command", "status", "started", "ended", "git")
        data["previous"] = [*earlier.get("previous", []), {key: earlier.get(key) for key in kept}]

    record = RunRecord(Path(output_dir) / RUN_RECORD_NAME, data, writes=os.environ.get("RANK", "0") == "0")
    record.add()
    try:
        yield record
        with ignored():
            record.add(status="finished", ended=_now())
    except (KeyboardInterrupt, Terminated):
        record.end("interrupted")
        raise
    except BaseException as error:
        record.end("failed", error=f"{type(error).__name__}: {error}")
        raise


def _overwrite_status(path: Path, status: str, cause: OSError) -> None:
    """Change the status in place, which needs no room on the disk and no right on the folder."""
    try:
        text = path.read_text(encoding="utf-8").replace('"status": "running"', f'"status": "{status}"', 1)
        with open(path, "r+", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        logger.error("The run's status, %r, could not be noted in `%s`: %s", status, path, cause)


def read_run_record(output_dir: str | os.PathLike) -> dict[str, Any] | None:
    """
    What `run.json` of a run's folder says; `None` where there is none.

    Raises:
        ValueError: If there is a `run.json` which is not a run record.
    """
    path = Path(output_dir) / RUN_RECORD_NAME
    if not path.exists():
        return None
    try:
        data = read_json(path)
    except ValueError as error:
        data = error
    if not isinstance(data, dict) or "status" not in data:
        raise ValueError(f"`{path}` is not a run record ({str(data)[:100]!r}). Move it away or use another folder.")
    return data


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a run's results; `None` for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_revision() -> str | None:
    """Commit that this package runs from, `-dirty` behind it if a tracked file differs; `None` outside a checkout."""
    # An installed wheel may lie inside somebody else's checkout: then git does not know this file.
    here = Path(__file__).resolve()
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    return tracked and _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seeds_of(configs: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for name, config in configs.items():
        for key in ("seed", "data_seed"):
            if isinstance(config, Mapping) and config.get(key) is not None:
                found[f"{name}.{key}"] = config[key]
    return found


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items() if not _SECRET_NAME.search(key)}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return _SECRET_VALUE.sub(_REDACTED, value) if isinstance(value, str) else value


def _redacted_command(arguments: Sequence[str]) -> str:
    shown, hide_next = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        secret = option.startswith("--") and bool(_SECRET_NAME.search(option[2:].replace("-", "_")))
        shown.append(_REDACTED if hide_next else f"{option}={_REDACTED}" if secret and equals else argument)
        hide_next = secret and not equals
    return _without_secrets(shlex.join(shown))
