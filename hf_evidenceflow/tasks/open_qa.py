"""Open-domain question answering with retrieved contexts, by exact match with one of several golds."""

import re
import string

from ..data.loading import load_split
from .grading import GoldRule, Reward, gold_text
from .prompts import ask, build_system_prompt
from .text import completion_text, final_answer, is_step, unwrap


OPEN_QA_SYSTEM_PROMPT = build_system_prompt("a name or a few words")

_CONTEXT_COLUMNS = ("contexts", "context")
_ANSWER_COLUMNS = ("golden_answers", "answers", "answer")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_open_qa(
    name_or_path: str,
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = OPEN_QA_SYSTEM_PROMPT,
    max_contexts: int = 3,
):
    """
    Loads questions with contexts: `question`; `contexts` (texts) or `context` (one text); and `golden_answers`,
    `answers` or `answer`. The format of SQuAD is read too.

    Args:
        max_contexts (`int`, *optional*, defaults to `3`):
            Number of contexts to show, the first ones. 0 asks without contexts.

    The other arguments are those of all loaders, see [`hf_evidenceflow.tasks`].

    Returns:
        `datasets.Dataset`: with the columns `prompt`, `answer` (the list of gold answers) and `question`.
    """
    if max_contexts < 0:
        raise ValueError(f"`max_contexts` must be 0 or more, got {max_contexts}.")
    dataset = load_split(name_or_path, split, (), ("question",), max_samples, seed, texts=("question",))
    context_column = _first_column(dataset, _CONTEXT_COLUMNS) if max_contexts else None
    answer_column = _first_column(dataset, _ANSWER_COLUMNS)

    def read_row(index: int, row: dict) -> dict:
        answers = _texts(row[answer_column])
        if not answers:
            raise ValueError(f"Row {index} has no gold answer in `{answer_column}`. Correct or remove the row.")
        contexts = _texts(row[context_column])[:max_contexts] if context_column else []
        return {"asked": _asked(row["question"], contexts), "answer": answers, "question": row["question"]}

    return ask(dataset, read_row, system_prompt, conversational)


def _asked(question: str, contexts: list[str]) -> str:
    if not contexts:
        return question
    listed = "".join(f"[{number}] {context.strip()}\n" for number, context in enumerate(contexts, 1))
    return f"Passages, of which some may not help:\n{listed}\n{question.strip()}"


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


def normalize_answer(text: str) -> str:
    """
    Lower case, without punctuation, articles and extra white space; as the evaluation script of
    [SQuAD](https://huggingface.co/papers/1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def extract_open_answer(text: str | list[dict]) -> str | None:
    """
    The normalized answer after the only marker `####` of a completion, a text or TRL's chat messages; `None` if there
    is not exactly one marker, or nothing but punctuation and articles after it.
    """
    answer = final_answer(completion_text(text), lambda line: bool(normalize_answer(line)) and not is_step(line))
    return normalize_answer(unwrap(answer or "")) or None


def _read_gold(gold) -> list[str] | None:
    """The normalized golds of a text, or of a list of texts; `None` if one is no text, or if nothing is left."""
    texts = [gold_text(one) for one in (gold if isinstance(gold, (list, tuple)) else [gold])]
    if None in texts:
        return None
    return list(filter(None, map(normalize_answer, texts))) or None


def _is_right(answer: str, golds: list[str]) -> bool:
    return answer in golds


open_qa_reward = Reward(
    "open_qa_reward",
    GoldRule(_read_gold, "a text, or a list of texts that all count as right"),
    extract_open_answer,
    _is_right,
)
"""[`Reward`] for one of the gold answers, normalized, after exactly one marker `####`."""
