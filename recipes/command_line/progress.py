"""What a small training says of itself in the terminal."""

from transformers import TrainerCallback


class ProgressLines(TrainerCallback):
    """
    One line every few steps, in place of a progress bar and a dictionary.

    Args:
        title (`str`): name of the run.
        key (`str`): what is shown of the log.
        every (`int`, *optional*, defaults to `10`): steps between two lines, if each step is logged.
    """

    def __init__(self, title: str, key: str, every: int = 10):
        self.title, self.key, self.every = title, key, every

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.key in (logs or {}) and (state.global_step % self.every == 0 or args.logging_steps > 1):
            print(
                f"{self.title}: step {state.global_step}/{state.max_steps}, {self.key} {logs[self.key]:.3f}",
                flush=True,
            )
