"""One line for each log of an online training: what it costs, how long it takes, and whether its rollouts teach."""

import statistics
import time
from datetime import timedelta

from transformers import TrainerCallback

from ..report.memory import peak_memory
from ..report.say import say


PHASES = ("rollout", "scoring", "update")
# What a user must know first of the completions, and how it is said
_SHARES = {
    "unparsable": "without a readable answer",
    "frac_reward_zero_std": "of groups without signal",
    "completions/clipped_ratio": "cut off",
}


class RolloutDigest(TrainerCallback):
    """
    Prints what a user must know first of an online training, after the first step and with each entry of the log:
    seconds a step and of its phases, peak memory, time left, reward, completions without an answer that can be read,
    groups without differences in reward; at the end, the same of the whole run.

    Args:
        trainer ([`HRPOTrainer`]):
            Whose `phase_seconds`, `memory_check` and log are read.

    Example:

    ```python
    >>> trainer.add_callback(RolloutDigest(trainer))
    >>> trainer.train()
    Step 10 of 100: 41 s a step (rollout 28 s, scoring 1 s, update 12 s), peak memory 2.3 GB, 1:01:30 left. Reward ...
    ```
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._started, self._first = time.perf_counter(), 0
        self._before = dict.fromkeys(PHASES, 0.0)
        self._logs: list[dict[str, float]] = []
        self._steps: list[int] = []  # that each of them is of

    def on_train_begin(self, args, state, control, **kwargs):
        self._started, self._first = time.perf_counter(), state.global_step
        self._before = {name: self.trainer.phase_seconds[name] for name in PHASES}
        self._logs, self._steps = [], []
        if state.is_world_process_zero:
            say(
                f"A rollout has {args.generation_batch_size} completions of at most {args.max_completion_length} "
                f"tokens, in groups of {args.num_generations}; {state.max_steps - state.global_step} steps to go."
            )
            if self.trainer.memory_check.description:
                say(self.trainer.memory_check.description)

    def costs(self, step: int) -> dict[str, float | None]:
        """
        Since the start or resume: `seconds_per_step`, `rollout_seconds_per_step` and so on for each phase,
        `peak_memory_gb`, and the means of the shares that the log has.
        """
        steps, memory = max(1, step - self._first), peak_memory()
        phases = {
            f"{name}_seconds_per_step": (self.trainer.phase_seconds[name] - self._before[name]) / steps
            for name in PHASES
        }
        return {
            "seconds_per_step": (time.perf_counter() - self._started) / steps,
            **phases,
            "peak_memory_gb": None if memory is None else memory / 1e9,
            **self._means(),
        }

    def _means(self):
        """Of the steps so far."""
        names = [name for name in ("reward", *_SHARES) if any(name in logs for logs in self._logs)]
        logged = list(zip(self._logs, self._steps))
        return {
            name: statistics.fmean(
                [logs[name] for logs in self._logs if name in logs], [steps for logs, steps in logged if name in logs]
            )
            for name in names
        }

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:  # not only after `logging_steps`, which may be minutes
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs:
            self._logs.append(logs)
            self._steps.append(max(1, state.global_step - self._first - sum(self._steps)))
            if state.is_world_process_zero:
                say(self.line(state, logs))

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self._logs:
            say(self.summary(state))

    def line(self, state, logs) -> str:
        """The line for an entry of the log."""
        costs = self.costs(state.global_step)
        left = timedelta(seconds=round(costs["seconds_per_step"] * (state.max_steps - state.global_step)))
        return f"Step {state.global_step} of {state.max_steps}: {_times(costs)}, {left} left. {_findings(logs)}"

    def summary(self, state) -> str:
        """The line for the run."""
        steps = state.global_step - self._first
        took = timedelta(seconds=round(time.perf_counter() - self._started))
        return (
            f"{steps} steps in {took}: {_times(self.costs(state.global_step))}. On average: {_findings(self._means())}"
        )


def _times(costs):
    phases = ", ".join(f"{name} {costs[f'{name}_seconds_per_step']:.3g} s" for name in PHASES)
    memory = "" if costs["peak_memory_gb"] is None else f", peak memory {costs['peak_memory_gb']:.1f} GB"
    return f"{costs['seconds_per_step']:.3g} s a step ({phases}){memory}"


def _findings(logs):
    shares = [f"{logs[name]:.0%} {text}" for name, text in _SHARES.items() if name in logs]
    return ", ".join([f"Reward {logs['reward']:.3g}", *shares]) + "."
