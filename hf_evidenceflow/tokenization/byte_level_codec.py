"""Bytes to token ids and back with a byte-level BPE tokenizer, for bulk encoding.

Two engines give the same ids. With tiktoken installed, its encoder runs, outside of Python's global lock. Without it
pre-tokens are looked up in a dictionary, and `tokenizers` is asked for new ones.
"""

import hashlib
import importlib.util
import json
import os
from itertools import chain, pairwise

import numpy as np
import regex

from ..data.tokenizer_loading import load_tokenizer
from .pretokens import GPT2_PATTERN


_PATTERN = regex.compile(GPT2_PATTERN)
_INVALID = "[\udc80-\udcff]"  # how `surrogateescape` reads a byte that is no UTF-8
_CACHED_WORDS = 1 << 20
_LONG_RUN = 500_000  # tiktoken 0.14 panics at a million spaces in a row
_SPACES = regex.compile(rf"\s{{{_LONG_RUN}}}")
_DECODED_AT_A_TIME = 1 << 14


class _WordIds(dict):
    """Token ids of a pre-token; text repeats its words, so that most are only looked up."""

    def __init__(self, backend):
        super().__init__()
        self._backend = backend

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        ids = self[word] = self._backend.encode(word, add_special_tokens=False).ids
        return ids


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def tokenizer_checksum(backend) -> str:
    """SHA-256 of what a `tokenizers.Tokenizer` does, apart from truncation and padding."""
    parts = json.loads(backend.to_str())
    parts |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _splits_like_gpt2(backend) -> bool:
    splitter = json.loads(backend.to_str())["pre_tokenizer"] or {}
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return backend.normalizer is None and {name: splitter.get(name) for name in wanted} == wanted


def merges_follow_ids(ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]]) -> bool:
    """
    Whether "always join the pair whose union has the lowest id", which is tiktoken's rule, does what the merges do.

    It does if their products have rising ids, and each product, taken alone, comes by this rule to the two parts that
    its merge joins: a word is then nothing but such pieces side by side. `ranks` are the ids of all tokens but the
    special ones.
    """
    products = [ranks.get(left + right) for left, right in merges]
    if None in products or products != sorted(set(products)) or len(products) + 256 != len(ranks):
        return False
    return all(_parts(left + right, ranks) == [left, right] for left, right in merges)


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The token's bytes, joined by ids below its own."""
    limit, parts = ranks[token], [token[place : place + 1] for place in range(len(token))]
    while True:
        candidates = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        lowest = min(candidates, default=limit)
        if lowest >= limit:
            return parts
        place = candidates.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


