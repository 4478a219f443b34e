"""Pairs of segments for BERT's next sentence prediction: half of them follow each other, half are of two documents.

A document is cut between two of its sentences. The first segment is what stands before the cut; the second is what
stands behind it, or behind the same cut of another document. Were the place another one, a model could tell the two
kinds by their lengths, or by a document's first sentence, which follows nothing.

Source: Devlin et al. 2019 (BERT, arXiv 1810.04805, section 3.1 and appendix A.2). Deviation: there the other segment
begins anywhere, which in long documents cut to one length is much the same.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class SegmentPair(NamedTuple):
    """
    Two segments.

    Args:
        first, second (`list`):
            Their tokens.
        is_next (`bool`):
            Whether the second follows the first.
        document, other_document (`int`):
            Documents that they are of; the same if `is_next`.
        border (`int`):
            Number of the first's document's sentence that follows it.
    """

    first: list
    second: list
    is_next: bool
    document: int
    other_document: int
    border: int


def split_sentences(document: str) -> list[str]:
    """
    Split a text at line breaks, and behind full stops, exclamation and question marks.

    Args:
        document (`str`):
            Text.

    Returns:
        `list[str]`: sentences that are more than white space and punctuation.
    """
    return [part.strip() for part in _SENTENCE_END.split(document) if re.search(r"\w", part)]


def trim_segments(first: Sequence, second: Sequence, max_tokens: int) -> tuple[list, list]:
    """
    Cut the outer ends of two segments, of the longer one first, so that their border stays.

    Args:
        first, second (`Sequence`):
            Tokens of the segments.
        max_tokens (`int`):
            Most tokens of both together, at least 2.

    Returns:
        `tuple[list, list]`: the end of the first and the begin of the second.
    """
    keep_first = min(len(first), max(max_tokens - len(second), max_tokens // 2))
    keep_second = min(len(second), max_tokens - keep_first)
    return list(first[len(first) - keep_first :]), list(second[:keep_second])


def sample_segment_pairs(
    documents: Sequence[Sequence[Sequence[Any]]], max_tokens: int, seed: int = 0, next_share: float = 0.5
) -> list[SegmentPair]:
    """
    A pair for each place between two sentences of each document.

    Args:
        documents (`Sequence[Sequence[Sequence]]`):
            Sentences of each document, each a sequence of tokens.
        max_tokens (`int`):
            Most tokens of both segments together, at least 2.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        next_share (`float`, *optional*, defaults to `0.5`):
            Chance that the second segment is the true one.

    Returns:
        `list[SegmentPair]`: the pairs in the order of the documents. The sentence behind a wrong border is never equal
        to the true one.

    Raises:
        `ValueError`: if `max_tokens` is too small, or fewer than two documents have two sentences.

    Example:

    ```python
    >>> documents = [[["a"], ["b"]], [["c"], ["d"]]]
    >>> [(pair.first, pair.second, pair.is_next) for pair in sample_segment_pairs(documents, max_tokens=9)]
    ```
    """
    if max_tokens < 2:
        raise ValueError(f"`max_tokens` must be at least 2, a token for each segment, got {max_tokens}.")
    usable = [index for index, sentences in enumerate(documents) if len(sentences) > 1]
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} of {len(documents)} documents have two sentences or more; two are needed to pair one with "
            "another. Give more documents."
        )
    rng = random.Random(seed)
    pairs = []
    for index in usable:
        sentences = documents[index]
        for border in range(1, len(sentences)):
            other, start = index, border
            is_next = rng.random() < next_share
            if not is_next:
                drawn = _another(documents, usable, index, border, rng)
                if drawn is None:
                    continue
                other, start = drawn
            first = _tokens(reversed(sentences[:border]), max_tokens, reverse=True)
            second = _tokens(documents[other][start:], max_tokens)
            pairs.append(SegmentPair(*trim_segments(first, second, max_tokens), is_next, index, other, border))
    return pairs


def _tokens(sentences: Iterable[Sequence], most: int, reverse: bool = False) -> list:
    """Tokens of sentences until there are enough; of sentences that come last first, their tokens in order."""
    kept: list = []
    for sentence in sentences:
        kept = [*sentence, *kept] if reverse else [*kept, *sentence]
        if len(kept) >= most:
            break
    return kept


def _another(documents, usable, index, border, rng) -> tuple[int, int] | None:
    """Another document, and the place in it nearest to the border; `None` if its sentences are the same everywhere."""
    for _ in range(50):
        other = rng.choice(usable)
        start = min(border, len(documents[other]) - 1)
        if other != index and documents[other][start] != documents[index][border]:
            return other, start
    return None
