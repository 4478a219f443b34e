"""Rows of latent training: read once as token ids, then composed as the stage of the curriculum asks.

Shapes: B rows, T positions, C latent columns, M tokens of a target.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import logging

from ..tasks.prompts import render_prompt
from .data_checks import check_prompt


IGNORE_INDEX = -100
COLUMNS = ("prompt_ids", "step_ids", "answer_ids", "answer_prefix", "target_ids", "target_weights")

logger = logging.get_logger(__name__)


class RowReader:
    """
    Reads rows with `prompt`, `answer` and `steps` or `thought_targets` as token ids.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): it needs an end-of-text token.
        args ([`LatentSFTConfig`]): the objective, the separator and the template of the answer.
        chat_template_kwargs (`dict`, *optional*): for prompts that are chats.
    """

    def __init__(self, tokenizer, args, chat_template_kwargs: dict | None = None):
        self.tokenizer, self.args, self.chat_template_kwargs = tokenizer, args, chat_template_kwargs
        self._ids = functools.lru_cache(10_000)(self._ids)  # short tasks say the same steps again and again
        self.prefix = self._ids(args.answer_template.partition("{answer}")[0].rstrip())
        self._tokens: dict[str, int] = {}

    def _ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _token(self, text, place):
        """Id of a text that must be one token."""
        if text not in self._tokens:
            ids = self._ids(text)
            if len(ids) != 1:
                raise ValueError(
                    f"{place}: the target {text!r} must be one token, but the tokenizer makes {len(ids)} of it: "
                    f"{self.tokenizer.convert_ids_to_tokens(ids)}. Give it another name (mind the space before it), "
                    "cut solutions into tokens, or choose `objective='answer'`, which takes steps of any length."
                )
            if ids[0] == self.tokenizer.unk_token_id and text != self.tokenizer.unk_token:
                raise ValueError(
                    f"{place}: the tokenizer does not know the target {text!r}. Take a name that is one token of it "
                    "(mind the space in front)."
                )
            self._tokens[text] = ids[0]
        return self._tokens[text]

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, list]:
        """The columns [`COLUMNS`] of a row; a `ValueError` that names it if something is missing or wrong."""
        place = f"Row {index} of the data set"
        if row.get("answer") in (None, ""):
            raise ValueError(f"{place} has no `answer`. Give the text of its final answer, or remove the row.")
        check_prompt(row.get("prompt"), self.tokenizer, self.chat_template_kwargs, f"Row {index}")
        steps = list(row.get("steps") or [])
        answer = [*self._ids(self.args.answer_template.format(answer=row["answer"])), self.tokenizer.eos_token_id]
        if answer[: len(self.prefix)] != self.prefix and self.args.objective == "distill":
            raise ValueError(
                f"{place}: the tokens of `answer_template` run into those of the answer {row['answer']!r}, so that "
                "there is no position before it. End the template's text with a space or a line break."
            )
        targets = [] if self.args.objective != "soft_targets" else self._targets(row, steps, place)
        return {
            "prompt_ids": render_prompt(row["prompt"], self.tokenizer, self.chat_template_kwargs)[1],
            "step_ids": [self._ids(step + self.args.step_separator) for step in steps],
            "answer_ids": answer,
            "answer_prefix": len(self.prefix),
            "target_ids": [ids for ids, _ in targets],
            "target_weights": [weights for _, weights in targets],
        }

    def _targets(self, row, steps, place):
        given = row.get("thought_targets")
        if given is None:
            if row.get("steps") is None:
                raise ValueError(
                    f"{place} has neither `thought_targets` nor `steps`, so nothing says what its thoughts should be. "
                    "`thought_targets_from_traces` makes targets from several solutions."
                )
            return [([self._token(step, place)], [1.0]) for step in steps]
        return [self._target(target, f"{place}, thought {number}") for number, target in enumerate(given, 1)]

    def _target(self, target, place):
        given = {text: weight for text, weight in target.items() if weight is not None}
        if not all(isinstance(weight, (int, float)) and 0 <= weight < math.inf for weight in given.values()):
            raise ValueError(f"{place}: weights must be finite numbers of at least 0, got {given}. Correct them.")
        total = sum(given.values())
        if not 0 < total < math.inf:
            raise ValueError(f"{place}: some weight must be positive, got {given}. Correct them, or leave it out.")
        weights: dict[int, float] = {}
        for text, weight in given.items():
            if weight:
                token = self._token(text, place)
                weights[token] = weights.get(token, 0.0) + weight / total
        return list(weights), list(weights.values())


def read_rows(dataset, reader: RowReader, max_length: int | None, name: str = "training") -> Dataset:
    """
    A data set of the columns [`COLUMNS`]; rows of more than `max_length` tokens are dropped and counted, never cut.

    Raises:
        `ValueError`: if a row is wrong (the error names it) or none is left.
    """
    if not isinstance(dataset, (Dataset, Sequence)):
        raise ValueError(
            f"LatentSFTTrainer takes a `datasets.Dataset` or a list of rows, got {type(dataset).__name__}: rows are "
            "checked and composed by the curriculum, which a stream does not allow."
        )
    read = [reader(row, index) for index, row in enumerate(dataset)]
    kept = [row for row in read if max_length is None or _length(row) <= max_length]
    if not kept:
        shortest = min(map(_length, read), default=0)
        raise ValueError(
            f"No {name} row is left: all {len(read)} have more than `max_length={max_length}` tokens (the shortest "
            f"{shortest})."
        )
    if len(kept) < len(read):
        logger.warning(f"Dropped {len(read) - len(kept)} of {len(read)} {name} rows over `max_length={max_length}`.")
    return Dataset.from_list(kept)


def _length(row):
    chain = sum(map(len, row["step_ids"]))
    return len(row["prompt_ids"]) + max(chain, len(row["target_ids"])) + len(row["answer_ids"])


@dataclass
class Composed:
    """A row as a stage asks for it: `head`, ids whose last `thoughts` think, and the `text` after them."""

    head: list[int]
    thoughts: int
    text: list[int]
    answer_at: int  # in the text, of the token before the answer; -1: the last of the head
    target_ids: list[list[int]]
    target_weights: list[list[float]]


def compose(row: Mapping[str, Any], stage: int | None, args, placeholder: int, count: int) -> Composed:
    """
    A row of [`COLUMNS`] with its thoughts.

    Args:
        stage (`int`, *optional*): number of first steps that are thoughts; `None`: all.
        args ([`LatentSFTConfig`]): objective and thoughts per step.
        placeholder (`int`): id at the positions that think.
        count (`int`): thoughts of `distill`.
    """
    targets = row["target_ids"] if stage is None else row["target_ids"][:stage]
    steps: list[list[int]] = []
    if args.objective == "soft_targets":
        thoughts = len(targets)
        if stage is not None:
            steps = row["step_ids"][stage:]
    elif args.objective == "answer":
        stage = len(row["step_ids"]) if stage is None else stage
        thoughts, steps = stage * args.latent_tokens_per_step, row["step_ids"][stage:]
        thoughts = thoughts if args.thinking_count is None else min(thoughts, args.thinking_count)
    else:
        thoughts = count
    text = [token for step in steps for token in step]
    answer_at = len(text) + row["answer_prefix"] - 1
    return Composed(
        row["prompt_ids"] + [placeholder] * thoughts,
        thoughts,
        text + row["answer_ids"],
        answer_at,
        targets,
        row["target_weights"][: len(targets)],
    )


def discrete(row: Mapping[str, Any]) -> Composed:
    """A row whose steps are all text: what the teacher of `distill` writes."""
    text = [token for step in row["step_ids"] for token in step]
    at = len(text) + row["answer_prefix"] - 1
    return Composed(row["prompt_ids"], 0, text + row["answer_ids"], at, [], [])


def batch_rows(rows: Sequence[Composed], pad: int) -> dict[str, torch.Tensor]:
    """
    Pad rows to a batch. Thoughts of all rows end in the same column, so that a batch costs as many passes as its row
    with most thoughts; without thoughts rows are padded on the right, as in [`~trl.SFTTrainer`].

    Returns:
        `dict`: `input_ids`, `attention_mask`, `labels` `(B, T)`, `answer_at` `(B,)`, the column before the answer, and
        with thoughts `latent_mask` `(B, T)`, and with targets `target_ids`, `target_weights` `(B, C, M)`.
    """
    latent = max(row.thoughts for row in rows)
    left = max(len(row.head) for row in rows) if latent else 0
    width = max((left or len(row.head)) + len(row.text) for row in rows)
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    latent_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    answer_at = torch.empty(len(rows), dtype=torch.long)
    target_ids = _padded_targets([row.target_ids for row in rows], latent, torch.long)
    target_weights = _padded_targets([row.target_weights for row in rows], latent, torch.float)
    for index, row in enumerate(rows):
        end = left or len(row.head)
        start = end - len(row.head)
        ids[index, start : end + len(row.text)] = torch.tensor(row.head + row.text)
        attention[index, start : end + len(row.text)] = 1
        labels[index, end : end + len(row.text)] = torch.tensor(row.text)
        latent_mask[index, end - row.thoughts : end] = True
        answer_at[index] = end + row.answer_at
        best = [tokens[weights.index(max(weights))] for tokens, weights in zip(row.target_ids, row.target_weights)]
        if best:
            # Counted as a predicted token by Trainer; the loss leaves the cross-entropy of these out
            labels[index, end - row.thoughts : end - row.thoughts + len(best)] = torch.tensor(best)
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels, "answer_at": answer_at}
    if latent:
        batch["latent_mask"] = latent_mask
    if latent and target_ids.shape[2]:
        batch |= {"target_ids": target_ids, "target_weights": target_weights}
    return batch


def _padded_targets(rows: Sequence[list[list]], latent: int, dtype: torch.dtype) -> torch.Tensor:
    """The numbers `(B, C, M)` of the targets, those of a row in its last columns; 0 elsewhere."""
    most = max((len(target) for row in rows for target in row), default=0)
    padded = [
        [[0] * most] * (latent - len(row)) + [[*target, *[0] * (most - len(target))] for target in row] for row in rows
    ]
    return torch.tensor(padded, dtype=dtype).view(len(rows), latent, most)
