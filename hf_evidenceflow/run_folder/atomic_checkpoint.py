"""Checkpoints of a Trainer that appear under their name only when they are whole."""

import os
import shutil

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints


STAGING_FOLDER = ".incomplete-checkpoint"


class AtomicCheckpointMixin:
    """
    Writes each checkpoint into a staging folder and renames it at the end; put before a [`~transformers.Trainer`]
    class.
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
        """Differs from Trainer in where it writes: a kill while saving leaves the last checkpoint as it was."""
        output_dir = self._get_output_dir(trial)
        staging = os.path.join(output_dir, STAGING_FOLDER)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        best = self.state.best_model_checkpoint
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()

        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = os.path.join(output_dir, name)
        if self.state.best_global_step:
            candidate = os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            is_best = self.state.best_global_step == self.state.global_step
            self.state.best_model_checkpoint = candidate if is_best or os.path.exists(candidate) else best
        if self.args.should_save:
            self.state.save_to_json(os.path.join(staging, name, TRAINER_STATE_NAME))
            _sync_folder(os.path.join(staging, name))
            if os.path.exists(final):
                shutil.rmtree(final)
            os.replace(os.path.join(staging, name), final)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=output_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self._push_after_rename:
            self._push_after_rename = False
            self._push_from_checkpoint(final)


def _sync_folder(path):
    for folder, _, files in os.walk(path):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
