"""Which checkpoint a run starts from, and whether its output folder is free.

A checkpoint that was cut short (Ctrl-C, a full disk, a killed job) or changed since fails late, unclearly or not at
all in `Trainer.train`; here it is told from a whole one beforehand. An output folder that holds another run is
refused, with the ways out.
"""

import logging
import os
import zipfile
from pathlib import Path

import torch.distributed as dist
from torch.distributed import is_torchelastic_launched
from transformers.trainer import TRAINER_STATE_NAME

from ..files import read_json
from ..models.weights import broken_weights
from ..report.run_record import RUN_RECORD_NAME, read_run_record
from .manifest import has_manifest, manifest_problem
from .rotation import checkpoint_step, clean_leftovers, list_checkpoints, remove_checkpoint


logger = logging.getLogger(__name__)

AUTO = "auto"


def checkpoint_problem(path: str | os.PathLike) -> str | None:
    """Why a `Trainer` checkpoint cannot be resumed from, or `None`. All its files are read if it has a manifest."""
    path = Path(path)
    if not path.is_dir():
        return "there is no such folder"
    if problem := _state_problem(path):
        return problem
    if has_manifest(path):
        return manifest_problem(path) or _missing_file(path)
    # torch.save makes zip files; their directory stands at the end, so a cut file has none.
    for saved in sorted(path.glob("*.pt")) + sorted(path.glob("*.pth")):
        if not zipfile.is_zipfile(saved):
            return f"{saved.name} is cut short"
    return _missing_file(path) or broken_weights(path)


def _state_problem(path: Path) -> str | None:
    # The Trainer writes this file last, so a checkpoint without it was being written when the run stopped.
    state = path / TRAINER_STATE_NAME
    if not state.exists():
        return f"{TRAINER_STATE_NAME} is missing, so the run stopped while it was being written"
    try:
        step = read_json(state, allow_nan=True)["global_step"]
    except (OSError, ValueError, KeyError) as error:
        return f"{TRAINER_STATE_NAME} is not whole ({type(error).__name__}: {error})"
    if not isinstance(step, int) or step < 0 or checkpoint_step(path) not in (None, step):
        return f"{TRAINER_STATE_NAME} names step {step!r}, which cannot be this checkpoint's"
    return None


# What a run needs to go on, by any of the names that Trainer, FSDP, DeepSpeed (`global_step*`) and PEFT write
_NEEDED = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "config.json": ("config.json", "adapter_config.json"),
    "optimizer.pt": ("optimizer.pt", "optimizer*", "rank*-optimizer.pt", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state.pth", "rng_state_*.pth"),
}


def _missing_file(path: Path) -> str | None:
    for name, patterns in _NEEDED.items():
        if not any(True for pattern in patterns for _ in path.rglob(pattern)):
            return "it holds no weights" if name == "weights" else f"{name} is missing"
    return None


