"""Rows of one's own: a `prompt` or a `question`, and a short `answer`, by exact match."""

from ..data.loading import load_split
from .grading import GoldRule, Reward, gold_text
from .numbers import format_number, parse_number
from .prompts import build_prompt, build_system_prompt
from .text import MARKER, final_answer, is_step, unwrap


ROWS_SYSTEM_PROMPT = build_system_prompt("a number, a name or a few words")


def load_rows(
    name_or_path: str,
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = ROWS_SYSTEM_PROMPT,
):
    """
    Loads rows with `prompt` (a text or chat messages, which stay as they are) or `question` (a text, which is asked
    as in the other tasks), and `answer`, a short text or a number, which may stand behind a solution and `####`. The
    arguments are those of all loaders, see [`hf_evidenceflow.tasks`]; other columns are left out.

    Returns:
        `datasets.Dataset`: with the columns `prompt` and `answer`.
    """
    from datasets import Dataset

    dataset = load_split(name_or_path, split, (), ("answer",), max_samples, seed)
    column = prompt_column(dataset, name_or_path)
    prompts, answers = dataset[column], dataset["answer"]
    return Dataset.from_list(
        [
            {
                "prompt": read_prompt(index, prompt, column, system_prompt, conversational),
                "answer": read_answer(index, answer),
            }
            for index, (prompt, answer) in enumerate(zip(prompts, answers))
        ]
    )


def prompt_column(dataset, name: str) -> str:
    """`"prompt"` or else `"question"`; a `ValueError` if the data set has neither."""
    for column in ("prompt", "question"):
        if column in dataset.column_names:
            return column
    raise ValueError(
        f"{name} lacks the columns prompt or question, of which one is needed; found are "
        f"{', '.join(dataset.column_names)}. Rename the columns of the data set."
    )


def read_prompt(index: int, value, column: str, system_prompt: str | None, conversational: bool | str):
    """A prompt of a row for the trainers; a `ValueError` that names the row if it is empty or no text."""
    if not value or not isinstance(value, str if column == "question" else (str, list)):
        raise ValueError(f"Row {index} has no `{column}`, but {value!r}. Correct or remove the row.")
    return value if column == "prompt" else build_prompt(value, system_prompt, conversational)


def read_answer(index: int, value) -> str:
    """The answer of a row, what stands behind its last `####`; a `ValueError` that names the row if there is none."""
    answer = gold_text(value)
    if not answer:
        raise ValueError(
            f"Row {index} has no answer to grade by: `answer` is {value!r}, but must be a short text, a number, or "
            f"end in `{MARKER} <answer>`. Correct or remove the row."
        )
    return answer


def extract_short_answer(text: str) -> str | None:
    """
    The answer behind the only marker `####` of a completion, a number in plain writing or a text in lower case and
    without white space around it; `None` if there is not exactly one marker or nothing behind it.
    """
    answer = final_answer(text, lambda line: bool(line) and not is_step(line))
    return _plain(unwrap(answer or ""))


def _read_gold(gold) -> str | None:
    return _plain(gold_text(gold) or "")


def _plain(text: str) -> str | None:
    text = " ".join(text.casefold().split()).removesuffix(".")
    number = parse_number(text) if text[:1].isdigit() or text[:1] in "+-.$" else None
    return (text or None) if number is None else format_number(number)


rows_reward = Reward("rows_reward", GoldRule(_read_gold, "a short text or a number"), extract_short_answer)
"""[`Reward`] for the answer of a row, in any case and spacing, after exactly one marker `####`."""
