"""The stages of latent training: how many steps of the discrete chain have become thoughts."""

from collections.abc import Sequence

from transformers import TrainerCallback


class LatentCurriculum(TrainerCallback):
    """
    Moves from stage to stage.

    Args:
        stages (`Sequence[int]`):
            For each stage the number of first steps that are thoughts.
        steps_per_stage (`int`, *optional*), until_loss (`float`, *optional*):
            Optimizer steps of a stage, or the logged loss at or below which it ends. `None` and `None`: the steps of
            the run are split evenly.
        reset_optimizer (`bool`, *optional*, defaults to `False`):
            Forget the optimizer's moments when a stage begins.

    Raises:
        `ValueError`: if there is no stage, a stage is negative, or both ends are given.

    Example:

    ```python
    >>> curriculum = LatentCurriculum([0, 1, 2], steps_per_stage=100)
    >>> [curriculum.at(step, 400) for step in (0, 99, 100, 399)]
    [0, 0, 1, 2]
    ```
    """

    def __init__(self, stages: Sequence[int], steps_per_stage=None, until_loss=None, reset_optimizer=False):
        if not stages or min(stages) < 0:
            raise ValueError(f"The curriculum needs stages of at least 0 thoughts each, got {list(stages)}.")
        if steps_per_stage is not None and until_loss is not None:
            raise ValueError(
                f"A stage ends after `steps_per_stage={steps_per_stage}` or at `until_loss={until_loss}`, not by both."
            )
        if steps_per_stage is not None and steps_per_stage < 1:
            raise ValueError(f"`steps_per_stage` must be at least 1, got {steps_per_stage}.")
        self.stages = list(stages)
        self.steps_per_stage, self.until_loss = steps_per_stage, until_loss
        self.reset_optimizer = reset_optimizer
        self.index = 0  # of the stage
        self._began = 0  # index of the stage whose optimizer is at work

    def at(self, step: int, max_steps: int) -> int:
        """Thoughts of the stage at an optimizer step; moves there."""
        if self.until_loss is None:
            each = self.steps_per_stage or max(1, -(-max_steps // len(self.stages)))
            self.index = min(step // each, len(self.stages) - 1)
        return self.stages[self.index]

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if self.until_loss is not None and loss is not None and loss <= self.until_loss:
            self.index = min(self.index + 1, len(self.stages) - 1)

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if self.index != self._began:
            self._began = self.index
            if self.reset_optimizer:
                optimizer.state.clear()

    def state_dict(self) -> list[int]:
        """What a checkpoint keeps."""
        return [self.index, self._began]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Go on from a checkpoint."""
        self.index, self._began = state
