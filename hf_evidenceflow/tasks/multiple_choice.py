"""MMLU-STEM and ARC-Challenge: multiple choice with a letter as the answer."""

import reprlib

from ..data.loading import load_split
from .prompts import build_prompt, build_system_prompt


# Physics, chemistry, biology, computer science, mathematics and engineering by the categories of MMLU's authors
MMLU_STEM_SUBJECTS = (
    "abstract_algebra",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
)
MULTIPLE_CHOICE_SYSTEM_PROMPT = build_system_prompt("the letter of the right option")
LETTERS = "ABCDE"


def load_mmlu_stem(
    name_or_path: str = "cais/mmlu",
    split: str = "test",
    conversational: bool = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MULTIPLE_CHOICE_SYSTEM_PROMPT,
    subjects: tuple[str, ...] = MMLU_STEM_SUBJECTS,
):
    """
    Loads the STEM subjects of MMLU, or any set of its format: `question`, `choices` (texts) and `answer` (index of the
    right one).

    Args:
        name_or_path (`str`, *optional*, defaults to `"cais/mmlu"`):
            Name on the Hub, or a local file or folder; see [`load_split`].
        split (`str`, *optional*, defaults to `"test"`):
            Name of the split.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order, which is by subject.
        system_prompt (`str`, *optional*, defaults to `MULTIPLE_CHOICE_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.
        subjects (`tuple[str, ...]`, *optional*, defaults to `MMLU_STEM_SUBJECTS`):
            Configurations to join, for example `("auxiliary_train",)` with `split="train"`.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (a letter), `question` and `solution` (the text of the
        right option).

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_split`], and a `ValueError` for a row without a right option among
        two to five.

    Example:

    ```python
    >>> from hf_evidenceflow.data import load_mmlu_stem

    >>> dataset = load_mmlu_stem(subjects=("college_physics",))
    ```
    """
    from datasets import Dataset

    dataset = load_split(
        name_or_path, split, subjects, ("question", "choices", "answer"), max_samples, seed, ("question",)
    )

    def prepare(index: int, row: dict) -> dict:
        return _multiple_choice(index, row["question"], row["choices"], row["answer"], conversational, system_prompt)

    return Dataset.from_list([prepare(index, row) for index, row in enumerate(dataset)])


def load_arc_challenge(
    name_or_path: str = "allenai/ai2_arc",
    split: str = "train",
    conversational: bool = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MULTIPLE_CHOICE_SYSTEM_PROMPT,
):
    """
    Loads ARC-Challenge, or any set of its format: `question`, `choices` (`text` and `label` lists) and `answerKey` (a
    label).

    Args:
        name_or_path (`str`, *optional*, defaults to `"allenai/ai2_arc"`):
            Name on the Hub, or a local file or folder; see [`load_split`].
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order.
        system_prompt (`str`, *optional*, defaults to `MULTIPLE_CHOICE_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (a letter, also where ARC labels by numbers),
        `question` and `solution` (the text of the right option).

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_split`], and a `ValueError` for a row without a right option among
        two to five.

    Example:

    ```python
    >>> from hf_evidenceflow.data import load_arc_challenge

    >>> dataset = load_arc_challenge(split="validation")
    ```
    """
    from datasets import Dataset

    dataset = load_split(
        name_or_path, split, ("ARC-Challenge",), ("question", "choices", "answerKey"), max_samples, seed, ("question",)
    )

    def prepare(index: int, row: dict) -> dict:
        choices = row["choices"] if isinstance(row["choices"], dict) else {}
        labels, key = choices.get("label") or [], row["answerKey"]
        right = labels.index(key) if key in labels else None
        return _multiple_choice(index, row["question"], choices.get("text"), right, conversational, system_prompt)

    return Dataset.from_list([prepare(index, row) for index, row in enumerate(dataset)])


def _multiple_choice(
    index: int, question: str, options: list[str], right: int | None, conversational: bool, system_prompt: str | None
) -> dict:
    options = options if isinstance(options, list) else []
    written = all(isinstance(option, str) for option in options)
    is_index = isinstance(right, int) and 0 <= right < len(options)
    if not written or not is_index or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(
            f"Row {index} is no question of two to {len(LETTERS)} options with one right: its options are "
            f"{reprlib.repr(options)}, and the index of the right one is {right!r}. Correct or remove the row."
        )
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    prompt = build_prompt(f"{question.strip()}\n{listed}", system_prompt, conversational)
    return {"prompt": prompt, "answer": LETTERS[right], "question": question, "solution": options[right]}
