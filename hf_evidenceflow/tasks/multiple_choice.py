"""MMLU-STEM and ARC-Challenge: multiple choice with a letter as the answer, A to E."""

import re
import reprlib

from ..data.loading import load_split
from .grading import GoldRule, Reward, gold_text
from .prompts import ask, build_system_prompt
from .text import LEAD, completion_text, final_answer, unwrap


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

_MAX_LENGTH = 1000  # characters after the marker

_ALONE = re.compile(rf"{LEAD}([A-Ea-e])[\W_]*")
_LABEL = re.compile(rf"{LEAD}([A-E])(?:[.):]\s|\)?\s+[-\u2013\u2014]+\s(?!\W*[A-E]\W*$)|,?\s+(?:because|since)\b)")
# A letter, but not the article of a heading: "A closer look"
_LETTER_FIRST = re.compile(rf"{LEAD}[A-Ea-e](?![\w'])(?!\s+(?!(?:and|or|not|because|since)\b)\w)")
_SECOND_CHOICE = re.compile(r"\b[A-E][.):]|(?:\b(?:and|or|not)|[/,&])\W?[A-E]\b")


def load_mmlu_stem(
    name_or_path: str = "cais/mmlu",
    split: str = "test",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MULTIPLE_CHOICE_SYSTEM_PROMPT,
    subjects: tuple[str, ...] = MMLU_STEM_SUBJECTS,
):
    """
    Loads the STEM subjects of MMLU, or any set of its format: `question`, `choices` (texts) and `answer` (index of the
    right one).

    Args:
        subjects (`tuple[str, ...]`, *optional*, defaults to `MMLU_STEM_SUBJECTS`):
            Configurations to join, for example `("auxiliary_train",)` with `split="train"`.

    The other arguments are those of all loaders, see [`hf_evidenceflow.tasks`].

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (a letter), `question` and `solution` (the text of the
        right option).
    """
    columns = ("question", "choices", "answer")
    dataset = load_split(name_or_path, split, subjects, columns, max_samples, seed, texts=("question",))
    return ask(dataset, _read_mmlu_row, system_prompt, conversational)


def load_arc_challenge(
    name_or_path: str = "allenai/ai2_arc",
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MULTIPLE_CHOICE_SYSTEM_PROMPT,
):
    """
    Loads ARC-Challenge, or any set of its format: `question`, `choices` (`text` and `label` lists) and `answerKey` (a
    label). Arguments as in [`hf_evidenceflow.tasks`], columns as of [`load_mmlu_stem`], also where ARC labels by
    numbers.
    """
    columns = ("question", "choices", "answerKey")
    dataset = load_split(name_or_path, split, ("ARC-Challenge",), columns, max_samples, seed, texts=("question",))
    return ask(dataset, _read_arc_row, system_prompt, conversational)


def _read_mmlu_row(index: int, row: dict) -> dict:
    return read_options(index, row["question"], row["choices"], row["answer"])


def _read_arc_row(index: int, row: dict) -> dict:
    choices = row["choices"] if isinstance(row["choices"], dict) else {}
    labels, key = choices.get("label") or [], row["answerKey"]
    return read_options(index, row["question"], choices.get("text"), labels.index(key) if key in labels else None)


def read_options(index: int, question: str, options: list[str], right: int | None) -> dict:
    """The columns of a question with these options, of which that with the index `right` is right."""
    options = options if isinstance(options, list) else []
    written = all(isinstance(option, str) for option in options)
    is_index = isinstance(right, int) and 0 <= right < len(options)
    if not written or not is_index or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(
            f"Row {index} is no question of two to {len(LETTERS)} options with one right: its options are "
            f"{reprlib.repr(options)}, and the index of the right one is {right!r}. Correct or remove the row."
        )
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    asked = f"{question.strip()}\n{listed}"
    return {"asked": asked, "answer": LETTERS[right], "question": question, "solution": options[right]}


def extract_choice(text: str | list[dict]) -> str | None:
    """
    The letter from A to E after the only marker `####` of a completion, a text or TRL's chat messages; `None` if there
    is not exactly one marker, or not exactly one choice after it.

    The letter stands alone (`B`, `(b)`, `The answer is B.`), as the label of its option (`B. A red cell`, `B) 42`) or
    before a reason (`B - because`), and in a box, `\\text{}` or bold type too. Two letters (`B or C`), two boxes, and
    a letter that begins a sentence (`A red cell`), are no choice.
    """
    answer = final_answer(completion_text(text), lambda line: _LETTER_FIRST.match(unwrap(line)) is not None)
    return None if answer is None else _choice(answer)


def _choice(answer: str) -> str | None:
    if len(answer) > _MAX_LENGTH:
        return None
    answer = unwrap(answer)
    alone = _ALONE.fullmatch(answer)
    if alone:
        return alone[1].upper()
    label = _LABEL.match(answer)
    return label[1] if label and not _SECOND_CHOICE.search(answer, label.end()) else None


def _read_gold(gold) -> str | None:
    return _choice(gold_text(gold) or "")


multiple_choice_reward = Reward(
    "multiple_choice_reward",
    GoldRule(_read_gold, "a letter from A to E (the loaders turn the index of an option into its letter)"),
    extract_choice,
)
"""[`Reward`] for the right letter after exactly one marker `####`."""
