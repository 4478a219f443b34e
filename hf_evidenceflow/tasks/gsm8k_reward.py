"""
GSM8K: reads and grades the final number of a completion.

Published results differ by the reader of the answer as much as by the method, so the readers can be compared on the
same completions:

| grader | reads | needs exactly one marker |
| --- | --- | --- |
| `strict` | the one number after the marker `####` | yes |
| `flexible` | the last number of the text, also of a draft in `<think>` | no |
| `hrpo_legacy` | what the public HRPO code reads, which takes `70,000` for 0 | yes, in the whole text |
| `math_verify` | what math-verify finds after the marker | yes |

Markers in `<think>...</think>`, and headings such as `#### Step 1`, are none: see `answers.py`.

After the marker `strict` takes words as units (`18 dollars`), but a second number there leaves the answer open and
scores 0, also where a person would see which one is meant: `18 or 20`, `18 = 18.00`, `5 (since 2+3=5)`. The prompt
asks for the answer alone, and a rule without judgement leaves nothing to exploit.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from .answers import EQUATION, LEAD, final_answer, is_step, unwrap
from .batch import score_batch
from .golds import GoldRule, gold_text, grades_by
from .hrpo_legacy import legacy_number
from .math_reward import math_answer
from .math_verification import equal_expressions, readable_expression, require_math_verify
from .number_writing import plain_writing
from .numbers import format_number, last_number, parse_number
from .text import after_only_marker, completion_text


_NUMBER_FIRST = re.compile(LEAD + EQUATION + r"[0-9]")
_LIST_ITEM = re.compile(r"[\W_]*[0-9]{1,2}[.)]\s+[A-Z]")  # "1. Add"


def extract_answer(text: str | list[dict], grader: str = "strict") -> str | None:
    """
    The final answer of a completion, as a grader reads it.

    Args:
        text (`str` or `list[dict]`):
            Completion: plain text or TRL chat messages.
        grader (`str`, *optional*, defaults to `"strict"`):
            One of `strict`, `flexible`, `hrpo_legacy`, `math_verify`; see the table of this module.

    Returns:
        `str | None`: the number in plain writing, the same for equal numbers (`70000`, `-0.5`, `1/3`), and for
        `math_verify` the text after the marker. `None` if the grader finds no answer that it can read.

    Raises:
        `ValueError`: if there is no such grader.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.gsm8k_reward import extract_answer

    >>> extract_answer("35,000 * 2 = 70,000\\n#### $70,000")
    '70000'
    ```
    """
    if grader not in GRADERS:
        raise ValueError(f"`grader` must be one of {', '.join(GRADERS)}, got {grader!r}.")
    return _READERS[grader](completion_text(text))


def is_parsable(completion: str | list[dict], grader: str = "strict") -> bool:
    """
    Whether a completion has an answer that a grader can read, right or wrong.

    Args:
        completion (`str` or `list[dict]`):
            Plain text or TRL chat messages.
        grader (`str`, *optional*, defaults to `"strict"`):
            One of `strict`, `flexible`, `hrpo_legacy`, `math_verify`.

    Returns:
        `bool`: `False` for a completion that scores 0 because nothing could be read.

    Raises:
        `ValueError`: if there is no such grader.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.gsm8k_reward import is_parsable

    >>> is_parsable("#### 5"), is_parsable("The answer is 5")
    (True, False)
    ```
    """
    return extract_answer(completion, grader) is not None


def grade(completion: str | list[dict], gold: str | int | float, grader: str = "strict") -> float:
    """
    Grades a completion against the gold answer. Whatever the completion holds, it is graded: what cannot be read
    scores 0.

    Args:
        completion (`str` or `list[dict]`):
            Plain text or TRL chat messages.
        gold (`str` or number, also of NumPy or a tensor of shape `()`):
            The final answer, or the whole GSM8K solution, whose answer stands after its last marker.
        grader (`str`, *optional*, defaults to `"strict"`):
            One of `strict`, `flexible`, `hrpo_legacy`, `math_verify`; see the table of this module.

    Returns:
        `float`: 1.0 if the answer equals the gold, else 0.0.

    Raises:
        `ValueError`: if there is no such grader, or if the gold cannot be graded by.
        `ImportError`: if the grader is `math_verify` and the package is not installed.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.gsm8k_reward import grade

    >>> grade("#### $70,000", "70000"), grade("#### $70,000", "70000", grader="hrpo_legacy")
    (1.0, 0.0)
    ```
    """
    if grader == "math_verify":
        require_math_verify()
    answer, gold = extract_answer(completion, grader), gold_rule(grader)(gold)
    return float(answer is not None and _is_right(answer, gold, grader))


def gold_rule(grader: str = "strict") -> GoldRule:
    """
    How a grader reads its golds.

    Args:
        grader (`str`, *optional*, defaults to `"strict"`):
            One of `strict`, `flexible`, `hrpo_legacy`, `math_verify`.

    Returns:
        [`~hf_evidenceflow.tasks.golds.GoldRule`]: the rule; its `check` takes a column of golds.
    """
    read = {"hrpo_legacy": _legacy_gold, "math_verify": _expression_gold}.get(grader, _number_gold)
    return GoldRule(read, "a number, or a text that ends in `#### <number>`")


