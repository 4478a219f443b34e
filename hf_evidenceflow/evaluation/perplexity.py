"""How well a causal LM predicts a text: exact loss, perplexity and accuracy, and where in a long context they change.

Shapes: N tokens of a text, B rows, T positions, V tokens of the vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..models.decoder import base_causal_lm
from ..models.thinking.cache_argument import CACHE
from .statistics import Interval, mean_t_interval


TOKENS_AT_ONCE = 8192  # whose float32 copy of the logits is held at a time


@dataclass(frozen=True)
class TextScore:
    """
    How well so many predicted `tokens` were predicted: `loss` in nats per token, `perplexity = exp(loss)`, and
    `accuracy`, the share of the tokens that were the most probable one. Of [`score_text`] also `row_losses`, the mean
    loss of each row.
    """

    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    row_losses: tuple[float, ...] = ()

    @classmethod
    def of(cls, losses: torch.Tensor, right: torch.Tensor) -> "TextScore":
        """From the losses of all predicted tokens and whether each was right, of one shape."""
        loss = losses.double().mean().item()
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss}: the model's logits are not finite. Check that its weights are whole, and try "
                "`--dtype float32`."
            )
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return cls(loss, perplexity, right.double().mean().item(), losses.numel())


@dataclass(frozen=True)
class PositionBucket:
    """The [`TextScore`] (`score`) of the tokens at the positions `first` to `last` (included) of their rows."""

    first: int
    last: int
    score: TextScore


@dataclass(frozen=True)
class ContextScore:
    """The [`TextScore`] of `rows` rows of `context_length` tokens, in all (`score`) and by position (`buckets`)."""

    context_length: int
    rows: int
    score: TextScore
    buckets: list[PositionBucket]


@torch.no_grad()
def next_token_losses(
    model: nn.Module, rows: torch.Tensor, chunk_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Loss of each token given all tokens before it in its row, by a causal LM in eval mode.

    Args:
        rows (`torch.Tensor` of shape `(B, T)`):
            Token ids without padding, T at least 2.
        chunk_size (`int`, *optional*):
            Tokens per pass; the passes of a row share a KV cache, so that only one chunk's logits are held. If `None`,
            all in one pass.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Losses in nats, float32, and whether the token was the most probable one,
        both of shape `(B, T - 1)`, on CPU.

    Raises:
        `ValueError`: if rows are to be cut but the model returns no `past_key_values`.
    """
    length = rows.shape[1]
    chunk_size = length if chunk_size is None else chunk_size
    losses, right, cache = [], [], None
    for start in range(0, length - 1, chunk_size):
        targets = rows[:, start + 1 : start + 1 + chunk_size].to(model.device)
        inputs = rows[:, start : start + chunk_size].to(model.device)
        past = {} if cache is None else {CACHE: cache}
        output = model(input_ids=inputs, use_cache=length > chunk_size, **past)
        cache = output.get(CACHE)
        if cache is None and start + chunk_size < length - 1:
            raise ValueError(
                f"{type(base_causal_lm(model)).__name__} returned no `past_key_values`, so rows of {length} tokens "
                f"cannot be cut into chunks of {chunk_size}. Take a `chunk_size` of {length}, or leave out long text."
            )
        for parts, part in zip((losses, right), _losses(output.logits[:, : targets.shape[1]], targets)):
            parts.append(part.cpu())
    return torch.cat(losses, dim=1), torch.cat(right, dim=1)


def score_text(model: nn.Module, ids: np.ndarray, block_size: int, batch_size: int = 8) -> TextScore:
    """
    Score a text in rows of `block_size` tokens that do not overlap; what is left over is a shorter last row.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal LM in eval mode.
        ids (`np.ndarray` of shape `(N,)`):
            Token ids, two or more.
        block_size, batch_size (`int`):
            Tokens per row, 2 or more, and rows per pass. The first token of a row is not predicted.

    Example:

    ```python
    >>> ids, _ = encode_documents(documents, tokenizer)
    >>> score_text(model, ids, block_size=512).perplexity
    ```
    """
    if block_size < 2 or batch_size < 1:
        raise ValueError(
            f"`block_size` must be at least 2 and `batch_size` at least 1, got {block_size} and {batch_size}."
        )
    if len(ids) < 2:
        raise ValueError(f"The text has {len(ids)} token(s): there is nothing to predict. Give longer text.")
    whole, left = divmod(len(ids), block_size)
    batches = list(_rows(ids, whole, block_size).split(batch_size)) if whole else []
    if left > 1:
        batches.append(_rows(ids[whole * block_size :], 1, left))
    losses, right = zip(*(next_token_losses(model, batch) for batch in batches))
    score = TextScore.of(*(torch.cat([part.flatten() for part in parts]) for parts in (losses, right)))
    return replace(score, row_losses=tuple(torch.cat([part.double().mean(1) for part in losses]).tolist()))


