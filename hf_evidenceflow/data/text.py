"""Loads plain text as documents: from text files, data files, the Hub, or a generator."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..files import read_text
from ..tasks.word_problems import split_word_problems
from .loading import data_format, load_split


END_OF_TEXT = "<|endoftext|>"


def load_documents(
    name_or_path: str,
    split: str = "train",
    config: str | None = None,
    text_column: str = "text",
    separator: str | None = END_OF_TEXT,
) -> list[str]:
    """
    Loads the documents of one split that are more than white space.

    Args:
        name_or_path (`str`):
            A text file; or what [`load_split`] takes, with a text column; a folder may also hold `{split}.txt`.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split. A text file is taken as it is.
        config (`str`, *optional*):
            Configuration of a data set that has them, such as `"wikitext-2-raw-v1"`.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column with the text; each row is a document.
        separator (`str`, *optional*, defaults to `"<|endoftext|>"`):
            Ends a document in a text file. A file without it, or `None`, is one document.

    Raises:
        `FileNotFoundError`: if there is no such file, folder or data set.
        `ValueError`: if a file cannot be read, or holds no text.
    """
    path = Path(name_or_path).expanduser()
    inside = path / f"{split}.txt"
    if inside.is_file():
        path = inside
    if path.suffix == ".txt" or (path.is_file() and data_format(path) is None):
        text = read_text(path)
        documents = text.split(separator) if separator else [text]
    else:
        configs = () if config is None else (config,)
        documents = load_split(
            name_or_path, split=split, configs=configs, columns=(text_column,), texts=(text_column,)
        )[text_column]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text. Check that it was written or downloaded whole.")
    return documents


def generate_documents(train: int = 4000, validation: int = 400, seed: int = 0) -> tuple[list[str], list[str]]:
    """
    Short texts in simple English for training and for validation, without any download: word problems with their
    solutions, no text in both.
    """
    splits = split_word_problems(train=train, test=validation, seed=seed)
    return tuple([f"{row['question']}\n{row['answer']}" for row in splits[name]] for name in ("train", "test"))


def split_documents(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """
    Holds out the last documents for validation, of a single document its end: a `share` of the documents, or of its
    characters, in (0, 1). A `ValueError` if nothing is left to train on.
    """
    if not 0 < share < 1:
        raise ValueError(f"`validation_share` must be in (0, 1), got {share}.")
    if len(documents) == 1:
        text = documents[0]
        border = text.rfind(" ", 0, len(text) - math.ceil(share * len(text)))
        train, validation = [text[:border]] if border > 0 else [], [text[border:]]
    else:
        held_out = math.ceil(share * len(documents))
        train, validation = list(documents[:-held_out]), list(documents[-held_out:])
    if not train:
        raise ValueError(
            f"A `validation_share` of {share} of {len(documents)} documents leaves nothing to train on. Take a "
            "smaller one, or give more text."
        )
    return train, validation
