"""What one run has on disk: its settings, folder, log and state, and the result read from them."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.callbacks.log_file import LOG_FILE_NAME
from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.files import read_json, read_yaml
from hf_evidenceflow.recipes.experiments.grid import RunSpec
from hf_evidenceflow.report.curves import load_log_history
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.run_folder.checkpoints import last_whole_checkpoint
from hf_evidenceflow.run_folder.lock import folder_owner, is_abandoned


# What a run reports to may change without the run being another one.
NOT_COMPARED = ("report_to", "project", "run_name")
# A run that nobody here started, with the status "running", is taken to be alive for so long after its last sign.
ALIVE_SECONDS = 600
LOG_TAIL_LINES = 30


class RunFiles:
    """
    The files of one run: `runs/ID.yaml` (options), `runs/ID/` (the recipe's output), `runs/ID.log` (what it printed)
    and, after a failure, `runs/ID.failure.json`; on a cluster `runs/ID.job`, the id of its last job.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the experiment.
        spec ([`RunSpec`]):
            The run.
    """

    def __init__(self, output_dir: str | os.PathLike, spec: RunSpec):
        runs = Path(output_dir) / "runs"
        self.spec = spec
        self.folder = runs / spec.id
        self.options = runs / f"{spec.id}.yaml"
        self.log = runs / f"{spec.id}.log"
        self.failure = runs / f"{spec.id}.failure.json"
        self.job = runs / f"{spec.id}.job"

    def record(self) -> dict[str, Any] | None:
        return read_run_record(self.folder)

    def finished_record(self) -> dict[str, Any] | None:
        record = self.record()
        return record if record is not None and record["status"] == "finished" else None

    def check_options(self) -> None:
        """
        Refuse a run that is already there, at least in part, with other options.

        Raises:
            ValueError: If it is finished, or has a checkpoint.
        """
        if not self.options.exists() or not self.folder.exists():
            return
        known = read_yaml(self.options)
        now = yaml.safe_load(yaml.safe_dump(self.spec.options))
        if not (changed := [name for name in {**known, **now} if known.get(name) != now.get(name)]):
            return
        changed = [name for name in changed if name not in NOT_COMPARED]
        if changed and (self.finished_record() is not None or last_whole_checkpoint(self.folder) is not None):
            listed = "; ".join(f"`{name}` was {known.get(name)!r} and is now {now.get(name)!r}" for name in changed)
            raise ValueError(
                f"The run `{self.folder}` is there with other options: {listed}. Put the options back, use another "
                "output folder, or remove the run's folder to run it anew."
            )

    def prepare(self) -> bool:
        """
        Write the options and clear what cannot be resumed.

        Returns:
            `bool`: Whether the run goes on from a checkpoint.
        """
        resume = last_whole_checkpoint(self.folder) is not None
        if not resume and self.folder.exists():
            shutil.rmtree(self.folder)
        atomic_write_text(self.options, yaml.safe_dump(self.spec.options, sort_keys=False, allow_unicode=True))
        self.failure.unlink(missing_ok=True)
        return resume

    def record_failure(self, returncode: int, command: str) -> None:
        atomic_write_json(
            self.failure, {"returncode": returncode, "command": command, "log": str(self.log), "log_tail": self.tail()}
        )

    def failed(self) -> dict[str, Any] | None:
        return read_json(self.failure) if self.failure.exists() else None

    def tail(self) -> list[str]:
        if not self.log.exists():
            return []
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
        # A progress bar redraws its line with carriage returns; the last state is enough.
        return [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")][-LOG_TAIL_LINES:]

    def last_sign(self) -> float | None:
        """Time of the run's last change on disk, in seconds since the epoch."""
        files = [self.folder / LOG_FILE_NAME, self.folder / "run.json", self.folder]
        return max((file.stat().st_mtime for file in files if file.exists()), default=None)

    def runs_elsewhere(self) -> bool:
        """Whether something that this runner did not start, such as a cluster's job, is or seems to be at the run."""
        if folder_owner(self.folder) is not None:
            return True
        record = self.record()
        if record is None or record["status"] != "running" or self.failure.exists() or is_abandoned(self.folder):
            return False
        return time.time() - self.last_sign() < ALIVE_SECONDS

    def history(self) -> list[dict[str, Any]]:
        """What the run has logged so far, from `log.jsonl` or else its newest `trainer_state.json`."""
        if rows := read_jsonl(self.folder / LOG_FILE_NAME):
            return rows
        try:
            return load_log_history(self.folder)
        except FileNotFoundError:
            return []


def result_row(files: RunFiles, record: Mapping[str, Any], tuned: str | None, final: bool) -> dict[str, Any]:
    """
    One row of `results.jsonl`, from a run's finished record and the name of the tuned option, if there is one; `final`
    if the run counts as a result, rather than being a tuning run that was not chosen.
    """
    spec = files.spec
    metrics = {name: to_number(value) for name, value in record.get("metrics", {}).items()}
    return {
        "id": spec.id,
        "cell": spec.cell.levels,
        "seed": spec.seed,
        "tuned": {tuned: spec.value} if tuned else {},
        "final": final,
        "metrics": metrics,
        "evals": eval_rows(files.history()),
        "git": record.get("git"),
        "versions": record.get("versions"),
        "command": record.get("command"),
    }


def eval_rows(history: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a log, one row per step (the last one, where a resumed run evaluated again)."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        kept = {name: to_number(value) for name, value in entry.items() if name.startswith("eval_")}
        if kept and "step" in entry:
            position = {name: entry[name] for name in ("epoch", "train_seconds", "train_tokens") if name in entry}
            rows[entry["step"]] = {"step": entry["step"], **position, **kept}
    return [rows[step] for step in sorted(rows)]


def to_number(value: Any) -> Any:
    """Undo [`~hf_evidenceflow.atomic_write.to_plain`]'s words for numbers that JSON cannot hold."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
