"""Which checkpoint a run starts from, and whether its output folder is free.

A checkpoint that was cut short (Ctrl-C, a full disk, a killed job) fails late and unclearly in `Trainer.train`; here
it is told from a whole one beforehand. An output folder that holds another run is refused, with the ways out.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

from torch.distributed import is_torchelastic_launched

from ..models.weights import broken_weights
from ..reporting import RUN_RECORD_NAME, read_run_record


logger = logging.getLogger(__name__)

_CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")


def checkpoint_problem(path: str | os.PathLike) -> str | None:
    """
    Say why a `Trainer` checkpoint cannot be resumed from.

    Args:
        path (`str` or `os.PathLike`):
            Checkpoint folder.

    Returns:
        `str` or `None`: The reason, or `None` if the checkpoint is whole.
    """
    path = Path(path)
    if not path.is_dir():
        return "there is no such folder"
    # The Trainer writes this file last, so a checkpoint without it was being written when the run stopped.
    state = path / "trainer_state.json"
    if not state.exists():
        return "trainer_state.json is missing, so the run stopped while it was being written"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"trainer_state.json is not whole ({error})"
    if not any(True for pattern in ("*.safetensors", "pytorch_model*", "global_step*") for _ in path.rglob(pattern)):
        return "it holds no weights"
    # torch.save makes zip files; their directory stands at the end, so a cut file has none.
    for saved in sorted(path.glob("*.pt")) + sorted(path.glob("*.pth")):
        if not zipfile.is_zipfile(saved):
            return f"{saved.name} is cut short"
    return broken_weights(path)


def is_whole_checkpoint(path: str | os.PathLike) -> bool:
    """
    Tell whether a `Trainer` checkpoint can be resumed from.

    Args:
        path (`str` or `os.PathLike`):
            Checkpoint folder.

    Returns:
        `bool`: `True` if its state, weights and optimizer files are all there and none is cut short.
    """
    return checkpoint_problem(path) is None


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    Find the newest checkpoint that can be resumed from.

    Args:
        output_dir (`str` or `os.PathLike`):
            Output folder of a run.

    Returns:
        `str` or `None`: The `checkpoint-<step>` folder with the highest step among the whole ones; newer ones that are
        not whole are skipped with a warning.
    """
    for checkpoint in _checkpoints(output_dir):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return str(checkpoint)
        logger.warning("Skipping the checkpoint `%s`: %s.", checkpoint, problem)
    return None


def resolve_output_dir(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | bool | None = None, overwrite: bool = False
) -> str | None:
    """
    Decide what a run may do with its output folder. Call it before [`~hf_evidenceflow.reporting.run_record`].

    Args:
        output_dir (`str` or `os.PathLike`):
            Output folder of the run.
        resume_from_checkpoint (`str`, `bool`, *optional*):
            `True` or `"true"` for the last whole checkpoint of `output_dir`, the path of a checkpoint, or `None`,
            `False` or `"false"` for a new run. Under torchrun, `True` starts anew if the folder is new or holds an
            unfinished run without a whole checkpoint, so that `--max-restarts` works from the first step.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a new run removes the checkpoints and the run record of the one that is in the folder.

    Returns:
        `str` or `None`: The checkpoint to resume from, for `trainer.train(resume_from_checkpoint=...)`; `None` to
        start anew.

    Raises:
        ValueError: If the folder holds a run and the arguments do not say what to do with it, or if the checkpoint
            asked for is missing or not whole.
    """
    checkpoint = _resolve(Path(output_dir), _parse_resume(resume_from_checkpoint), overwrite)
    _wait_for_other_ranks()
    return checkpoint


def _resolve(output_dir: Path, resume: str | bool, overwrite: bool) -> str | None:
    if resume and overwrite:
        raise ValueError("A run cannot both resume from a checkpoint and overwrite it: choose one of the two.")
    if resume is True:
        checkpoint = last_whole_checkpoint(output_dir)
        if checkpoint is None and is_torchelastic_launched() and _may_start_anew(output_dir):
            # The launcher restarts a failed run with the same command, also before its first checkpoint
            logger.warning("`%s` holds no whole checkpoint: starting anew.", output_dir)
        elif checkpoint is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, but `{output_dir}` holds no whole checkpoint. Check `output_dir`, "
                "or start anew in another folder without `resume_from_checkpoint`."
            )
        return checkpoint
    if resume:
        if problem := checkpoint_problem(resume):
            raise ValueError(
                f"Cannot resume from `{resume}`: {problem}. Name another checkpoint, or pass "
                "`--resume_from_checkpoint true` for the last whole one of the output folder."
            )
        if output_dir.resolve() not in Path(resume).resolve().parents:
            _refuse_used(output_dir)
        return str(resume)
    if overwrite:
        _remove_run(output_dir)
    else:
        _refuse_used(output_dir)
    return None


def _may_start_anew(output_dir: Path) -> bool:
    record = read_run_record(output_dir)
    if record is not None:
        return not _is_finished(record)
    return not output_dir.exists() or not any(output_dir.iterdir())


def _is_finished(record: dict | None) -> bool:
    return record is not None and record["status"] == "finished"


def _refuse_used(output_dir: Path) -> None:
    record = read_run_record(output_dir)
    if record is None and not _checkpoints(output_dir):
        return
    if _is_finished(record):
        raise ValueError(
            f"`{output_dir}` holds a finished run (`{record.get('command')}`, ended {record.get('ended')}), which is "
            "never overwritten. Choose another `output_dir`, or pass `--resume_from_checkpoint true` to train on."
        )
    status = "no run record" if record is None else f"status `{record['status']}`"
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"`{output_dir}` holds an unfinished run ({status}) without a whole checkpoint to resume from. Choose "
            "another `output_dir`, or remove this one."
        )
    raise ValueError(
        f"`{output_dir}` holds an unfinished run ({status}, last whole checkpoint `{Path(checkpoint).name}`). Pass "
        f"`--resume_from_checkpoint true` (or `--resume_from_checkpoint {checkpoint}`) to go on with it, or choose "
        "another `output_dir`."
    )


def _remove_run(output_dir: Path) -> None:
    for checkpoint in _checkpoints(output_dir):
        logger.warning("Removing `%s`, as overwriting was asked for.", checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)
    (output_dir / RUN_RECORD_NAME).unlink(missing_ok=True)


def _checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    found = [path for path in found if _CHECKPOINT_NAME.match(path.name)]
    return sorted(found, key=lambda path: int(_CHECKPOINT_NAME.match(path.name).group(1)), reverse=True)


def _parse_resume(value: str | bool | None) -> str | bool:
    if value is None or value is False:
        return False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value == "":
        raise ValueError("`resume_from_checkpoint` is empty. Pass `true`, the path of a checkpoint, or leave it out.")
    return value if value is True else os.fspath(value)


def _wait_for_other_ranks() -> None:
    # Rank 0 goes on to write run.json; a slower rank must not take that for another run's.
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