def is_whole_checkpoint(path: str | os.PathLike) -> bool:
    """Whether state, weights and optimizer files of a `Trainer` checkpoint are all there and whole."""
    return checkpoint_problem(path) is None


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The `checkpoint-<step>` folder with the highest step among the whole ones, or `None`; newer ones that are not whole
    are skipped with a warning.
    """
    for checkpoint in list_checkpoints(output_dir):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            if not has_manifest(checkpoint):
                logger.info("`%s` has no manifest: its files were checked by name and structure.", checkpoint)
            return str(checkpoint)
        logger.warning("Skipping the checkpoint `%s`: %s.", checkpoint, problem)
    return None


def resolve_output_dir(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | bool | None = None, overwrite: bool = False
) -> str | None:
    """
    Decide what a run may do with its output folder. Called by [`~run_folder.training_run.training_run`]. In a
    distributed run rank 0 decides for all.

    Args:
        output_dir (`str` or `os.PathLike`):
            Output folder of the run.
        resume_from_checkpoint (`str`, `bool`, *optional*):
            - `None`, `False` or `"false"`: a new run.
            - `True` or `"true"`: the last whole checkpoint of `output_dir`. Under torchrun it starts anew if the
              folder is new or holds an unfinished run without a whole checkpoint, so that `--max-restarts` works from
              the first step.
            - `"auto"`: the last whole checkpoint, or a new run if there is none; for jobs that are requeued.
            - The path of a checkpoint.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a new run removes the checkpoints and the run record of the one that is in the folder.

    Returns:
        `str` or `None`: what to pass to `trainer.train(resume_from_checkpoint=...)`; `None` to start anew.

    Raises:
        ValueError: if the folder holds a run and the arguments do not say what to do with it, or the checkpoint asked
        for
            is missing or not whole.
    """
    distributed = dist.is_available() and dist.is_initialized()
    answer = [None, None]  # checkpoint, error
    if not distributed or dist.get_rank() == 0:
        try:
            clean_leftovers(output_dir)
            answer[0] = _resolve(Path(output_dir), _parse_resume(resume_from_checkpoint), overwrite)
        except (ValueError, OSError) as error:
            answer[1] = error
    if distributed:
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _resolve(output_dir: Path, resume: str | bool, overwrite: bool) -> str | None:
    if resume and overwrite:
        raise ValueError("A run cannot both resume from a checkpoint and overwrite it: choose one of the two.")
    if resume is True or resume == AUTO:
        return _last_or_anew(output_dir, resume == AUTO)
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


def _last_or_anew(output_dir: Path, auto: bool) -> str | None:
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is not None:
        return checkpoint
    record = read_run_record(output_dir)
    if auto and _is_finished(record):
        raise ValueError(
            f"`{output_dir}` holds a finished run (`{record.get('command')}`) without a whole checkpoint: there is "
            "nothing to resume, and it is never overwritten. Choose another `output_dir`."
        )
    # A launcher restarts a failed run with the same command, also before its first checkpoint
    if auto or (is_torchelastic_launched() and _may_start_anew(output_dir, record)):
        if record is not None or list_checkpoints(output_dir):
            logger.warning("`%s` holds no whole checkpoint: starting anew.", output_dir)
        return None
    raise ValueError(
        f"`resume_from_checkpoint` is true, but `{output_dir}` holds no whole checkpoint. Check `output_dir`, pass "
        "`--resume_from_checkpoint auto` to start anew where there is none, or start anew in another folder."
    )


def _may_start_anew(output_dir: Path, record: dict | None) -> bool:
    if record is not None:
        return not _is_finished(record)
    return _holds_only(output_dir)


def _holds_only(output_dir: Path, *names: str) -> bool:
    """Whether a folder holds no more than files of these names, and what the lock needs."""
    return all(path.name.startswith("_") or path.name in names for path in output_dir.glob("*"))


def _is_finished(record: dict | None) -> bool:
    return record is not None and record["status"] == "finished"


def _refuse_used(output_dir: Path) -> None:
    record = read_run_record(output_dir)
    if record is None and not list_checkpoints(output_dir):
        return
    if not _is_finished(record) and _holds_only(output_dir, RUN_RECORD_NAME):
        return  # it ended before it had made anything, as for a wrong option
    if _is_finished(record):
        raise ValueError(
            f"`{output_dir}` holds a finished run (`{record.get('command')}`, ended {record.get('ended')}), which is "
            "never overwritten. Choose another `output_dir`, or pass `--resume_from_checkpoint true` to train on."
        )
    status = "no run record" if record is None else f"status `{record['status']}`"
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"`{output_dir}` holds an unfinished run ({status}) without a whole checkpoint to resume from. Pass "
            "`--resume_from_checkpoint auto` to start it anew, choose another `output_dir`, or remove this one."
        )
    raise ValueError(
        f"`{output_dir}` holds an unfinished run ({status}, last whole checkpoint `{Path(checkpoint).name}`). Pass "
        f"`--resume_from_checkpoint true` (or `--resume_from_checkpoint {checkpoint}`) to go on with it, or choose "
        "another `output_dir`."
    )


def _remove_run(output_dir: Path) -> None:
    for checkpoint in list_checkpoints(output_dir):
        logger.warning("Removing `%s`, as overwriting was asked for.", checkpoint)
        remove_checkpoint(checkpoint)
    (output_dir / RUN_RECORD_NAME).unlink(missing_ok=True)


def _parse_resume(value: str | bool | None) -> str | bool:
    if value is None or value is False:
        return False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and value.lower() == AUTO:
        return AUTO
    if value == "":
        raise ValueError(
            "`resume_from_checkpoint` is empty. Pass `auto`, `true`, the path of a checkpoint, or leave it out."
        )
    return value if value is True else os.fspath(value)
