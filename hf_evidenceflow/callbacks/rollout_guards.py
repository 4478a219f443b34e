"""Warns when rollouts cannot teach: no reward, groups without differences, completions cut off, answers unreadable."""

from accelerate.logging import get_logger
from transformers import TrainerCallback


logger = get_logger(__name__)

PATIENCE = 3  # logs in a row
_MOST_CLIPPED = _MOST_UNPARSABLE = 0.5
_MOST_EQUAL_GROUPS = 0.9


def _find_problems(logs: dict) -> dict[str, str]:
    """Name -> what is wrong and what to do, for the problems that one entry of the log shows."""
    problems = {}
    if logs["reward"] == 0 and logs.get("reward_std") == 0:
        problems["no_reward"] = (
            "all rewards are 0, so nothing is learned. Look at completions (`log_completions=True`): does the prompt "
            "ask for the format that the reward reads, and does the model ever solve a problem?"
        )
    elif logs.get("frac_reward_zero_std", 0) >= _MOST_EQUAL_GROUPS:
        problems["equal_groups"] = (
            f"in {logs['frac_reward_zero_std']:.0%} of the groups all completions have the same reward, so they teach "
            "nothing. Raise `temperature` or `num_generations`, or take problems that are solved sometimes."
        )
    if logs.get("completions/clipped_ratio", 0) >= _MOST_CLIPPED:
        problems["clipped"] = (
            f"{logs['completions/clipped_ratio']:.0%} of the completions are cut off at `max_completion_length`. "
            "Raise it, or see whether the model ever writes EOS."
        )
    if logs.get("unparsable", 0) >= _MOST_UNPARSABLE and "no_reward" not in problems:
        problems["unparsable"] = (
            f"{logs['unparsable']:.0%} of the completions have no answer that can be read. Check the prompt's format "
            "against the reward's marker."
        )
    return problems


class RolloutGuard(TrainerCallback):
    """
    Warns once of a problem that [`~trl.GRPOTrainer`]'s log shows three times in a row.

    Problems: all rewards 0; groups without differences in reward (90 % or more); completions cut off (half or more);
    answers that cannot be read (half or more).
    """

    def __init__(self):
        self._in_a_row: dict[str, int] = {}
        self._warned: set[str] = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "reward" not in logs:
            return
        problems = _find_problems(logs)
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in problems}
        for name, text in problems.items():
            if self._in_a_row[name] >= PATIENCE and name not in self._warned:
                self._warned.add(name)
                logger.warning(f"Step {state.global_step}, for {PATIENCE} logs in a row: {text}")
