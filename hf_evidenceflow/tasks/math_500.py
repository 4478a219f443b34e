"""MATH-500: 500 test problems of MATH, whose answers stand in a column of their own."""

from ..data.loading import load_split
from .math import MATH_SYSTEM_PROMPT
from .prompts import ask


def load_math_500(
    name_or_path: str = "HuggingFaceH4/MATH-500",
    split: str = "test",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MATH_SYSTEM_PROMPT,
):
    """
    Loads MATH-500, or any set of its format: `problem`, `solution` and `answer` (an expression in LaTeX). Arguments as
    in [`hf_evidenceflow.tasks`], columns as of [`load_math`]; graded by [`math_reward`].
    """
    columns = ("problem", "solution", "answer")
    dataset = load_split(name_or_path, split, (), columns, max_samples, seed, texts=columns)
    return ask(dataset, _read_row, system_prompt, conversational)


def _read_row(index: int, row: dict) -> dict:
    if not row["answer"].strip():
        raise ValueError(f"Row {index} has no answer to grade by. Correct or remove the row.")
    return {"answer": row["answer"].strip(), "question": row["problem"], "solution": row["solution"]}
