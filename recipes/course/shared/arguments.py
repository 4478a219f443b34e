"""What every recipe of the course takes: where its text comes from, where its results go, and the seed."""

from dataclasses import dataclass

from hf_evidenceflow.data.text import load_documents
from hf_evidenceflow.recipes.course.shared.corpus import generate_corpus


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
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether a former run in `output_dir` is replaced.
    """

    output_dir: str = "outputs/course"
    seed: int = 0
    text_file: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    text_column: str = "text"
    max_documents: int = 4000
    overwrite: bool = True

    def __post_init__(self):
        if self.text_file is not None and self.dataset_name is not None:
            raise ValueError(
                f"Give `text_file` ({self.text_file!r}) or `dataset_name` ({self.dataset_name!r}), not both."
            )
        if self.max_documents < 1:
            raise ValueError(f"`max_documents` must be at least 1, got {self.max_documents}.")


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
    return load_documents(source, config=args.dataset_config, text_column=args.text_column)[: args.max_documents]
