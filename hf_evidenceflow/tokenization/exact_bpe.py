"""Byte-pair encoding with a stated rule for ties: among the most frequent pairs the greatest one, by bytes.

The rule of Stanford's CS336, assignment 1. `tokenizers` breaks ties otherwise, so that the same text gives other
merges from some point on. An inverted index and a heap with outdated entries keep the work to the words that a merge
changes.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Mapping

from transformers.utils import logging


_INVERTED = bytes(range(255, -1, -1))


def _descending(token: bytes) -> str:
    """A text by which tokens sort from the greatest to the least; its end comes after all bytes."""
    return token.translate(_INVERTED).decode("latin-1") + "\u0100"


def train_merges(
    word_counts: Mapping[bytes, int], num_merges: int, progress: bool = False
) -> list[tuple[bytes, bytes]]:
    """
    Learn up to `num_merges` merges, in order, from the occurrences of pre-tokens; fewer if each has become one token.

    Example:

    ```python
    >>> from hf_evidenceflow.tokenization.exact_bpe import train_merges

    >>> train_merges({b"low": 5, b"lower": 2, b"newest": 6}, 2)
    [(b'w', b'e'), (b'l', b'o')]
    ```
    """
    tokens = [bytes([byte]) for byte in range(256)]  # by id
    order = [_descending(token) for token in tokens]
    words = [list(word) for word in word_counts]
    counts = list(word_counts.values())
    pair_counts: dict[tuple[int, int], int] = defaultdict(int)
    words_of: dict[tuple[int, int], set[int]] = defaultdict(set)
    for index, (word, count) in enumerate(zip(words, counts)):
        for pair in itertools.pairwise(word):
            pair_counts[pair] += count
            words_of[pair].add(index)

    def entry(pair):
        return -pair_counts[pair], order[pair[0]], order[pair[1]], pair

    heap = [entry(pair) for pair in pair_counts]
    heapq.heapify(heap)
    merges = []
    with logging.tqdm(total=num_merges, disable=not progress, desc="Learning merges") as bar:
        while heap and len(merges) < num_merges:
            count, _, _, pair = heapq.heappop(heap)
            if pair_counts.get(pair) != -count or not count:
                continue  # outdated: the pair has another entry
            merges.append((tokens[pair[0]], tokens[pair[1]]))
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
            order.append(_descending(tokens[-1]))
            changed = _merge(pair, len(tokens) - 1, words, counts, pair_counts, words_of)
            for other in changed:
                if pair_counts[other]:
                    heapq.heappush(heap, entry(other))
                else:
                    del pair_counts[other]
            bar.update(1)
    return merges


def _merge(pair, new, words, counts, pair_counts, words_of):
    """Replace a pair in all words that hold it; returns the pairs whose counts have changed."""
    first, second = pair
    changed = set()
    for index in words_of.pop(pair):
        word, count = words[index], counts[index]
        place = 0
        while place < len(word) - 1:
            if word[place] != first or word[place + 1] != second:
                place += 1
                continue
            if place:
                before = word[place - 1]
                pair_counts[before, first] -= count
                pair_counts[before, new] += count
                words_of[before, new].add(index)
                changed.update(((before, first), (before, new)))
            if place + 2 < len(word):
                after = word[place + 2]
                pair_counts[second, after] -= count
                pair_counts[new, after] += count
                words_of[new, after].add(index)
                changed.update(((second, after), (new, after)))
            word[place : place + 2] = [new]
            place += 1
    pair_counts[pair] = 0
    changed.discard(pair)
    del pair_counts[pair]
    return changed
