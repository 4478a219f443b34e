"""Callbacks that have files of their own in a checkpoint."""

import os
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .manifest import has_manifest


class CheckpointedCallback(TrainerCallback):
    """
    A callback that has files of its own in a checkpoint.

    [`~run_folder.resumable_trainer.ResumableTrainerMixin`] has them written before the checkpoint gets its name, so
    that none is ever without them. With another Trainer they are written when it has saved.
    """

    def write_files(self, checkpoint: Path, args) -> None:
        """Write this rank's files into the checkpoint; overridden by the callback."""
        raise NotImplementedError

    def on_save(self, args, state, control, **kwargs):
        checkpoint = checkpoint_of(args, state)
        if not has_manifest(checkpoint):
            self.write_files(checkpoint, args)


def checkpoint_of(args, state) -> Path:
    """The checkpoint folder of the step."""
    return Path(os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
