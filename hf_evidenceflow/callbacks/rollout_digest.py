"""One line for each log of an online training: what it costs, how long it takes, and whether its rollouts teach."""

import sys
import time
from datetime import timedelta

import torch
from transformers import TrainerCallback


def peak_memory() -> int | None:
    """Most bytes at once: of the GPU's tensors, else of the process; `None` where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _say(text: str) -> None:
    """Print beside a progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(text)


class RolloutDigest(TrainerCallback):
    """
    Prints what a user must know first of an online training: seconds a step and of its rollouts, peak memory, time
    left, reward, completions without an answer that can be read, groups without differences in reward.

    Args:
        trainer ([`HRPOTrainer`]):
            Whose `rollout_seconds` and log are read.

    Example:

    ```python
    >>> trainer.add_callback(RolloutDigest(trainer))
    >>> trainer.train()
    Step 10 of 100: 41 s a step (rollout 28 s), peak memory 2.3 GB, 1:01:30 left. Reward 0.21, 12% without a ...
    ```
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._started, self._first, self._rollouts = time.perf_counter(), 0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._started, self._first = time.perf_counter(), state.global_step
        self._rollouts = self.trainer.rollout_seconds
        if state.is_world_process_zero:
            _say(
                f"A rollout has {args.generation_batch_size} completions of at most {args.max_completion_length} "
                f"tokens, in groups of {args.num_generations}; {state.max_steps - state.global_step} steps to go."
            )

    def costs(self, step: int) -> dict[str, float | None]:
        """`seconds_per_step`, `rollout_seconds_per_step` since the start or resume, and `peak_memory_gb`."""
        steps, memory = max(1, step - self._first), peak_memory()
        return {
            "seconds_per_step": (time.perf_counter() - self._started) / steps,
            "rollout_seconds_per_step": (self.trainer.rollout_seconds - self._rollouts) / steps,
            "peak_memory_gb": None if memory is None else memory / 1e9,
        }

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "reward" in logs:
            _say(self.line(state, logs))

    def line(self, state, logs) -> str:
        """The line for an entry of the log."""
        costs = self.costs(state.global_step)
        left = timedelta(seconds=round(costs["seconds_per_step"] * (state.max_steps - state.global_step)))
        seconds, rollout = costs["seconds_per_step"], costs["rollout_seconds_per_step"]
        memory = "" if costs["peak_memory_gb"] is None else f"peak memory {costs['peak_memory_gb']:.1f} GB, "
        shares = [
            f"{logs[name]:.0%} {text}"
            for name, text in (
                ("unparsable", "without a readable answer"),
                ("frac_reward_zero_std", "of groups without signal"),
                ("completions/clipped_ratio", "cut off"),
            )
            if name in logs
        ]
        return (
            f"Step {state.global_step} of {state.max_steps}: {seconds:.3g} s a step (rollout {rollout:.3g} s), "
            f"{memory}{left} left. " + ", ".join([f"Reward {logs['reward']:.3g}", *shares]) + "."
        )
