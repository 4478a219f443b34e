"""Checkpoints of a Trainer that appear under their name only when they are whole."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .manifest import write_manifest
from .rotation import STAGING_FOLDER, list_checkpoints, publish, rotate, set_newer_aside, sync_tree


class AtomicCheckpointMixin:
    """
    Writes each checkpoint into a staging folder, with a manifest of its files, and renames it at the end; put before a
    [`~transformers.Trainer`] class.
    """

    _staging = False
    _push_after_rename = False

    def _get_output_dir(self, trial):
        output_dir = super()._get_output_dir(trial)
        return os.path.join(output_dir, STAGING_FOLDER) if self._staging else output_dir

    def _push_from_checkpoint(self, checkpoint_folder):
        """
        Differs from Trainer in waiting for the rename: the upload runs in the background and reads the folder later.
        """
        if self._staging:
            self._push_after_rename = True
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        """
        Differs from Trainer in where it writes: a kill while saving leaves the last checkpoint as it was. And in the
        rotation: by step, not by the time of the files.
        """
        output_dir = Path(self._get_output_dir(trial))
        staging = output_dir / STAGING_FOLDER
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        best = self.state.best_model_checkpoint
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            self._staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = False
            self._save_own_state(staging / name)
            self.accelerator.wait_for_everyone()
            self._name_best(output_dir, best)
            if self.args.should_save:
                self.state.save_to_json(staging / name / TRAINER_STATE_NAME)
                write_manifest(staging / name)
                sync_tree(staging / name)
                publish(staging / name, output_dir / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_about_writing(error):
                raise
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            raise OSError(_not_written(output_dir, name, error)) from error
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            set_newer_aside(output_dir, self.state.global_step)
            rotate(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self._push_after_rename:
            self._push_after_rename = False
            self._push_from_checkpoint(str(output_dir / name))

    def _finish_rotation(self, resumed_from: Path) -> None:
        """What a kill right after a checkpoint got its name has left to do."""
        output_dir = Path(self.args.output_dir)
        newest = list_checkpoints(output_dir)[:1]
        # One resumed from an older checkpoint would lose that one
        if self.args.should_save and newest and newest[0].resolve() == resumed_from.resolve():
            rotate(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _save_own_state(self, folder: Path) -> None:
        """What a subclass adds to a checkpoint on each rank, before its manifest is written."""

    def _name_best(self, output_dir: Path, before: str | None) -> None:
        """The best checkpoint by its final path."""
        if not self.state.best_global_step:
            return
        candidate = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        is_this = self.state.best_global_step == self.state.global_step
        self.state.best_model_checkpoint = str(candidate) if is_this or candidate.exists() else before

    def _finalize_training(self, *args, **kwargs):
        """
        Differs from Trainer in keeping the last checkpoint next to the best one with `save_total_limit=1`: what is
        left to do after training may be cut off too.
        """
        self._staging = True  # where Trainer looks for what to remove
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self._staging = False


def _is_about_writing(error: Exception) -> bool:
    # torch's writer of zip files raises RuntimeError, and says what failed in its words only
    return not isinstance(error, RuntimeError) or any(
        text in str(error)
        for text in ("file write failed", "PytorchStreamWriter", "cannot be opened", "unexpected pos")
    )


def _not_written(output_dir: Path, name: str, error: Exception) -> str:
    free = ""
    if output_dir.exists():
        free = f" {shutil.disk_usage(output_dir).free / 1e6:.0f} MB are free there."
    left = list_checkpoints(output_dir)
    last = f"The last whole checkpoint is `{left[0]}`" if left else "There is no earlier checkpoint"
    return (
        f"`{output_dir / name}` could not be written: {error}.{free} {last}. Make room, or lower `save_total_limit`, "
        "and go on with `--resume_from_checkpoint auto`."
    )
