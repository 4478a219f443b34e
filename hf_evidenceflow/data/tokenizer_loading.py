"""Loads the tokenizer that was saved next to a model."""

import os

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ..models.weights import check_model_folder, naming_folder


def load_tokenizer(path_or_id: str | os.PathLike, **kwargs):
    """
    `AutoTokenizer.from_pretrained`, but a tokenizer of no family is taken as it was saved.

    transformers 5 gives the folder of a plain Qwen2 model a `Qwen2Tokenizer`, whatever tokenizer was saved there, and
    so splits text otherwise than the model was trained on. An `OSError` or `ValueError` names the folder if a file of
    it is damaged.
    """
    check_model_folder(path_or_id)
    with naming_folder(path_or_id):
        declared = get_tokenizer_config(path_or_id, **kwargs).get("tokenizer_class")
        plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
        tokenizer = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(path_or_id, **kwargs)
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest > 0:
        raise ValueError(
            f"`model_max_length` of the tokenizer `{path_or_id}` must be a number above 0, got {longest!r}. Correct "
            "its tokenizer_config.json."
        )
    return tokenizer
