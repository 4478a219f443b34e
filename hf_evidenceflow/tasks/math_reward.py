"""MATH: grades an expression by math-verify. The gold of this data set is in the last `\\boxed{}` of its solution."""

import re
from collections.abc import Callable

from .answers import ASCII_OF, EQUATION, LEAD, final_answer, is_step
from .batch import score_batch
from .golds import GoldRule, gold_text, grades_by
from .math_verification import equal_expressions, readable_expression, require_math_verify
from .text import completion_text


MAX_ANSWER_LENGTH = 1000  # characters after the marker

# A digit, a command, or a variable, but no word and no article
_EXPRESSION_FIRST = re.compile(LEAD + EQUATION + r"(?:[0-9]|\\[a-zA-Z]|[a-zA-Z](?![a-zA-Z'])(?!\s+[a-zA-Z]{2}))")
_LIST_ITEM = re.compile(r"[\W_]*[0-9]{1,2}[.)]\s+[A-Z]")
_FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """
    What is in the last `\\boxed{}` of a text, with its nested braces.

    Args:
        text (`str`):
            A solution of MATH, or an answer.

    Returns:
        `str | None`: the content, stripped; `None` if there is no box or if it is not closed.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.math_reward import last_boxed

    >>> last_boxed("Therefore $x = \\\\boxed{\\\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    ```
    """
    _, box, rest = text.rpartition("\\boxed")
    rest = rest.lstrip()
    if not box or not rest:
        return None
    if not rest.startswith("{"):  # "\boxed 7", as a few solutions of MATH have it
        return re.match(r"[^\s$.,]*", rest)[0] or None
    depth = 0
    for end, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:end].strip()
    return None


def math_answer(text: str) -> str | None:
    """What stands after the only marker that an expression follows; `None` if there is none, or several."""
    answer = final_answer(text, lambda line: _EXPRESSION_FIRST.match(line) is not None and not _LIST_ITEM.match(line))
    return None if answer is None or is_step(answer) else answer.translate(ASCII_OF)


def extract_math_answer(text: str | list[dict]) -> str | None:
    """
    The expression after the only marker `####` of a completion: in a `\\boxed{}`, between dollars, or bare.

    Args:
        text (`str` or `list[dict]`):
            Completion: plain text or TRL chat messages.

    Returns:
        `str | None`: the expression; `None` if the marker is missing or repeated, if there are digits beside the box
        or formula (`$5$ or 6`), or if the expression is empty, of more than 300 characters, unbalanced, or too large
        to compute.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.math_reward import extract_math_answer

    >>> extract_math_answer("Half of it. #### $\\\\frac{1}{2}$")
    '\\\\frac{1}{2}'
    ```
    """
    answer = math_answer(completion_text(text))
    if answer is None or len(answer) > MAX_ANSWER_LENGTH:
        return None
    if "\\boxed" in answer:
        expression = last_boxed(answer)
    else:
        formula = _FORMULA.search(answer)
        expression = formula[formula.lastindex] if formula else answer
    if not expression or any(char.isdigit() for char in answer.replace(expression, "", 1)):
        return None
    return readable_expression(expression.strip().removesuffix("."))


def grade_math(completion: str | list[dict], gold: str | int | float) -> float:
    """
    Grades a completion by math-verify against the gold expression.

    Args:
        completion (`str` or `list[dict]`):
            Plain text or TRL chat messages.
        gold (`str`, `int` or `float`):
            The final answer, or a whole solution with the answer in its last `\\boxed{}`.

    Returns:
        `float`: 1.0 if the expression after the only marker equals the gold, else 0.0.

    Raises:
        `ImportError`: if math-verify is not installed.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.math_reward import grade_math

    >>> grade_math("#### 0.5", "\\\\boxed{\\\\frac{1}{2}}")
    1.0
    ```
    """
    return math_reward([completion], [gold])[0]


def _gold_expression(gold) -> str | None:
    text = gold_text(gold) or ""
    return (last_boxed(text) if "\\boxed" in text else text) or None


GOLD_RULE = GoldRule(_gold_expression, "an expression, or a solution with the answer in its last closed `\\boxed{}`")


@grades_by(GOLD_RULE)
def math_reward(
    completions: list[str] | list[list[dict]],
    answer: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float]:
    """
    Reward function for TRL's trainers: 1.0 for an expression equal to the gold after exactly one marker `####`.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions: plain texts or chat messages.
        answer (`list[str]`):
            Gold for each completion: the final answer, or a whole solution with the answer in its last `\\boxed{}`.
        log_extra (`Callable`, *optional*):
            Given by the trainer; gets the column `extracted_answer`.
        log_metric (`Callable`, *optional*):
            Given by the trainer; gets `unparsable`, the share of completions without an answer that can be read, and
            `unverified`, the share of those whose comparison went over the limits of CPU time or memory.
        **kwargs:
            The other columns that a trainer passes; not used.

    Returns:
        `list[float]`: 1.0 or 0.0 for each completion.

    Raises:
        `ImportError`: if math-verify is not installed.
        `ValueError`: if there is not one gold for each completion, or if one has no expression.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import math_reward

    >>> math_reward(completions=["#### $1 + x$", "#### 3"], answer=["x + 1", "2"])
    [1.0, 0.0]
    ```
    """
    require_math_verify()
    return score_batch(
        completions, answer, GOLD_RULE, extract_math_answer, _is_right, log_extra, log_metric, log_unverified=True
    )


def _is_right(answer: str, gold: str) -> bool | None:
    return answer == gold or equal_expressions(f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}")
