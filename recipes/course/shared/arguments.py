"""What every recipe of the course takes: where its text comes from, where its results go, and the seed."""

import random
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hf_evidenceflow.data.text import load_documents
from hf_evidenceflow.recipes.course.shared.corpus import generate_corpus


def check_numbers(arguments: Any, may_be_zero: frozenset[str] = frozenset()) -> None:
    """
    Check the numbers of a recipe before it does anything: each one, also in a list, is above 0.

    Args:
        arguments (`Any`):
            A dataclass.
        may_be_zero (`frozenset[str]`, *optional*):
            Fields for which 0 has a meaning.

    Raises:
        `ValueError`: naming the field and its value; or if a list is empty.
    """
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if isinstance(value, list) and not value:
            raise ValueError(f"`{field.name}` is empty. Give at least one value, or leave it out.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if number < 0 or (number == 0 and field.name not in may_be_zero):
                least = "at least 0" if field.name in may_be_zero else "at least 1"
                least = "above 0" if isinstance(number, float) and least == "at least 1" else least
                raise ValueError(f"`{field.name}` must be {least}, got {value}.")


@dataclass
class CourseArguments:
    """
    Text, results and seed of a recipe. A recipe's own arguments derive from it and set `output_dir`.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/course"`):
            Folder of the results.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the text, the weights and the sampling.
        text_file (`str`, *optional*):
            Text to learn from: a text file, or a data file with a text column.
        dataset_name, dataset_config (`str`, *optional*):
            Text from the Hub or a folder, and its configuration, such as `Salesforce/wikitext` and
            `wikitext-2-raw-v1`.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column with the text.
        max_documents (`int`, *optional*, defaults to `4000`):
            Documents to take, or to make: without a text of yours, stories of a small world are made.
        shuffle_documents (`bool`, *optional*, defaults to `False`):
            Whether a text of yours is put in a random order first, so that `max_documents`, and what is held out, are
            a sample of all of it.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether a former run in `output_dir` is replaced.
    """

    may_be_zero: ClassVar[frozenset[str]] = frozenset({"seed"})

    output_dir: str = "outputs/course"
    seed: int = 0
    text_file: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    text_column: str = "text"
    max_documents: int = 4000
    shuffle_documents: bool = False
    overwrite: bool = True

    def __post_init__(self):
        if self.text_file is not None and self.dataset_name is not None:
            raise ValueError(
                f"Give `text_file` ({self.text_file!r}) or `dataset_name` ({self.dataset_name!r}), not both."
            )
        check_numbers(self, self.may_be_zero)


def course_documents(args: CourseArguments) -> list[str]:
    """
    The documents that the arguments name.

    Args:
        args ([`CourseArguments`]):
            Arguments of the recipe.

    Returns:
        `list[str]`: at most `max_documents` documents, in their order.

    Raises:
        `FileNotFoundError`, `ValueError`: as [`~data.text.load_documents`].
    """
    source = args.text_file or args.dataset_name
    if source is None:
        return generate_corpus(args.max_documents, args.seed)
    documents = load_documents(source, config=args.dataset_config, text_column=args.text_column)
    if args.shuffle_documents:
        random.Random(args.seed).shuffle(documents)
    return documents[: args.max_documents]
