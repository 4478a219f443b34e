"""Keeps trained tokenizers and token ids between runs on the same text."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer
from transformers.utils import logging

from ..atomic_write import atomic_file, atomic_write_json
from ..files import check_fields, read_json
from .text_tokenizer import train_text_tokenizer, wrap_tokenizer


logger = logging.get_logger(__name__)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """
    A name of 32 hexadecimal digits for a content: equal parts give equal names. Where the content is cut matters.
    """
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]


def cached_text_tokenizer(documents: Sequence[str], vocab_size: int, cache_dir: str | os.PathLike | None = None):
    """
    [`train_text_tokenizer`], read from `cache_dir` where it was trained on the same text before; `None` trains anew.
    """
    if cache_dir is None:
        return train_text_tokenizer(documents, vocab_size)
    key = fingerprint([tokenizers.__version__, str(vocab_size), *documents])
    path = Path(cache_dir).expanduser() / f"tokenizer-{key}.json"
    if path.exists() and (kept := _read_tokenizer(path)) is not None:
        return wrap_tokenizer(kept)
    tokenizer = train_text_tokenizer(documents, vocab_size)
    content = tokenizer.backend_tokenizer.to_str()
    atomic_write_json(path, {"sha256": hashlib.sha256(content.encode()).hexdigest(), "tokenizer": content})
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer | None:
    """What the cache holds; `None` with a warning if that is damaged, as it can be made anew."""
    try:
        kept = read_json(path)
        check_fields(kept, path, sha256=str, tokenizer=str)
        if hashlib.sha256(kept["tokenizer"].encode()).hexdigest() == kept["sha256"]:
            return Tokenizer.from_str(kept["tokenizer"])
        problem = "it has another checksum than when it was written"
    except ValueError as error:
        problem = str(error)
    logger.warning(f"The cached tokenizer {path} is damaged and made anew: {problem}")
    return None


def encode_documents(
    documents: Sequence[str], tokenizer, cache_dir: str | os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Token ids of all documents, each ended by the tokenizer's EOS.

    Args:
        documents (`Sequence[str]`):
            The documents.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            A fast tokenizer with an EOS token; any other is a `ValueError`.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder of the cache. `None` encodes anew.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the ids of all documents, one after another, of shape `(N,)` and type int32;
        and where each document ends, of shape `(D,)` and type int64.
    """
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} must be a fast one with an EOS token, which stands between "
            f"documents; got eos_token={tokenizer.eos_token!r}, is_fast={tokenizer.is_fast}. Take another tokenizer."
        )
    if cache_dir is None:
        return _encode(documents, tokenizer)
    settings = [tokenizers.__version__, tokenizer.backend_tokenizer.to_str(), str(tokenizer.eos_token_id)]
    path = Path(cache_dir).expanduser() / f"tokens-{fingerprint([*settings, *documents])}.npz"
    if path.exists() and (kept := _read_tokens(path)) is not None:
        return kept
    ids, ends = _encode(documents, tokenizer)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, ids=ids, ends=ends, sha256=_digest(ids, ends))
    return ids, ends


def _read_tokens(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What the cache holds; `None` with a warning if that is damaged, as it can be made anew."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, ends, digest = arrays["ids"], arrays["ends"], str(arrays["sha256"])
        if digest == _digest(ids, ends):
            return ids, ends
        problem = "it has another checksum than when it was written"
    except Exception as error:  # a broken zip file raises what its parts raise
        problem = f"{type(error).__name__}: {error}"
    logger.warning(f"The cached tokens {path} are damaged and made anew: {problem}")
    return None


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _encode(documents, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    rows = [np.append(np.asarray(encoding.ids, dtype=np.int32), tokenizer.eos_token_id) for encoding in encodings]
    return np.concatenate(rows).astype(np.int32), np.cumsum([len(row) for row in rows], dtype=np.int64)
