"""MATH: competition problems with an expression as the answer."""

from ..data.loading import load_split
from .math_reward import last_boxed
from .prompts import build_prompt, build_system_prompt


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


def load_math(
    name_or_path: str = "EleutherAI/hendrycks_math",
    split: str = "train",
    conversational: bool = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MATH_SYSTEM_PROMPT,
    subjects: tuple[str, ...] = MATH_SUBJECTS,
):
    """
    Loads MATH, or any set of its format: a `problem`, and a `solution` with the answer in its last `\\boxed{}`.

    Args:
        name_or_path (`str`, *optional*, defaults to `"EleutherAI/hendrycks_math"`):
            Name on the Hub, or a local file or folder; see [`load_split`].
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order, which is by subject.
        system_prompt (`str`, *optional*, defaults to `MATH_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.
        subjects (`tuple[str, ...]`, *optional*, defaults to `MATH_SUBJECTS`):
            Configurations to join; `()` for a data set on the Hub that has none.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (what is in the box), `question` and `solution`.

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_split`], and a `ValueError` for a row without a box.

    Example:

    ```python
    >>> from hf_evidenceflow.data import load_math

    >>> dataset = load_math(split="test", max_samples=500, seed=0)
    ```
    """
    from datasets import Dataset

    dataset = load_split(
        name_or_path, split, subjects, ("problem", "solution"), max_samples, seed, ("problem", "solution")
    )

    def prepare(index: int, row: dict) -> dict:
        answer = last_boxed(row["solution"])
        if not answer:
            raise ValueError(
                f"Row {index} has no answer to grade by: its `solution` has no closed \\boxed{{}}. Correct or remove "
                "the row."
            )
        prompt = build_prompt(row["problem"], system_prompt, conversational)
        return {"prompt": prompt, "answer": answer, "question": row["problem"], "solution": row["solution"]}

    return Dataset.from_list([prepare(index, row) for index, row in enumerate(dataset)])
