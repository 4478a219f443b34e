"""MMLU-STEM and ARC-C: grades the letter of a multiple-choice answer, A to E."""

import re
from collections.abc import Callable

from .batch import score_batch
from .text import after_only_marker, completion_text, gold_text


# "The correct answer is", "Option": what may stand before the letter
_LEAD = r"[\W_]*(?i:(?:the|correct|final|answer|option|choice|is)[\W_]+)*"
_ALONE = re.compile(rf"{_LEAD}([A-Ea-e])[\W_]*")
_LABEL = re.compile(rf"{_LEAD}([A-E])\**[.):]\**\s")
_SECOND_CHOICE = re.compile(r"\b[A-E][.):]|(?:\b(?:and|or|not)|[/,&])\W?[A-E]\b")


def extract_choice(text: str | list[dict]) -> str | None:
    """
    The letter after the only marker `####` of a completion.

    The letter stands alone (`B`, `(b)`, `The answer is B.`) or as the label of its option (`B. A red cell`, `B) 42`).
    Two letters (`B or C`), and a letter that begins a sentence (`A red cell`), are no choice.

    Args:
        text (`str` or `list[dict]`):
            Completion: plain text or TRL chat messages.

    Returns:
        `str | None`: a letter from A to E; `None` if there is not exactly one marker, or not exactly one choice after
        it.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards.multiple_choice import extract_choice

    >>> extract_choice("Only cells divide. #### (B)"), extract_choice("#### B or C")
    ('B', None)
    ```
    """
    answer = after_only_marker(completion_text(text))
    if answer is None or len(answer) > 1000:
        return None
    alone = _ALONE.fullmatch(answer)
    if alone:
        return alone[1].upper()
    label = _LABEL.match(answer)
    return label[1] if label and not _SECOND_CHOICE.search(answer, label.end()) else None


def multiple_choice_reward(
    completions: list[str] | list[list[dict]],
    answer: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward function for TRL's trainers: 1.0 for the right letter after exactly one marker `####`.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions: plain texts or chat messages.
        answer (`list[str]`):
            Letter of the right option for each completion.
        log_extra (`Callable`, *optional*):
            Given by the trainer; gets the column `extracted_answer`.
        log_metric (`Callable`, *optional*):
            Given by the trainer; gets `unparsable`, the share of completions without an answer that can be read.
        **kwargs:
            The other columns that a trainer passes; not used.

    Returns:
        `list[float]`: 1.0 or 0.0 for each completion.

    Raises:
        `ValueError`: if there is not one gold for each completion.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import multiple_choice_reward

    >>> multiple_choice_reward(completions=["#### B", "#### B or C"], answer=["B", "B"])
    [1.0, 0.0]
    ```
    """
    return score_batch(completions, answer, extract_choice, _is_right, log_extra, log_metric)


def _is_right(answer: str, gold: str) -> bool:
    return answer == gold_text(gold).upper()
