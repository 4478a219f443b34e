"""GSM8K: grade-school word problems with a number as the answer."""

from ..data.loading import load_split
from .golds import gold_text
from .numbers import parse_number
from .prompts import build_prompt, build_system_prompt


GSM8K_SYSTEM_PROMPT = build_system_prompt("a number without unit")


def load_gsm8k(
    name_or_path: str = "openai/gsm8k",
    split: str = "train",
    conversational: bool = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = GSM8K_SYSTEM_PROMPT,
):
    """
    Loads GSM8K, or any set of its format: a `question`, and an `answer` that ends in `#### <number>`.

    Args:
        name_or_path (`str`, *optional*, defaults to `"openai/gsm8k"`):
            Name on the Hub, or a local file or folder; see [`load_split`].
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order.
        system_prompt (`str`, *optional*, defaults to `GSM8K_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (the final answer), `question` and `solution` (the
        whole answer column).

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_split`], and a `ValueError` for a row without a number to grade
        by.

    Example:

    ```python
    >>> from hf_evidenceflow.data import load_gsm8k

    >>> dataset = load_gsm8k("path/to/gsm8k", split="test", max_samples=100)
    ```
    """
    dataset = load_split(name_or_path, split, ("main",), ("question", "answer"), max_samples, seed, ("question",))
    return prepare_gsm8k(dataset, conversational, system_prompt)


def prepare_gsm8k(dataset, conversational: bool = True, system_prompt: str | None = GSM8K_SYSTEM_PROMPT):
    """
    Brings rows of GSM8K's format into the columns that the trainers take.

    Args:
        dataset (`datasets.Dataset`):
            Data set with the columns `question` and `answer`.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        system_prompt (`str`, *optional*, defaults to `GSM8K_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (the final answer), `question` and `solution` (the
        whole answer column).

    Raises:
        `ValueError`: if a row has no number to grade by.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_evidenceflow.data import generate_word_problems, prepare_gsm8k

    >>> problems = Dataset.from_list(generate_word_problems(8, seed=0))
    >>> dataset = prepare_gsm8k(problems, conversational=False, system_prompt=None)
    ```
    """
    from datasets import Dataset

    def prepare(index: int, row: dict) -> dict:
        gold = gold_text(row["answer"])
        if gold is None or parse_number(gold) is None:
            raise ValueError(
                f"Row {index} has no answer to grade by: `answer` is {row['answer']!r}, but must end in `#### "
                "<number>` or be a number. Correct or remove the row."
            )
        prompt = build_prompt(row["question"], system_prompt, conversational)
        return {"prompt": prompt, "answer": gold, "question": row["question"], "solution": str(row["answer"])}

    return Dataset.from_list([prepare(index, row) for index, row in enumerate(dataset)])
