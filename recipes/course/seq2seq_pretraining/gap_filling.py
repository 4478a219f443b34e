"""
The same gaps filled by both kinds of model: T5 sees the text on both sides, the causal model the left side only.

Shapes: N gaps, T tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_corruption import split_spans
from hf_evidenceflow.rollouts.generation_settings import own_generation_config


class Gap(NamedTuple):
    """
    A row with a gap.

    Args:
        left, hidden, right (`list[int]`):
            Tokens before, in and after the gap.
    """

    left: list[int]
    hidden: list[int]
    right: list[int]


class Filling(NamedTuple):
    """
    What a model put into a gap.

    Args:
        tokens (`list[int]`):
            The tokens. A causal model does not say where they end: as many as the gap has.
        begins_right (`bool`):
            Whether the first tokens, as many as were hidden, are the hidden ones.
        exact (`bool`):
            Whether the model also ended there. `False` for a causal model, which cannot.
    """

    tokens: list[int]
    begins_right: bool
    exact: bool


def draw_gaps(rows: Sequence[Sequence[int]], lengths: Sequence[int], count: int, margin: int, seed: int) -> list[Gap]:
    """
    Gaps of given lengths at random places.

    Args:
        rows (`Sequence[Sequence[int]]`):
            Rows of token ids.
        lengths (`Sequence[int]`):
            Lengths of the gaps, which take turns.
        count (`int`):
            Number of gaps.
        margin (`int`):
            Fewest tokens on either side.
        seed (`int`):
            Seed of rows and places.

    Returns:
        `list[Gap]`: the gaps.

    Raises:
        `ValueError`: if a row is too short for the longest gap.
    """
    shortest, needed = min(map(len, rows)), max(lengths) + 2 * margin
    if shortest < needed or min(lengths) < 1:
        raise ValueError(
            f"Gaps of {list(lengths)} tokens with {margin} on either side need rows of {needed}, got {shortest}. Take "
            "shorter gaps, of 1 or more, or longer rows."
        )
    generator, gaps = torch.Generator().manual_seed(seed), []
    for index in range(count):
        length = lengths[index % len(lengths)]
        row = list(map(int, rows[int(torch.randint(len(rows), (), generator=generator))]))
        places = len(row) - length - 2 * margin + 1
        start = margin + int(torch.randint(places, (), generator=generator))
        gaps.append(Gap(row[:start], row[start : start + length], row[start + length :]))
    return gaps


def fill_from_both_sides(
    model, gaps: Sequence[Gap], sentinels: Sequence[int], eos: int, pad: int, batch_size: int = 64
) -> list[Filling]:
    """
    Fill gaps with a span-corruption model, greedily.

    Args:
        model ([`~transformers.T5ForConditionalGeneration`]):
            The model.
        gaps (`Sequence[Gap]`):
            The gaps; the model is not told their lengths.
        sentinels (`Sequence[int]`):
            Ids of the sentinels; the first one stands for the gap.
        eos, pad (`int`):
            Ids of the end of a target and of padding.
        batch_size (`int`, *optional*, defaults to `64`):
            Gaps at once.

    Returns:
        `list[Filling]`: one a gap.
    """
    longest = max(len(gap.hidden) for gap in gaps)
    inputs = [[*gap.left, sentinels[0], *gap.right, eos] for gap in gaps]
    fillings = []
    for gap, generated in zip(gaps, generate_targets(model, inputs, pad, longest + 3, batch_size)):
        tokens = split_spans(generated, sentinels, eos).get(sentinels[0], [])
        fillings.append(Filling(tokens, tokens[: len(gap.hidden)] == gap.hidden, tokens == gap.hidden))
    return fillings


def generate_targets(
    model, inputs: Sequence[Sequence[int]], pad: int, max_new_tokens: int, batch_size: int = 64
) -> list[list[int]]:
    """
    Greedy targets of an encoder-decoder.

    Args:
        model ([`~transformers.T5ForConditionalGeneration`]):
            The model.
        inputs (`Sequence[Sequence[int]]`):
            Inputs with their EOS.
        pad (`int`):
            Id of padding.
        max_new_tokens (`int`):
            Most tokens of a target.
        batch_size (`int`, *optional*, defaults to `64`):
            Inputs at once.

    Returns:
        `list[list[int]]`: the targets, without the start token.
    """
    targets = []
    config = own_generation_config(model, max_new_tokens=max_new_tokens, do_sample=False)
    for start in range(0, len(inputs), batch_size):
        ids, mask = pad_rows(inputs[start : start + batch_size], pad, left=False)
        ids, mask = ids.to(model.device), mask.to(model.device)
        targets += model.generate(input_ids=ids, attention_mask=mask, generation_config=config).tolist()
    return [target[1:] for target in targets]


def fill_from_the_left(model, gaps: Sequence[Gap], pad: int, batch_size: int = 64) -> list[Filling]:
    """
    Fill gaps with a causal model, greedily: it goes on from the left side, for as many tokens as the gap has.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal LM.
        gaps (`Sequence[Gap]`):
            The gaps.
        pad (`int`):
            Id of padding.
        batch_size (`int`, *optional*, defaults to `64`):
            Gaps at once.

    Returns:
        `list[Filling]`: one a gap.
    """
    fillings = []
    # The text goes on behind the end of a document, so generation must not stop there
    config = own_generation_config(
        model,
        max_new_tokens=max(len(gap.hidden) for gap in gaps),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=pad,
    )
    for start in range(0, len(gaps), batch_size):
        some = gaps[start : start + batch_size]
        ids, mask = pad_rows([gap.left for gap in some], pad, left=True)
        ids, mask = ids.to(model.device), mask.to(model.device)
        generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for gap, tokens in zip(some, generated[:, ids.shape[1] :].tolist()):
            tokens = tokens[: len(gap.hidden)]
            fillings.append(Filling(tokens, tokens == gap.hidden, False))
    return fillings


def share_of_exact_spans(
    model, batches: Sequence[dict], sentinels: Sequence[int], eos: int, pad: int
) -> tuple[int, int]:
    """
    How many masked spans of corrupted rows a model fills exactly, all spans of a row in one greedy target.

    Args:
        model ([`~transformers.T5ForConditionalGeneration`]):
            The model.
        batches (`Sequence[dict]`):
            Batches of [`~.span_collator.SpanCorruptionCollator`].
        sentinels (`Sequence[int]`):
            Ids of the sentinels.
        eos, pad (`int`):
            Ids of the end of a target and of padding.

    Returns:
        `tuple[int, int]`: spans that are exact, and spans in all.
    """
    exact = spans = 0
    for batch in batches:
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist())
        inputs = [[token for token, real in zip(ids, mask) if real] for ids, mask in rows]
        longest = batch["labels"].shape[1]
        for target, generated in zip(batch["labels"].tolist(), generate_targets(model, inputs, pad, longest + 3)):
            wanted = split_spans(target, sentinels, eos)
            got = split_spans(generated, sentinels, eos)
            spans += len(wanted)
            exact += sum(got.get(sentinel) == tokens for sentinel, tokens in wanted.items())
    return exact, spans


def pad_rows(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one tensor, padded at the left or the right, and the mask of what is no padding."""
    longest, ids, mask = max(map(len, rows)), [], []
    for row in rows:
        filler, ones = [0] * (longest - len(row)), [1] * len(row)
        ids.append([*[pad] * len(filler), *row] if left else [*row, *[pad] * len(filler)])
        mask.append([*filler, *ones] if left else [*ones, *filler])
    return torch.tensor(ids), torch.tensor(mask)