class ByteLevelCodec:
    """
    Bytes to token ids and back, with a byte-level tokenizer; bytes that are no UTF-8 get the tokens of single bytes.

    Args:
        path_or_id (`str` or `os.PathLike`):
            Folder or Hub name of a fast tokenizer.
        use_tiktoken (`bool`, *optional*):
            Whether tiktoken encodes. If `None`, where it is installed and gives the tokenizer's ids.

    Attributes: `uses_tiktoken`, whether it does; `separators`, the special tokens.

    Raises:
        `ValueError`: if the tokenizer is not byte-level or lacks some bytes, or tiktoken is asked for and its rule for
            merges would give other ids.
        `ImportError`: if tiktoken is asked for and not installed.
    """

    def __init__(self, path_or_id: str | os.PathLike, use_tiktoken: bool | None = None):
        self.name = str(path_or_id)
        tokenizer = load_tokenizer(path_or_id)
        self._backend = tokenizer.backend_tokenizer
        self.checksum = tokenizer_checksum(self._backend)
        special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        # The longest first, where one begins like another
        self.separators = sorted(filter(None, special.values()), key=len, reverse=True)
        self._split = regex.compile(f"({'|'.join([*map(regex.escape, self.separators), _INVALID])})")
        characters = _byte_characters()
        plain, values = {}, {index: text.encode() for index, text in special.items()}
        for token, index in tokenizer.get_vocab().items():
            if index not in special and set(token) <= characters.keys():
                plain[bytes(characters[character] for character in token)] = index
        values |= {index: value for value, index in plain.items()}
        singles = {value[0]: index for value, index in plain.items() if len(value) == 1}
        complete = len(singles) == 256 and len(values) == len(tokenizer.get_vocab())
        if not complete or not _splits_like_gpt2(self._backend):
            raise ValueError(
                f"The tokenizer of `{path_or_id}` is not byte-level with all 256 bytes, GPT-2's pre-tokens and no "
                "normalizer. Train one with `recipes/train_tokenizer.py`, or take GPT-2's."
            )
        self._words = _WordIds(self._backend)
        self._fixed = {text: index for index, text in special.items()}
        self._fixed |= {chr(0xDC00 + byte): singles[byte] for byte in range(128, 256)}
        self.dtype = np.uint16 if max(values) < 1 << 16 else np.uint32
        self._lengths = np.zeros(max(values) + 1, dtype=np.int32)
        for index, value in values.items():
            self._lengths[index] = len(value)
        self._starts = np.cumsum(self._lengths, dtype=np.int32) - self._lengths
        self._bytes = np.frombuffer(b"".join(values[index] for index in sorted(values)), dtype=np.uint8)
        self._tiktoken = None if use_tiktoken is False else self._make_tiktoken(plain, characters, use_tiktoken)

    @property
    def uses_tiktoken(self) -> bool:
        return self._tiktoken is not None

    def _make_tiktoken(self, ranks, characters, required):
        if importlib.util.find_spec("tiktoken") is None:
            if required:
                raise ImportError("tiktoken is not installed: pip install 'hf-evidenceflow[encoding]'.")
            return None
        merges = [
            tuple(bytes(characters[character] for character in part) for part in pair)
            for pair in json.loads(self._backend.to_str())["model"]["merges"]
        ]
        if not merges_follow_ids(ranks, merges):
            if required:
                raise ValueError(
                    f"The merges of `{self.name}` are not in the order of their ids: tiktoken would give other ids. "
                    "Leave `use_tiktoken` out."
                )
            return None
        import tiktoken

        return tiktoken.Encoding("codec", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, data: bytes) -> np.ndarray:
        """Token ids of a text, valid UTF-8 or not, of shape `(N,)` and type uint16 or uint32."""
        try:
            text, plain = data.decode("utf-8"), True
        except UnicodeDecodeError:
            text, plain = data.decode("utf-8", errors="surrogateescape"), False
        # The search for special tokens costs more than to look whether there are any
        plain = plain and not any(separator in text for separator in self.separators)
        parts = [text] if plain else filter(None, self._split.split(text))
        ids = [np.array([self._fixed[part]]) if part in self._fixed else self._encode_text(part) for part in parts]
        return np.concatenate([part.astype(self.dtype) for part in ids]) if ids else np.array([], dtype=self.dtype)

    def _encode_text(self, text: str) -> np.ndarray:
        if self._tiktoken is not None and (len(text) < _LONG_RUN or not _SPACES.search(text)):
            # Faster than `encode_to_numpy`, which looks for special tokens on its way
            ids = self._tiktoken.encode_ordinary(text)
            return np.fromiter(ids, dtype=self.dtype, count=len(ids))
        return np.array(list(chain.from_iterable(map(self._words.__getitem__, _PATTERN.findall(text)))))

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of token ids; the inverse of [`ByteLevelCodec.encode`]."""
        pieces = []
        for start in range(0, len(ids), _DECODED_AT_A_TIME):
            part = ids[start : start + _DECODED_AT_A_TIME]
            lengths = self._lengths.take(part)
            ends = lengths.cumsum(dtype=np.int32)
            # Place of each byte: its token's first one, and how far it is from there
            places = (self._starts.take(part) - (ends - lengths)).repeat(lengths)
            places += np.arange(len(places), dtype=np.int32)
            pieces.append(self._bytes.take(places))
        return b"".join(pieces)
