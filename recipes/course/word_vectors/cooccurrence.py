"""Counts which words stand near each other, for GloVe: a pair at distance d counts 1/d.

Source: Pennington, Socher and Manning 2014 (GloVe), section 4.2: a symmetric window, in which a pair d words apart
contributes 1/d.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array


def count_cooccurrences(sentences: Sequence[Sequence[str]], vocabulary: Mapping[str, int], window: int) -> csr_array:
    """
    The weighted counts X_ij of word j in the window around word i, to both sides.

    Args:
        sentences (`Sequence[Sequence[str]]`):
            Words of each text; no window crosses its border.
        vocabulary (`Mapping[str, int]`):
            Index in [0, V) of each word. Other words are taken out before distances are measured, as word2vec does.
        window (`int`):
            Farthest distance, at least 1.

    Returns:
        `csr_array` of shape `(V, V)`: the counts, symmetric, in double precision.

    Raises:
        `ValueError`: if `window` is not positive.

    Example:

    ```python
    >>> count_cooccurrences([["a", "b", "c"]], {"a": 0, "b": 1, "c": 2}, window=2).toarray()
    array([[0. , 1. , 0.5],
           [1. , 0. , 1. ],
           [0.5, 1. , 0. ]])
    ```
    """
    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}.")
    encoded = [[vocabulary[word] for word in words if word in vocabulary] for words in sentences]
    words = np.fromiter((index for indices in encoded for index in indices), dtype=np.int64)
    texts = np.repeat(np.arange(len(encoded)), [len(indices) for indices in encoded])
    size = len(vocabulary)
    counts = csr_array((size, size), dtype=np.float64)
    for distance in range(1, window + 1):
        same_text = texts[:-distance] == texts[distance:]
        left, right = words[:-distance][same_text], words[distance:][same_text]
        weights = np.full(len(left), 1.0 / distance)
        counts = counts + coo_array((weights, (left, right)), shape=(size, size)).tocsr()  # equal pairs are added up
    return (counts + counts.T).tocsr()