def _number_gold(gold) -> str | None:
    return _plain(parse_number(gold_text(gold) or ""))


def _legacy_gold(gold) -> str | None:
    return _plain_float(legacy_number(gold_text(gold) or ""))


def _expression_gold(gold) -> str | None:
    text = gold_text(gold) or ""
    return readable_expression(text) if any(map(str.isdigit, text)) else None


@grades_by(gold_rule())
def gsm8k_reward(
    completions: list[str] | list[list[dict]],
    answer: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward function for TRL's trainers: 1.0 for the right number after exactly one marker `####`, by the `strict`
    grader.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions: plain texts or chat messages.
        answer (`list[str]`):
            Gold for each completion: the final answer, or the whole GSM8K solution.
        log_extra (`Callable`, *optional*):
            Given by the trainer; gets the column `extracted_answer`.
        log_metric (`Callable`, *optional*):
            Given by the trainer; gets `unparsable`, the share of completions without an answer that can be read.
        **kwargs:
            The other columns that a trainer passes; not used.

    Returns:
        `list[float]`: 1.0 or 0.0 for each completion.

    Raises:
        `ValueError`: if there is not one gold for each completion, or if one has no number.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import gsm8k_reward

    >>> gsm8k_reward(completions=["2 + 3 = 5 #### 5", "#### 3 #### 3"], answer=["5", "3"])
    [1.0, 0.0]
    ```
    """
    return score_batch(completions, answer, gold_rule(), extract_answer, str.__eq__, log_extra, log_metric)


def _is_right(answer: str, gold: str, grader: str) -> bool:
    return bool(equal_expressions(gold, answer)) if grader == "math_verify" else answer == gold


def _begins_with_number(line: str) -> bool:
    line = unwrap(plain_writing(line))
    return _NUMBER_FIRST.match(line) is not None and _LIST_ITEM.match(line) is None


def _strict(text: str) -> str | None:
    answer = final_answer(text, _begins_with_number)
    return None if answer is None or is_step(answer) else _plain(parse_number(answer))


def _legacy(text: str) -> str | None:
    answer = after_only_marker(text)
    return None if answer is None else _plain_float(legacy_number(answer))


def _expression(text: str) -> str | None:
    answer = math_answer(text)
    return None if answer is None else readable_expression(answer)


def _plain(number: Fraction | None) -> str | None:
    return None if number is None else format_number(number)


def _plain_float(number: float | None) -> str | None:
    return None if number is None else repr(number + 0.0).removesuffix(".0")  # "+ 0.0" makes -0.0 equal to 0.0


_READERS = {
    "strict": _strict,
    "flexible": lambda text: _plain(last_number(text)),
    "hrpo_legacy": _legacy,
    "math_verify": _expression,
}
GRADERS = tuple(_READERS)
