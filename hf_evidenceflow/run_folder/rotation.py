"""The checkpoint folders of a run: in order, and how they go without ever being half there under their name."""

import logging
import os
import re
import shutil
from pathlib import Path

from .manifest import has_manifest, manifest_problem


logger = logging.getLogger(__name__)

# Folders that are not checkpoints (yet, or any more); the underscore keeps them out of what `push_to_hub` uploads
STAGING_FOLDER = "_incomplete-checkpoint"
_REMOVED = "_removed-"
_SUPERSEDED = "_superseded-"
_CHECKPOINT_NAME = re.compile(r"^checkpoint-(\d+)$")


def checkpoint_step(path: str | os.PathLike) -> int | None:
    """The step in the name of a `checkpoint-<step>` folder; `None` for another name."""
    match = _CHECKPOINT_NAME.match(Path(path).name)
    return None if match is None else int(match.group(1))


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The `checkpoint-<step>` folders of an output folder, newest step first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if checkpoint_step(path) is not None), key=checkpoint_step, reverse=True)


def publish(staged: Path, final: Path) -> None:
    """Rename a whole checkpoint to its final name; one that is there under the name goes."""
    removed = _aside(final, _REMOVED) if final.exists() else None
    os.replace(staged, final)
    sync_folder(final.parent)
    if removed is not None:
        shutil.rmtree(removed, ignore_errors=True)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint: it loses its name first, so that a kill leaves no half of it behind under that name."""
    shutil.rmtree(_aside(path, _REMOVED), ignore_errors=True)


def set_newer_aside(output_dir: Path, step: int) -> None:
    """Rename the checkpoints behind a step: they belong to a run that was left when an earlier one was resumed."""
    for path in list_checkpoints(output_dir):
        if checkpoint_step(path) > step:
            logger.warning(
                "`%s` is of a run that was left at an earlier step: renamed to `%s%s`.", path, _SUPERSEDED, path.name
            )
            _aside(path, _SUPERSEDED)


def rotate(output_dir: Path, limit: int | None, best: str | os.PathLike | None) -> None:
    """
    Remove the checkpoints of the lowest steps until `limit` (`None` or 0: all) are left; the newest and the best one
    stay.
    """
    if not limit or limit < 0:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = {path.name for path in checkpoints[:1]} | ({Path(best).name} if best is not None else set())
    too_many = len(checkpoints) - max(limit, len(kept))
    for path in reversed([path for path in checkpoints if path.name not in kept]):
        if too_many <= 0:
            return
        remove_checkpoint(path)
        too_many -= 1


def clean_leftovers(output_dir: str | os.PathLike) -> None:
    """
    Remove what a killed run left half-written or half-removed in an output folder in which nothing else works; a
    checkpoint that only lacked its name gets it.
    """
    output_dir = Path(output_dir)
    for staged in list_checkpoints(output_dir / STAGING_FOLDER):
        if has_manifest(staged) and manifest_problem(staged) is None:
            publish(staged, output_dir / staged.name)
    shutil.rmtree(output_dir / STAGING_FOLDER, ignore_errors=True)
    for path in output_dir.glob(f"{_REMOVED}checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on disk, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put all files of a folder on disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
    sync_folder(folder)


def _aside(path: Path, prefix: str) -> Path:
    target = path.with_name(prefix + path.name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(path, target)
    return target
