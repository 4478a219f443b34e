"""AIME: competition problems with an integer from 0 to 999 as the answer, 30 a year."""

from ..data.loading import load_split
from .gsm8k import gold_rule
from .prompts import ask, build_system_prompt


AIME_SYSTEM_PROMPT = build_system_prompt("an integer from 0 to 999")

_read_number = gold_rule()


def load_aime(
    name_or_path: str = "MathArena/aime_2026",
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = AIME_SYSTEM_PROMPT,
):
    """
    Loads a year of AIME: `problem`, and `answer`, an integer or its digits. Arguments and errors are those of all
    loaders, see [`hf_evidenceflow.tasks`]; graded as GSM8K is.

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (digits, without zeros before them) and `question`.
    """
    dataset = load_split(name_or_path, split, (), ("problem", "answer"), max_samples, seed, texts=("problem",))
    return ask(dataset, _read_row, system_prompt, conversational)


def _read_row(index: int, row: dict) -> dict:
    answer = _read_number.read(row["answer"])
    if answer is None or not answer.isdigit() or int(answer) > 999:
        raise ValueError(
            f"Row {index} has no answer to grade by: `answer` is {row['answer']!r}, but must be an integer from 0 to "
            "999. Correct or remove the row."
        )
    return {"answer": answer, "question": row["problem"]}
