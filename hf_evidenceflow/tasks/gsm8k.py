"""
GSM8K: grade-school word problems with a number as the answer.

Published results differ by the reader of the answer as much as by the method, so the readers can be compared on the
same completions:

| grader | reads | needs exactly one marker |
| --- | --- | --- |
| `strict` | the one number after the marker `####` | yes |
| `flexible` | the last number of the text, also of a draft in `<think>` | no |
| `hrpo_legacy` | what the public HRPO code reads, which takes `70,000` for 0 | yes, in the whole text |
| `math_verify` | what math-verify finds after the marker | yes |

Markers in `<think>...</think>`, and headings such as `#### Step 1`, are none: see `text.py`.

After the marker `strict` takes words as units (`18 dollars`), but a second number there leaves the answer open and
scores 0, also where a person would see which one is meant: `18 or 20`, `18 = 18.00`, `5 (since 2+3=5)`. The prompt
asks for the answer alone, and a rule without judgement leaves nothing to exploit.
"""

import re
from fractions import Fraction

from ..data.loading import load_split
from .grading import GoldRule, Reward, gold_text
from .hrpo_legacy import legacy_number
from .math import math_answer
from .math_verification import equal_expressions, readable_expression, require_math_verify
from .numbers import format_number, last_number, parse_number, plain_writing
from .prompts import ask, build_system_prompt
from .text import EQUATION, LEAD, after_only_marker, completion_text, final_answer, is_list_item, is_step, unwrap


GSM8K_SYSTEM_PROMPT = build_system_prompt("a number without unit")

_NUMBER_FIRST = re.compile(LEAD + EQUATION + r"[0-9]")


def load_gsm8k(
    name_or_path: str = "openai/gsm8k",
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = GSM8K_SYSTEM_PROMPT,
):
    """
    Loads GSM8K, or any set of its format: a `question`, and an `answer` that ends in `#### <number>`. Arguments and
    errors are those of all loaders, see [`hf_evidenceflow.tasks`]; the columns are those of [`prepare_gsm8k`].
    """
    dataset = load_split(name_or_path, split, ("main",), ("question", "answer"), max_samples, seed, ("question",))
    return prepare_gsm8k(dataset, conversational, system_prompt)


def prepare_gsm8k(dataset, conversational: bool | str = True, system_prompt: str | None = GSM8K_SYSTEM_PROMPT):
    """
    Brings rows with `question` and `answer` in GSM8K's format into the columns that the trainers take: `prompt`,
    `answer` (the final answer), `question` and `solution` (the whole answer column). A row without a number to grade
    by is a `ValueError`.
    """
    return ask(dataset, _read_row, system_prompt, conversational)


def _read_row(index: int, row: dict) -> dict:
    gold = gold_text(row["answer"])
    if gold is None or parse_number(gold) is None:
        raise ValueError(
            f"Row {index} has no answer to grade by: `answer` is {row['answer']!r}, but must end in `#### <number>` "
            "or be a number. Correct or remove the row."
        )
    return {"answer": gold, "question": row["question"], "solution": str(row["answer"])}


def extract_answer(text: str | list[dict], grader: str = "strict") -> str | None:
    """
    The final answer of a completion (a text, or TRL's chat messages), as a grader of the table above reads it: a
    number in plain writing, the same for equal numbers (`70000`, `-0.5`, `1/3`), and for `math_verify` the text after
    the marker; `None` if the grader finds no answer that it can read. An unknown grader is a `ValueError`.
    """
    return _reward(grader).extract(completion_text(text))


def is_parsable(completion: str | list[dict], grader: str = "strict") -> bool:
    """Whether a completion has an answer that a grader can read, right or wrong."""
    return extract_answer(completion, grader) is not None


def grade(completion: str | list[dict], gold: str | int | float, grader: str = "strict") -> float:
    """
    Grades a completion against the gold answer: 1.0 if they are equal, else 0.0, also for what cannot be read.

    Args:
        completion (`str` or `list[dict]`):
            Plain text or TRL chat messages.
        gold (`str` or number, also of NumPy or a tensor of shape `()`):
            The final answer, or the whole GSM8K solution, whose answer stands after its last marker.
        grader (`str`, *optional*, defaults to `"strict"`):
            One of `strict`, `flexible`, `hrpo_legacy`, `math_verify`; see the table of this module.

    Raises:
        `ValueError`: if there is no such grader, or if the gold cannot be graded by.
        `ImportError`: if the grader is `math_verify` and the package is not installed.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.gsm8k import grade

    >>> grade("#### $70,000", "70000"), grade("#### $70,000", "70000", grader="hrpo_legacy")
    (1.0, 0.0)
    ```
    """
    return _reward(grader).grade(completion, gold)


def gold_rule(grader: str = "strict") -> GoldRule:
    """How a grader reads its golds; the rule's `check` takes a whole column."""
    read = {"hrpo_legacy": _legacy_gold, "math_verify": _expression_gold}.get(grader, _number_gold)
    return GoldRule(read, "a number, or a text that ends in `#### <number>`")


def _number_gold(gold) -> str | None:
    return _plain(parse_number(gold_text(gold) or ""))


def _legacy_gold(gold) -> str | None:
    return _plain_float(legacy_number(gold_text(gold) or ""))


def _expression_gold(gold) -> str | None:
    text = gold_text(gold) or ""
    return readable_expression(text) if any(map(str.isdigit, text)) else None


def _begins_with_number(line: str) -> bool:
    line = unwrap(plain_writing(line))
    return _NUMBER_FIRST.match(line) is not None and not is_list_item(line)


def _strict(text: str) -> str | None:
    answer = final_answer(text, _begins_with_number)
    return None if answer is None or is_step(answer) else _plain(parse_number(answer))


def _flexible(text: str) -> str | None:
    return _plain(last_number(text))


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


def _same_expression(answer: str, gold: str) -> bool | None:
    return equal_expressions(gold, answer)


gsm8k_reward = Reward("gsm8k_reward", gold_rule(), _strict)
"""[`Reward`] for the right number after exactly one marker `####`, by the `strict` grader."""

NUMBER_GRADERS = {
    "strict": gsm8k_reward,
    "flexible": Reward("flexible", gold_rule(), _flexible),
    "hrpo_legacy": Reward("hrpo_legacy", gold_rule("hrpo_legacy"), _legacy),
    "math_verify": Reward(
        "math_verify", gold_rule("math_verify"), _expression, _same_expression, check=require_math_verify
    ),
}
GRADERS = tuple(NUMBER_GRADERS)


def _reward(grader: str) -> Reward:
    if grader not in GRADERS:
        raise ValueError(f"`grader` must be one of {', '.join(GRADERS)}, got {grader!r}.")
    return NUMBER_GRADERS[grader]
