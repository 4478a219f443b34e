"""Golds: what a data set holds as the right answer. One that cannot be graded by is an error, not a wrong answer."""

import functools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .text import MARKER


COLUMN = "answer"

_rules: list[tuple[Callable, "GoldRule"]] = []


def gold_text(gold: Any) -> str | None:
    """
    The final answer of a gold: what stands after its last marker, or the whole gold if it has none.

    Args:
        gold (`str`, `int`, `float`, `Decimal`, `Fraction`, NumPy scalar, or tensor of shape `()`):
            A final answer, or a whole solution that ends in `#### <answer>`.

    Returns:
        `str | None`: the final answer, stripped; `None` for anything else, NaN and infinity too.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.golds import gold_text

    >>> gold_text("2 + 3 = 5\\n#### 5"), gold_text(5), gold_text(None)
    ('5', '5', None)
    ```
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


@dataclass(frozen=True)
class GoldRule:
    """
    How a grader reads its golds.

    Args:
        read (`Callable[[Any], Any]`):
            Takes a gold to what answers are compared with; `None` if it cannot be graded by.
        needs (`str`):
            What a gold must be, for the error.
    """

    read: Callable[[Any], Any]
    needs: str

    def __call__(self, gold: Any, place: str = "The gold") -> Any:
        """
        Reads a gold.

        Raises:
            `ValueError`: if it cannot be graded by; the message begins with `place`.
        """
        value = self.read(gold)
        if value is None:
            raise ValueError(
                f"{place} cannot be graded by: it is {_shown(gold)} ({type(gold).__name__}), and must be "
                f"{self.needs}. Correct it, or remove the row."
            )
        return value

    def check(self, golds: Iterable[Any], column: str = COLUMN) -> None:
        """
        Checks all golds of a column.

        Raises:
            `ValueError`: for the first gold that cannot be graded by, with its row.
        """
        for row, gold in enumerate(golds):
            if self.read(gold) is None:
                self(gold, f"Column `{column}` of row {row}")


def grades_by(rule: GoldRule) -> Callable[[Callable], Callable]:
    """Decorator of a reward function: [`check_golds`] then checks data sets by `rule`."""

    def register(reward: Callable) -> Callable:
        _rules.append((reward, rule))
        return reward

    return register


def check_golds(reward_funcs: Any, *datasets: Any) -> None:
    """
    Checks before a training that this package's rewards can read each gold of the data sets.

    Streams are not read: there the reward refuses the gold when it comes.

    Args:
        reward_funcs (`Callable`, `str` or `list`):
            Reward functions as a trainer takes them. Those of other makers are passed over.
        *datasets (`datasets.Dataset`, `datasets.IterableDataset`, `dict` or `None`):
            Training and evaluation sets.

    Raises:
        `ValueError`: if a data set has no column `answer`, or a gold that cannot be graded by.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_evidenceflow.rewards import check_golds, gsm8k_reward

    >>> check_golds(gsm8k_reward, Dataset.from_dict({"prompt": ["2 + 3?"], "answer": ["5"]}))
    ```
    """
    rewards = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    for reward in rewards:
        while isinstance(reward, functools.partial):
            reward = reward.func
        rule = next((rule for known, rule in _rules if known is reward), None)
        if rule is None:
            continue
        for dataset in datasets:
            for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
                _check_dataset(part, rule, reward.__name__)


def _check_dataset(dataset: Any, rule: GoldRule, reward: str) -> None:
    if dataset is None or dataset.column_names is None:
        return
    if COLUMN not in dataset.column_names:
        raise ValueError(
            f"The data set has no column `{COLUMN}`, by which `{reward}` grades; it has "
            f"{', '.join(dataset.column_names)}. Rename the column of the golds."
        )
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        rule.check(dataset[COLUMN])


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
