"""GPQA: questions of experts in biology, physics and chemistry, with a letter from A to D as the answer."""

import hashlib

from ..data.loading import load_split
from .multiple_choice import MULTIPLE_CHOICE_SYSTEM_PROMPT, read_options
from .prompts import ask


_RIGHT, _WRONG = "Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def load_gpqa(
    name_or_path: str = "Idavidrein/gpqa",
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = MULTIPLE_CHOICE_SYSTEM_PROMPT,
    subset: str = "gpqa_diamond",
):
    """
    Loads GPQA, or any set of its format: `Question`, `Correct Answer` and `Incorrect Answer 1` to `3`. The options are
    listed in the order of their hashes, so that a question has the same letters in each run.

    Args:
        subset (`str`, *optional*, defaults to `"gpqa_diamond"`):
            Configuration: `gpqa_diamond`, `gpqa_main` or `gpqa_extended`.

    The other arguments are those of all loaders, see [`hf_evidenceflow.tasks`]; columns as of [`load_mmlu_stem`].
    """
    columns = ("Question", _RIGHT, *_WRONG)
    dataset = load_split(name_or_path, split, (subset,), columns, max_samples, seed, texts=columns)
    return ask(dataset, _read_row, system_prompt, conversational)


def _read_row(index: int, row: dict) -> dict:
    question, right = row["Question"].strip(), row[_RIGHT].strip()
    options = [right, *(row[column].strip() for column in _WRONG)]
    options.sort(key=lambda option: hashlib.sha256(f"{question}\n{option}".encode()).digest())
    return read_options(index, question, options, options.index(right) if options.count(right) == 1 else None)
