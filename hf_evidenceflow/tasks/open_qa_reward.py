"""Open-domain question answering: exact match after the normalisation of SQuAD's evaluation."""

import re
import string
from collections.abc import Callable

from .answers import final_answer, is_step, unwrap
from .batch import score_batch
from .golds import GoldRule, gold_text, grades_by
from .text import completion_text


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """
    Lower case, without punctuation, articles and extra white space.

    Args:
        text (`str`):
            Answer or gold.

    Returns:
        `str`: the normalised text, possibly empty.

    Source: the evaluation script of [SQuAD](https://huggingface.co/papers/1606.05250).

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.open_qa_reward import normalize_answer

    >>> normalize_answer("The  Eiffel Tower.")
    'eiffel tower'
    ```
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def extract_open_answer(text: str | list[dict]) -> str | None:
    """
    The normalised answer after the only marker `####` of a completion.

    Args:
        text (`str` or `list[dict]`):
            Completion: plain text or TRL chat messages.

    Returns:
        `str | None`: the normalised answer; `None` if there is not exactly one marker, or nothing but punctuation and
        articles after it.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.open_qa_reward import extract_open_answer

    >>> extract_open_answer("It stands in Paris. #### The Eiffel Tower.")
    'eiffel tower'
    ```
    """
    answer = final_answer(completion_text(text), lambda line: bool(normalize_answer(line)) and not is_step(line))
    return normalize_answer(unwrap(answer or "")) or None


def _gold_answers(gold) -> list[str] | None:
    """The normalised golds of a text, or of a list of texts; `None` if one is no text, or if nothing is left."""
    texts = [gold_text(one) for one in (gold if isinstance(gold, (list, tuple)) else [gold])]
    if None in texts:
        return None
    return list(filter(None, map(normalize_answer, texts))) or None


GOLD_RULE = GoldRule(_gold_answers, "a text, or a list of texts that all count as right")


@grades_by(GOLD_RULE)
def open_qa_reward(
    completions: list[str] | list[list[dict]],
    answer: list[str] | list[list[str]],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward function for TRL's trainers: 1.0 for one of the gold answers, normalised, after exactly one marker `####`.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions: plain texts or chat messages.
        answer (`list[str]` or `list[list[str]]`):
            For each completion the gold answer, or all golds that count as right.
        log_extra (`Callable`, *optional*):
            Given by the trainer; gets the column `extracted_answer`.
        log_metric (`Callable`, *optional*):
            Given by the trainer; gets `unparsable`, the share of completions without an answer that can be read.
        **kwargs:
            The other columns that a trainer passes; not used.

    Returns:
        `list[float]`: 1.0 or 0.0 for each completion.

    Raises:
        `ValueError`: if there is not one gold, or list of golds, for each completion, or if one is no text.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import open_qa_reward

    >>> open_qa_reward(completions=["#### the Louvre", "#### Paris"], answer=[["Louvre", "Louvre Museum"], ["Rome"]])
    [1.0, 0.0]
    ```
    """
    return score_batch(completions, answer, GOLD_RULE, extract_open_answer, _is_right, log_extra, log_metric)


def _is_right(answer: str, golds: list[str]) -> bool:
    return answer in golds
