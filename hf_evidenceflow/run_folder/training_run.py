"""The life of a run that trains: its folder is held, resumed or begun, recorded, and left in order however it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..report.run_record import RunRecord, run_record
from .checkpoints import last_whole_checkpoint, resolve_output_dir
from .launcher_watch import end_with_launcher
from .lock import hold_folder
from .manifest import has_manifest
from .rotation import list_checkpoints
from .termination import Terminated, handle_sigterm


@dataclass
class TrainingRun:
    """
    A run inside [`training_run`]: its output folder, its record, and the checkpoint to pass to
    `trainer.train(resume_from_checkpoint=...)`, `None` for a new run.
    """

    folder: Path
    checkpoint: str | None
    record: RunRecord


@contextmanager
def training_run(
    output_dir: str | os.PathLike,
    resume_from_checkpoint: str | bool | None = None,
    *,
    overwrite: bool = False,
    **configs,
) -> Iterator[TrainingRun]:
    """
    Hold an output folder, decide where the run starts, and record it (`run.json`) to its end.

    SIGTERM ends the run with exit code 143 and the status `"interrupted"`: in the training of a
    [`~run_folder.resumable_trainer.ResumableTrainerMixin`] with a checkpoint at the end of the step, elsewhere at
    once. So does the end of `accelerate launch` or `torchrun`, on Linux.

    Args:
        output_dir, resume_from_checkpoint, overwrite:
            As in [`~run_folder.checkpoints.resolve_output_dir`].
        **configs:
            As in [`~hf_evidenceflow.report.run_record.run_record`].

    Raises:
        FolderInUseError: if another process works in the folder. ValueError: as
        [`~run_folder.checkpoints.resolve_output_dir`]. OSError: if the folder cannot be written.

    Example:

    ```python
    >>> with training_run(args.output_dir, args.resume_from_checkpoint, training=args) as run:
    ...     trainer = make_trainer(args)
    ...     trainer.train(resume_from_checkpoint=run.checkpoint)
    ...     trainer.save_model()
    ...     run.record.add(metrics=trainer.state.log_history[-1])
    ```
    """
    is_first = os.environ.get("RANK", "0") == "0"
    with hold_folder(output_dir) if is_first else nullcontext(), handle_sigterm():
        checkpoint = resolve_output_dir(output_dir, resume_from_checkpoint, overwrite)
        try:
            with run_record(output_dir, **configs) as record:
                end_with_launcher()
                yield TrainingRun(Path(output_dir), checkpoint, record)
        except (KeyboardInterrupt, Terminated) as stop:
            if is_first:
                _say_how_to_go_on(output_dir, "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C")
            raise


def _say_how_to_go_on(output_dir, cause: str) -> None:
    # One with a manifest was whole when it got its name; it is read at the resume, not now
    saved = [path for path in list_checkpoints(output_dir) if has_manifest(path)]
    last = saved[0] if saved else last_whole_checkpoint(output_dir)
    go_on = "Go on with the same command and `--resume_from_checkpoint true`." if last else "Start again."
    print(f"\nInterrupted ({cause}). The last whole checkpoint is {last}. {go_on}", file=sys.stderr)
