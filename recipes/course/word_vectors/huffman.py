"""The hierarchical softmax: probabilities of words as ways down a Huffman tree.

Each inner node n has a vector v_n and decides between its two children. With the code bits d_k and the inner nodes n_k
on the way from the root to a word,

    p(word | h) = prod_k sigmoid((1 - 2 d_k) v_(n_k) . h)

The two children of a node share its probability, sigmoid(x) + sigmoid(-x) = 1, so all words sum to 1 without a sum
over the vocabulary. A frequent word has a short way: the mean number of decisions is within 1 of the words' entropy.

Sources: Morin and Bengio 2005; Mikolov et al. 2013 (arXiv 1310.4546, equation 3). word2vec's code takes bit 0 for
sigmoid(+x), which is one of two equal conventions.
"""

from typing import NamedTuple

import numpy as np


class HuffmanSummary(NamedTuple):
    """
    How long the ways in the tree are, in decisions, weighted by the words' frequency.

    Args:
        mean_length (`float`):
            Mean length of a code.
        entropy (`float`):
            Entropy of the words, in bits: no prefix code is shorter.
        balanced_length (`float`):
            log2 of the vocabulary, the depth of a balanced tree.
        longest (`int`):
            Longest code.
    """

    mean_length: float
    entropy: float
    balanced_length: float
    longest: int


def huffman_log_probabilities(model, hidden: np.ndarray) -> np.ndarray:
    """
    Log-probability of every word by the tree of a trained model.

    Args:
        model (`gensim.models.Word2Vec`):
            Model with `hs=1`.
        hidden (`np.ndarray` of shape `(H,)`):
            Input vector, such as `model.wv["paris"]`.

    Returns:
        `np.ndarray` of shape `(V,)`: log-probabilities, in the order of `model.wv.index_to_key`.

    Raises:
        `ValueError`: if the model has no tree, or the vector another size.

    Example:

    ```python
    >>> probabilities = huffman_probabilities(model, model.wv["paris"])
    >>> model.wv.index_to_key[probabilities.argmax()]
    ```
    """
    if not model.hs:
        raise ValueError("The model has no Huffman tree. Train it with the hierarchical softmax (`hs=1`).")
    if hidden.shape != (model.vector_size,):
        raise ValueError(f"`hidden` must have the shape ({model.vector_size},), got {hidden.shape}.")
    scores = model.syn1.astype(np.float64) @ hidden.astype(np.float64)  # [V - 1], one for each inner node
    result = np.empty(len(model.wv))
    for index in range(len(model.wv)):
        code, nodes = model.wv.get_vecattr(index, "code"), model.wv.get_vecattr(index, "point")
        signs = 1 - 2 * np.asarray(code, dtype=np.float64)
        result[index] = -np.logaddexp(0, -signs * scores[nodes]).sum()  # log sigmoid(x) = -log(1 + exp(-x))
    return result


def huffman_probabilities(model, hidden: np.ndarray) -> np.ndarray:
    """
    Probability of every word by the tree of a trained model; they sum to 1.

    Args:
        model (`gensim.models.Word2Vec`):
            Model with `hs=1`.
        hidden (`np.ndarray` of shape `(H,)`):
            Input vector, such as `model.wv["paris"]`.

    Returns:
        `np.ndarray` of shape `(V,)`: probabilities, in the order of `model.wv.index_to_key`.

    Raises:
        `ValueError`: as [`huffman_log_probabilities`].
    """
    return np.exp(huffman_log_probabilities(model, hidden))


def huffman_summary(model) -> HuffmanSummary:
    """
    The lengths of a model's codes.

    Args:
        model (`gensim.models.Word2Vec`):
            Model with `hs=1`.

    Returns:
        [`HuffmanSummary`]: the lengths.

    Raises:
        `ValueError`: if the model has no tree.
    """
    if not model.hs:
        raise ValueError("The model has no Huffman tree. Train it with the hierarchical softmax (`hs=1`).")
    indices = range(len(model.wv))
    counts = np.array([model.wv.get_vecattr(index, "count") for index in indices], dtype=np.float64)
    lengths = np.array([len(model.wv.get_vecattr(index, "code")) for index in indices])
    shares = counts / counts.sum()
    return HuffmanSummary(
        mean_length=float(shares @ lengths),
        entropy=float(-shares @ np.log2(shares)),
        balanced_length=float(np.log2(len(counts))),
        longest=int(lengths.max()),
    )
