"""Refuses token ids that a model has no embedding for, before they end in an index error of a forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Subset

from ..tasks.prompts import render_prompt
from .packing import TokenRows
from .token_blocks import TokenBlocks


def check_token_ids(ids: Sequence[int] | np.ndarray, model, source: str) -> None:
    """
    Raises a `ValueError` that names the `source` if an id is not one of the tokens of the model (or of an adapter's).
    """
    size = model.get_input_embeddings().num_embeddings
    if len(ids) == 0:
        return
    for extreme in (int(np.min(ids)), int(np.max(ids))):
        if not 0 <= extreme < size:
            raise ValueError(
                f"{source} has the token id {extreme}, but the model has {size} tokens, from 0 to {size - 1}. Take "
                "the model's own tokenizer, or give the model more embeddings with `model.resize_token_embeddings`."
            )


def check_rows(rows: Any, model, name: str = "The data set") -> None:
    """
    [`check_token_ids`] for [`TokenRows`], [`TokenBlocks`], a subset of these, or a `datasets.Dataset` with the column
    `input_ids`; `name` says what they are, for the error. Anything else, such as a stream, is not read.
    """
    if isinstance(rows, Subset):
        rows = rows.dataset
    if isinstance(rows, TokenRows):
        check_token_ids(rows.columns["input_ids"].reshape(-1), model, name)
    elif isinstance(rows, TokenBlocks):
        for shard in rows.shards:
            check_token_ids(shard, model, name)
    elif isinstance(rows, Dataset) and "input_ids" in rows.column_names:
        for batch in rows.select_columns("input_ids").with_format("arrow").iter(1000):
            check_token_ids(batch["input_ids"].combine_chunks().flatten().to_numpy(), model, name)


def check_prompt_tokens(prompts: Sequence[Any], tokenizer, model, chat_template_kwargs: dict | None = None) -> None:
    """
    [`check_token_ids`] for prompts that are still texts or chats, and for the tokenizer's padding. The prompts are
    only encoded if the tokenizer has tokens that the model has not.
    """
    if tokenizer.pad_token_id is not None:
        check_token_ids([tokenizer.pad_token_id], model, f"The padding token {tokenizer.pad_token!r} of the tokenizer")
    if max(tokenizer.get_vocab().values(), default=0) < model.get_input_embeddings().num_embeddings:
        return
    for row, prompt in enumerate(prompts):
        check_token_ids(render_prompt(prompt, tokenizer, chat_template_kwargs)[1], model, f"Prompt {row}")