def perplexity_interval(row_losses: Sequence[float]) -> Interval:
    """Perplexity with its 95 % t interval over the rows of a text, which count alike; `nan` ends for a single row."""
    return Interval(*map(math.exp, mean_t_interval(row_losses)))


def score_long_text(
    model: nn.Module,
    ids: np.ndarray,
    context_lengths: Iterable[int],
    bucket_size: int | None = None,
    chunk_size: int = 512,
    tokens_per_pass: int = 4096,
    max_tokens: int | None = None,
) -> list[ContextScore]:
    """
    Score the same text in rows of several lengths, and by position in the row: where a model falls apart behind its
    training length shows as a bucket whose perplexity jumps.

    Args:
        model, ids:
            As in [`score_text`].
        context_lengths (`Iterable[int]`):
            Tokens per row, 2 or more and at most N each. A row is passed in chunks with the KV cache.
        bucket_size (`int`, *optional*):
            Positions per bucket. If `None`, the smallest context length.
        chunk_size, tokens_per_pass (`int`, *optional*, default to `512` and `4096`):
            Tokens of a row in a pass, and of all rows that share a cache, at least one row.
        max_tokens (`int`, *optional*):
            Tokens of the text that are used, from its start, at least one row of the longest length. If `None`, as
            many as fill rows of the longest length.

    Returns:
        `list[ContextScore]`: one for each length, the shortest first.
    """
    lengths = sorted(set(context_lengths))
    bucket_size = bucket_size if bucket_size is not None or not lengths else lengths[0]
    if not lengths or lengths[0] < 2 or lengths[-1] > len(ids):
        raise ValueError(
            f"Each context length must be from 2 to the {len(ids)} tokens of the text, got {lengths}. Take others, or "
            "give longer text."
        )
    for name, value in (
        ("bucket_size", bucket_size),
        ("chunk_size", chunk_size),
        ("tokens_per_pass", tokens_per_pass),
    ):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    longest = lengths[-1]
    used = max(longest, len(ids) if max_tokens is None else min(len(ids), max_tokens)) // longest * longest
    results = []
    for length in lengths:
        rows = _rows(ids, used // length, length)
        batches = rows.split(max(1, tokens_per_pass // length))
        losses, right = (
            torch.cat(parts) for parts in zip(*(next_token_losses(model, batch, chunk_size) for batch in batches))
        )
        buckets = []
        for first in range(0, length, bucket_size):
            last = min(length, first + bucket_size) - 1
            if last == 0:  # only the token that is not predicted
                continue
            # Column p - 1 holds the token at position p
            at = slice(max(first - 1, 0), last)
            buckets.append(PositionBucket(first, last, TextScore.of(losses[:, at], right[:, at])))
        results.append(ContextScore(length, len(rows), TextScore.of(losses, right), buckets))
    return results


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """The loss per byte of UTF-8, in bits; `loss` in nats per token, tokens and bytes those of the whole text."""
    return loss / math.log(2) * num_tokens / num_bytes


def position_limit(model: nn.Module) -> int | None:
    """
    Longest input of a causal LM that looks positions up in a table, such as GPT-2 or OPT; `None` for one that computes
    them, such as Llama, which takes longer inputs than `max_position_embeddings`.
    """
    base = base_causal_lm(model)
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    others = set(base.modules()) - set(base.get_input_embeddings().modules())
    tables = [module.weight for module in others if isinstance(module, nn.Embedding)]
    tables += [buffer for buffer in base.buffers() if buffer.dim() == 2]
    # OPT's table has two more rows than positions
    return positions if any(positions <= len(table) <= positions + 2 for table in tables) else None


def perplexity_tables(scores: Sequence[ContextScore]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of a table of [`score_long_text`]'s lengths, and of one of the longest one's buckets."""
    columns = ["loss", "perplexity", "accuracy", "tokens"]

    def cells(score):
        return [f"{score.loss:.4f}", f"{score.perplexity:.3f}", f"{score.accuracy:.4f}", f"{score.tokens:,}"]

    longest = scores[-1]
    return [
        (
            "Perplexity by context length",
            ["context length", "rows", *columns],
            [[str(score.context_length), str(score.rows), *cells(score.score)] for score in scores],
        ),
        (
            f"Perplexity by position in rows of {longest.context_length} tokens",
            ["positions", *columns],
            [[f"{bucket.first}-{bucket.last}", *cells(bucket.score)] for bucket in longest.buckets],
        ),
    ]


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and right predictions `(B, T)` of logits `(B, T, V)`; float32 copies are held for a part at a time."""
    pairs = zip(logits.flatten(0, 1).split(TOKENS_AT_ONCE), targets.flatten().split(TOKENS_AT_ONCE))
    parts = [
        (F.cross_entropy(part.float(), target, reduction="none"), part.argmax(-1) == target) for part, target in pairs
    ]
    return tuple(torch.cat(column).view_as(targets) for column in zip(*parts))


def _rows(ids: np.ndarray, rows: int, length: int) -> torch.Tensor:
    return torch.from_numpy(ids[: rows * length].astype(np.int64)).view(rows, length)
