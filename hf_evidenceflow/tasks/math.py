"""MATH: competition problems with an expression as the answer, graded by math-verify."""

import re

from ..data.loading import load_split
from .grading import GoldRule, Reward, gold_text
from .math_verification import equal_expressions, readable_expression, require_math_verify
from .prompts import ask, build_system_prompt
from .text import ASCII_OF, EQUATION, LEAD, completion_text, final_answer, is_list_item, is_step


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
MATH_SYSTEM_PROMPT = build_system_prompt("a number or an expression in LaTeX")
MAX_ANSWER_LENGTH = 1000  # characters after the marker

# A digit, a command, or a variable, but no word and no article
_EXPRESSION_FIRST = re.compile(LEAD + EQUATION + r"(?:[0-9]|\\[a-zA-Z]|[a-zA-Z](?![a-zA-Z'])(?!\s+[a-zA-Z]{2}))")
_FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def load_math(
    name_or_path: str = "EleutherAI/hendrycks_math",
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MATH_SYSTEM_PROMPT,
    subjects: tuple[str, ...] = MATH_SUBJECTS,
):
    """
    Loads MATH, or any set of its format: a `problem`, and a `solution` with the answer in its last `\\boxed{}`.

    Args:
        subjects (`tuple[str, ...]`, *optional*, defaults to `MATH_SUBJECTS`):
            Configurations to join, one after the other; `()` for a data set on the Hub that has none.

    The other arguments are those of all loaders, see [`hf_evidenceflow.tasks`].

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (what is in the box), `question` and `solution`.
    """
    columns = ("problem", "solution")
    dataset = load_split(name_or_path, split, subjects, columns, max_samples, seed, texts=columns)
    return ask(dataset, _read_row, system_prompt, conversational)


def _read_row(index: int, row: dict) -> dict:
    answer = last_boxed(row["solution"])
    if not answer:
        raise ValueError(
            f"Row {index} has no answer to grade by: its `solution` has no closed \\boxed{{}}. Correct or remove the "
            "row."
        )
    return {"answer": answer, "question": row["problem"], "solution": row["solution"]}


def last_boxed(text: str) -> str | None:
    """What is in the last `\\boxed{}` of a text, with its nested braces; `None` if there is none, or no closed one."""
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
    answer = final_answer(text, lambda line: _EXPRESSION_FIRST.match(line) is not None and not is_list_item(line))
    return None if answer is None or is_step(answer) else answer.translate(ASCII_OF)


def extract_math_answer(text: str | list[dict]) -> str | None:
    """
    The expression after the only marker `####` of a completion: in a `\\boxed{}`, between dollars, or bare.

    `None` if the marker is missing or repeated, if there are digits next to the box or formula (`$5$ or 6`), or if the
    expression is empty, of more than 300 characters, unbalanced, or too large to compute.
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
    1.0 if the expression of a completion equals the gold, else 0.0. The gold is an answer, or a whole solution with
    the answer in its last `\\boxed{}`.
    """
    return math_reward([completion], [gold])[0]


def _read_gold(gold) -> str | None:
    text = gold_text(gold) or ""
    return (last_boxed(text) if "\\boxed" in text else text) or None


def _is_right(answer: str, gold: str) -> bool | None:
    return answer == gold or equal_expressions(f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}")


math_reward = Reward(
    "math_reward",
    GoldRule(_read_gold, "an expression, or a solution with the answer in its last closed `\\boxed{}`"),
    extract_math_answer,
    _is_right,
    check=require_math_verify,
    log_unverified=True,
)
"""[`Reward`] for an expression equal to the gold after exactly one marker `####`; raises an `ImportError` without
math-verify. Logs `unverified` too, the share whose comparison went over the limits of CPU time or memory."""
