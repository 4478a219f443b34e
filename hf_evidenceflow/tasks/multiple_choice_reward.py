"""MMLU-STEM and ARC-C: grades the letter of a multiple-choice answer, A to E."""

import re
from collections.abc import Callable

from .answers import LEAD, final_answer, unwrap
from .batch import score_batch
from .golds import GoldRule, gold_text, grades_by
from .text import completion_text


_MAX_LENGTH = 1000  # characters after the marker

_ALONE = re.compile(rf"{LEAD}([A-Ea-e])[\W_]*")
_LABEL = re.compile(rf"{LEAD}([A-E])(?:[.):]\s|\)?\s+[-\u2013\u2014]+\s(?!\W*[A-E]\W*$)|,?\s+(?:because|since)\b)")
# A letter, but not the article of a heading: "A closer look"
_LETTER_FIRST = re.compile(rf"{LEAD}[A-Ea-e](?![\w'])(?!\s+(?!(?:and|or|not|because|since)\b)\w)")
_SECOND_CHOICE = re.compile(r"\b[A-E][.):]|(?:\b(?:and|or|not)|[/,&])\W?[A-E]\b")


def extract_choice(text: str | list[dict]) -> str | None:
    """
    The letter after the only marker `####` of a completion.

    The letter stands alone (`B`, `(b)`, `The answer is B.`), as the label of its option (`B. A red cell`, `B) 42`) or
    before a reason (`B - because`), and in a box, `\\text{}` or bold type too. Two letters (`B or C`), two boxes, and
    a letter that begins a sentence (`A red cell`), are no choice.

    Args:
        text (`str` or `list[dict]`):
            Completion: plain text or TRL chat messages.

    Returns:
        `str | None`: a letter from A to E; `None` if there is not exactly one marker, or not exactly one choice after
        it.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.multiple_choice_reward import extract_choice

    >>> extract_choice("Only cells divide. #### (B)"), extract_choice("#### B or C")
    ('B', None)
    ```
    """
    answer = final_answer(completion_text(text), lambda line: _LETTER_FIRST.match(unwrap(line)) is not None)
    return None if answer is None else _choice(answer)


def _gold_letter(gold) -> str | None:
    return _choice(gold_text(gold) or "")


def _choice(answer: str) -> str | None:
    if len(answer) > _MAX_LENGTH:
        return None
    answer = unwrap(answer)
    alone = _ALONE.fullmatch(answer)
    if alone:
        return alone[1].upper()
    label = _LABEL.match(answer)
    return label[1] if label and not _SECOND_CHOICE.search(answer, label.end()) else None


GOLD_RULE = GoldRule(_gold_letter, "a letter from A to E (the loaders turn the index of an option into its letter)")


@grades_by(GOLD_RULE)
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
        `ValueError`: if there is not one gold for each completion, or if one is no letter.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import multiple_choice_reward

    >>> multiple_choice_reward(completions=["#### B", "#### B or C"], answer=["B", "B"])
    [1.0, 0.0]
    ```
    """
    return score_batch(completions, answer, GOLD_RULE, extract_choice, str.__eq__, log_extra, log_metric)
