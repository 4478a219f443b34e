"""
How all tasks grade: a gold is read by its rule, the answer is taken out of the completion, and the two are compared.

A completion that cannot be read scores 0. A gold that cannot be read is an error, not a wrong answer.
"""

import functools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .text import MARKER, completion_text


COLUMN = "answer"


@dataclass(frozen=True)
class GoldRule:
    """
    How a grader reads its golds: `read` takes a gold to what answers are compared with, `None` if it cannot be graded
    by; `needs` says what a gold must be, for the error.
    """

    read: Callable[[Any], Any]
    needs: str

    def __call__(self, gold: Any, place: str = "The gold") -> Any:
        """Reads a gold; a `ValueError` that begins with `place` if it cannot be graded by."""
        value = self.read(gold)
        if value is None:
            raise ValueError(
                f"{place} cannot be graded by: it is {_shown(gold)} ({type(gold).__name__}), and must be "
                f"{self.needs}. Correct it, or remove the row."
            )
        return value

    def check(self, golds: Iterable[Any]) -> None:
        """Raises a `ValueError` with the row of the first gold that cannot be graded by."""
        for row, gold in enumerate(golds):
            if self.read(gold) is None:
                self(gold, f"Column `{COLUMN}` of row {row}")


class Reward:
    """
    A reward function for TRL's trainers: 1.0 for each completion whose answer equals its gold, else 0.0.

    Args:
        name (`str`):
            Name in logs and errors.
        golds ([`GoldRule`]):
            How the column `answer` is read.
        extract (`Callable[[str], str | None]`):
            Takes the answer out of a completion's text; `None` if there is none to read.
        is_right (`Callable[[str, Any], bool | None]`, *optional*, defaults to `str.__eq__`):
            Compares the answer with the gold as read; `None` if that went beyond its limits, which scores 0.0.
        check (`Callable[[], None]`, *optional*):
            Called before each batch, to refuse it where a package is missing.
        log_unverified (`bool`, *optional*, defaults to `False`):
            Whether to log the share of comparisons beyond their limits as `unverified`.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks import Reward
    >>> from hf_evidenceflow.tasks.grading import GoldRule, gold_text

    >>> shout = Reward("shout", GoldRule(gold_text, "a text"), extract=str.upper)
    >>> shout(completions=["a", "b"], answer=["A", "C"])
    [1.0, 0.0]
    ```
    """

    def __init__(
        self,
        name: str,
        golds: GoldRule,
        extract: Callable[[str], str | None],
        is_right: Callable[[str, Any], bool | None] = str.__eq__,
        check: Callable[[], None] | None = None,
        log_unverified: bool = False,
    ):
        self.__name__ = name
        self.golds = golds
        self.extract = extract
        self.is_right = is_right
        self.check = check
        self.log_unverified = log_unverified

    def grade(self, completion: str | list[dict], gold: Any) -> float:
        """The score of one completion; errors as of a batch."""
        if self.check is not None:
            self.check()
        gold, answer = self.golds(gold), self.extract(completion_text(completion))
        return float(answer is not None and bool(self.is_right(answer, gold)))

    def __call__(
        self,
        completions: list[str] | list[list[dict]],
        answer: list,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs,
    ) -> list[float]:
        """
        Scores a batch: 1.0 or 0.0 per completion.

        Args:
            completions (`list[str]` or `list[list[dict]]`):
                Plain texts or chat messages.
            answer (`list`):
                One gold per completion.
            log_extra, log_metric (`Callable`, *optional*):
                Given by the trainer: the first gets the column `extracted_answer`; the second `unparsable`, the share
                of completions without an answer that can be read.
            **kwargs:
                The other columns that a trainer passes; not used.

        Raises:
            `ValueError`: if there is not one gold per completion, or if one cannot be graded by.
        """
        if self.check is not None:
            self.check()
        if len(completions) != len(answer):
            raise ValueError(
                f"There must be one gold answer for each completion, got {len(completions)} completions and "
                f"{len(answer)} answers. Pass the dataset's `answer` column, repeated as the prompts are."
            )
        golds = [self.golds(gold, f"Gold {place} of the batch, in `{COLUMN}`,") for place, gold in enumerate(answer)]
        answers = [self.extract(completion_text(completion)) for completion in completions]
        verdicts = [found is not None and self.is_right(found, gold) for found, gold in zip(answers, golds)]
        if log_extra is not None:
            log_extra("extracted_answer", ["[unparsable]" if found is None else found for found in answers])
        if log_metric is not None and answers:
            log_metric("unparsable", answers.count(None) / len(answers))
        if log_metric is not None and verdicts and self.log_unverified:
            log_metric("unverified", verdicts.count(None) / len(verdicts))
        return [float(verdict or False) for verdict in verdicts]


def gold_text(gold: Any) -> str | None:
    """
    The final answer of a gold, stripped: what stands after its last marker, or the whole gold if it has none. A gold
    may be a text, a number (also of NumPy, or a tensor of shape `()`); anything else gives `None`, NaN and infinity
    too.
    """
    if isinstance(gold, str):
        return gold.rpartition(MARKER)[2].strip()
    if not isinstance(gold, (numbers.Real, Decimal)):
        gold = _scalar(gold)
    if gold is None or isinstance(gold, bool):
        return None
    try:
        return str(gold) if math.isfinite(gold) else None
    except (ValueError, OverflowError):  # an int beyond Python's limit for conversion to text or float
        return None


def check_golds(reward_funcs: Any, *datasets: Any) -> None:
    """
    Checks before a training that this package's rewards can read each gold of the data sets; a `ValueError` names the
    row, or a missing column `answer`. Rewards of other makers are passed over; in streams the reward refuses a gold
    when it comes.

    Args:
        reward_funcs (`Callable`, `str` or `list`):
            Reward functions as a trainer takes them.
        *datasets (`datasets.Dataset`, `datasets.IterableDataset`, `dict` or `None`):
            Training and evaluation sets.
    """
    rewards = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    for reward in rewards:
        while isinstance(reward, functools.partial):
            reward = reward.func
        if not isinstance(reward, Reward):
            continue
        for dataset in datasets:
            for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
                _check_dataset(part, reward)


def _check_dataset(dataset: Any, reward: Reward) -> None:
    if dataset is None or dataset.column_names is None:
        return
    if COLUMN not in dataset.column_names:
        raise ValueError(
            f"The data set has no column `{COLUMN}`, by which `{reward.__name__}` grades; it has "
            f"{', '.join(dataset.column_names)}. Rename the column of the golds."
        )
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        reward.golds.check(dataset[COLUMN])


def _scalar(value: Any) -> Any:
    """The number in a tensor or array of shape `()`, in the precision of its dtype; `None` for anything else."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 and value.dtype.kind in "iuf":
        return value[()]
    return None


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an int beyond Python's limit for conversion to text
        return f"a number of {value.bit_length()} bits"
