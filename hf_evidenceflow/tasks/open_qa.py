"""Open-domain question answering with retrieved contexts and one or several gold answers."""

from ..data.loading import load_split
from .prompts import build_prompt, build_system_prompt


OPEN_QA_SYSTEM_PROMPT = build_system_prompt("a name or a few words")

_CONTEXT_COLUMNS = ("contexts", "context")
_ANSWER_COLUMNS = ("golden_answers", "answers", "answer")


def load_open_qa(
    name_or_path: str,
    split: str = "train",
    conversational: bool = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = OPEN_QA_SYSTEM_PROMPT,
    max_contexts: int = 3,
):
    """
    Loads questions with contexts: `question`; `contexts` (texts) or `context` (one text); and `golden_answers`,
    `answers` or `answer`.

    Args:
        name_or_path (`str`):
            Name on the Hub, or a local file or folder; see [`load_split`]. The format of SQuAD is read too.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        conversational (`bool`, *optional*, defaults to `True`):
            Whether prompts are chat messages; see [`build_prompt`].
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order.
        system_prompt (`str`, *optional*, defaults to `OPEN_QA_SYSTEM_PROMPT`):
            Instruction before the question; `None` for the question alone.
        max_contexts (`int`, *optional*, defaults to `3`):
            Number of contexts to show, the first ones. 0 asks without contexts.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (the list of gold answers) and `question`.

    Raises:
        `FileNotFoundError`, `ValueError`: as [`load_split`], and a `ValueError` for missing columns or a row without a
        gold answer.

    Example:

    ```python
    >>> from hf_evidenceflow.data import load_open_qa

    >>> dataset = load_open_qa("path/to/questions", split="test")
    ```
    """
    from datasets import Dataset

    if max_contexts < 0:
        raise ValueError(f"`max_contexts` must be 0 or more, got {max_contexts}.")
    dataset = load_split(name_or_path, split, (), ("question",), max_samples, seed, ("question",))
    context_column = _first_column(dataset, _CONTEXT_COLUMNS) if max_contexts else None
    answer_column = _first_column(dataset, _ANSWER_COLUMNS)

    def prepare(index: int, row: dict) -> dict:
        answers = _texts(row[answer_column])
        if not answers:
            raise ValueError(f"Row {index} has no gold answer in `{answer_column}`. Correct or remove the row.")
        contexts = _texts(row[context_column])[:max_contexts] if context_column else []
        listed = "".join(f"[{number}] {context.strip()}\n" for number, context in enumerate(contexts, 1))
        asked = (
            f"Passages, of which some may not help:\n{listed}\n{row['question'].strip()}"
            if listed
            else row["question"]
        )
        return {
            "prompt": build_prompt(asked, system_prompt, conversational),
            "answer": answers,
            "question": row["question"],
        }

    return Dataset.from_list([prepare(index, row) for index, row in enumerate(dataset)])


def _first_column(dataset, names: tuple[str, ...]) -> str:
    for name in names:
        if name in dataset.column_names:
            return name
    raise ValueError(
        f"The data set lacks a column of {' or '.join(names)}: found are {', '.join(dataset.column_names)}. Rename "
        "the columns of the data set."
    )


def _texts(value) -> list[str]:
    """The texts of a column that holds one text, a list of them, or SQuAD's `{"text": [...]}`."""
    if isinstance(value, dict):
        value = value.get("text")
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]
