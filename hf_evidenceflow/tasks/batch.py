"""What all rewards share: one score for each completion of a batch, and the log of what could not be read."""

from collections.abc import Callable
from typing import Any

from .golds import COLUMN, GoldRule
from .text import completion_text


def score_batch(
    completions: list,
    golds: list,
    rule: GoldRule,
    extract: Callable[[str], str | None],
    is_right: Callable[[str, Any], bool | None],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    log_unverified: bool = False,
) -> list[float]:
    """
    Scores each completion 1.0 or 0.0 against its gold. What cannot be read scores 0.0 and is counted as `unparsable`.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as TRL hands them to a reward function.
        golds (`list`):
            One gold for each completion.
        rule ([`~hf_evidenceflow.tasks.golds.GoldRule`]):
            How the golds are read.
        extract (`Callable[[str], str | None]`):
            Takes the answer out of a completion's text; `None` if there is none to read.
        is_right (`Callable[[str, Any], bool | None]`):
            Compares the answer with the gold as read; `None` if that went beyond the limits, which scores 0.0.
        log_extra (`Callable`, *optional*):
            TRL's logger of columns of the completions table; gets `extracted_answer`.
        log_metric (`Callable`, *optional*):
            TRL's logger of metrics; gets `unparsable`, the share of completions without an answer that can be read.
        log_unverified (`bool`, *optional*, defaults to `False`):
            Whether to log `unverified` too, the share of comparisons beyond the limits.

    Returns:
        `list[float]`: one score for each completion.

    Raises:
        `ValueError`: if there is not one gold for each completion, or if one cannot be graded by.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.batch import score_batch
    >>> from hf_evidenceflow.tasks.golds import GoldRule, gold_text

    >>> rule = GoldRule(gold_text, "a text")
    >>> score_batch(["a", "b"], ["a", "c"], rule, extract=str.strip, is_right=str.__eq__)
    [1.0, 0.0]
    ```
    """
    if len(completions) != len(golds):
        raise ValueError(
            f"There must be one gold answer for each completion, got {len(completions)} completions and {len(golds)} "
            "answers. Pass the dataset's `answer` column, repeated as the prompts are."
        )
    golds = [rule(gold, f"Gold {place} of the batch, in `{COLUMN}`,") for place, gold in enumerate(golds)]
    answers = [extract(completion_text(completion)) for completion in completions]
    if log_extra is not None:
        log_extra("extracted_answer", [answer if answer is not None else "[unparsable]" for answer in answers])
    if log_metric is not None and answers:
        log_metric("unparsable", answers.count(None) / len(answers))
    verdicts = [answer is not None and is_right(answer, gold) for answer, gold in zip(answers, golds)]
    if log_unverified and log_metric is not None and verdicts:
        log_metric("unverified", verdicts.count(None) / len(verdicts))
    return [float(verdict or False) for verdict in verdicts]
