"""Skip-gram by gensim, with its two ways around the softmax over the vocabulary, the same numbers in every run.

Sources: Mikolov et al. 2013 (arXiv 1301.3781, 1310.4546): negative sampling from the unigram distribution to the power
of 3/4, and the hierarchical softmax on a Huffman tree.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_evidenceflow.recipes.course.shared.recipe import require_course_package


# gensim passes over the rest of a longer text without a word
MOST_WORDS = 10_000
_WORD = re.compile(r"\w+(?:'\w+)?")


def text_words(document: str) -> list[str]:
    """
    The words of a text, in lower case and without punctuation.

    Args:
        document (`str`):
            Text.

    Returns:
        `list[str]`: the words in their order.

    Example:

    ```python
    >>> text_words("He saw Paris , didn't he ?")
    ['he', 'saw', 'paris', "didn't", 'he']
    ```
    """
    return _WORD.findall(document.lower())


def stable_hash(word: str) -> int:
    """A hash that is the same in every process, which Python's own is not without `PYTHONHASHSEED`."""
    return zlib.crc32(word.encode())


def train_skip_gram(
    sentences: Sequence[Sequence[str]],
    vector_size: int,
    window: int,
    min_count: int,
    epochs: int,
    seed: int,
    sample: float = 1e-3,
    negative: int = 5,
    ns_exponent: float = 0.75,
    hierarchical_softmax: bool = False,
):
    """
    Train skip-gram vectors on one thread: with several, the order of the updates is left to chance.

    Args:
        sentences (`Sequence[Sequence[str]]`):
            Words of each text; no window crosses its border. Texts of more than 10,000 words are cut.
        vector_size (`int`):
            Numbers in a vector.
        window (`int`):
            Farthest distance of a context word; gensim draws one up to it for each word.
        min_count (`int`):
            Rarer words are left out.
        epochs (`int`):
            Passes over the text.
        seed (`int`):
            Seed of the vectors and the draws.
        sample (`float`, *optional*, defaults to `1e-3`):
            Words that are more frequent than this are thinned out; 0 is off.
        negative (`int`, *optional*, defaults to `5`):
            Noise words for each pair.
        ns_exponent (`float`, *optional*, defaults to `0.75`):
            Noise words are drawn by their count to this power.
        hierarchical_softmax (`bool`, *optional*, defaults to `False`):
            Whether to walk down a Huffman tree in place of negative sampling.

    Returns:
        `gensim.models.Word2Vec`: the trained model.

    Raises:
        `ImportError`: if gensim is not installed.
        `ValueError`: if fewer than two words are as frequent as `min_count`.
    """
    word_counts(sentences, min_count)
    word2vec = require_course_package("gensim", "Skip-gram").models.Word2Vec
    return word2vec(
        [words[start : start + MOST_WORDS] for words in sentences for start in range(0, len(words), MOST_WORDS)],
        vector_size=vector_size,
        window=window,
        min_count=min_count,
        sample=sample,
        epochs=epochs,
        seed=seed + 1,  # gensim's vectors come from this seed alone, and 0 is no different; 1 is its own default
        sg=1,
        hs=int(hierarchical_softmax),
        negative=0 if hierarchical_softmax else negative,
        ns_exponent=ns_exponent,
        workers=1,
        hashfxn=stable_hash,
    )


def word_counts(sentences: Sequence[Sequence[str]], min_count: int) -> dict[str, int]:
    """
    The vocabulary with its counts, in gensim's order.

    Args:
        sentences (`Sequence[Sequence[str]]`):
            Words of each text.
        min_count (`int`):
            Rarer words are left out.

    Returns:
        `dict[str, int]`: from the most frequent word on.

    Raises:
        `ValueError`: if fewer than two words are as frequent as `min_count`.
    """
    counts = Counter(word for words in sentences for word in words)
    kept = {word: count for word, count in counts.items() if count >= min_count}
    if len(kept) < 2:
        raise ValueError(
            f"Only {len(kept)} of {len(counts)} words stand in the text at least {min_count} times. Give more text, "
            "or a smaller `min_count`."
        )
    # Of words that are as frequent, gensim has the later one first
    ranked = sorted(enumerate(kept.items()), key=lambda item: (item[1][1], item[0]), reverse=True)
    return {word: count for _, (word, count) in ranked}


def noise_distribution(model) -> np.ndarray:
    """
    The distribution that a model draws its noise words from, read off its table.

    Args:
        model (`gensim.models.Word2Vec`):
            Model with negative sampling.

    Returns:
        `np.ndarray` of shape `(V,)`: probability of each word.

    Raises:
        `ValueError`: if the model has no such table.
    """
    if model.cum_table is None or len(model.cum_table) == 0:
        raise ValueError("The model has no table of noise words. Train it with `negative` of at least 1.")
    table = model.cum_table.astype(np.float64)  # [V], cumulative
    return np.diff(table, prepend=0.0) / table[-1]
