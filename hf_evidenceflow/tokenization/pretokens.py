"""Counts the pre-tokens of files, in parallel and in pieces that end between documents.

A pre-token is a match of GPT-2's pattern; merges never cross one. Bytes that are no UTF-8 pass through as they are.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import regex
from transformers.utils import logging


# Radford et al. 2019, https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PIECE_BYTES = 16 << 20
_WINDOW = 1 << 16


def pieces(path: str | os.PathLike, separators: Sequence[str], size: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """
    Cut a file into pieces of about `size` bytes that begin at a special token, so that no pre-token is cut. With none
    of these `separators` in reach a piece ends behind a line.

    Yields:
        `tuple[int, int]`: first byte of a piece, and the one behind its last.
    """
    with open(path, "rb") as file:
        yield from cut(file, os.path.getsize(path), separators, size)


def cut(file: BinaryIO, end: int, separators: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    """[`pieces`] of an open file of `end` bytes."""
    marks = [separator.encode() for separator in separators]
    start = 0
    while start < end:
        stop = end if start + size >= end else _boundary(file, start + size, end, marks)
        yield start, stop
        start = stop


def _boundary(file, position, end, marks):
    """The first place from `position` on where a document begins, or a line within the first megabyte."""
    overlap = max(map(len, marks), default=1)
    newline = None
    while position < end:
        file.seek(position)
        window = file.read(_WINDOW + overlap)
        found = [place for mark in marks if (place := window.find(mark)) >= 0]
        if found:
            return position + min(found)
        # Behind a lone line break, since a pre-token may hold several spaces (of any kind, hence ASCII on both sides)
        if newline is None and (match := regex.search(rb"(?<=[!-~])\n(?=[!-~])", window)):
            newline = position + match.end()
        if newline is not None and (not marks or position - newline > 1 << 20):
            return newline
        position += _WINDOW
    return end if newline is None or marks else newline


def read_texts(path: str | os.PathLike, special_tokens: Sequence[str], span: tuple[int, int]) -> list[str]:
    """The texts between special tokens in a piece of a file; bytes that are no UTF-8 become lone surrogates."""
    with open(path, "rb") as file:
        file.seek(span[0])
        text = file.read(span[1] - span[0]).decode("utf-8", errors="surrogateescape")
    if not special_tokens:
        return [text]
    # The longest first, where one begins like another
    return regex.split("|".join(map(regex.escape, sorted(special_tokens, key=len, reverse=True))), text)


def count_piece(path: str | os.PathLike, special_tokens: Sequence[str], span: tuple[int, int]) -> Counter:
    """Pre-tokens, as bytes, in a piece of a file; special tokens are left out and never part of one."""
    words: Counter = Counter()
    for text in read_texts(path, special_tokens, span):
        words.update(regex.findall(GPT2_PATTERN, text))
    return Counter({word.encode("utf-8", errors="surrogateescape"): count for word, count in words.items()})


def all_pieces(
    paths: Sequence[str | os.PathLike], special_tokens: Sequence[str], piece_bytes: int = PIECE_BYTES
) -> list[tuple[str | os.PathLike, tuple[int, int]]]:
    """Path and span of all [`pieces`] of files; a `FileNotFoundError` names one that does not exist."""
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"`{path}` does not exist. Check the names of the text files.")
    return [(path, span) for path in paths for span in pieces(path, special_tokens, piece_bytes)]


def count_pretokens(
    paths: Sequence[str | os.PathLike],
    special_tokens: Sequence[str] = (),
    processes: int = 1,
    piece_bytes: int = PIECE_BYTES,
    progress: bool = False,
) -> Counter:
    """
    Count the pre-tokens of files, as bytes. Memory holds the counts and one piece of a file per process.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            Text files.
        special_tokens (`Sequence[str]`, *optional*):
            Texts that are tokens of their own.
        processes, piece_bytes, progress:
            As in [`~hf_evidenceflow.tokenization.encoding.encode_files`].

    Raises:
        `ValueError`: if the files hold no text.
        `FileNotFoundError`: if one does not exist.
    """
    spans = all_pieces(paths, special_tokens, piece_bytes)
    total: Counter = Counter()
    size = sum(stop - start for _, (start, stop) in spans)
    with logging.tqdm(total=size, disable=not progress, desc="Counting words", unit="B", unit_scale=True) as bar:
        for (start, stop), counts in _count_all(spans, special_tokens, processes):
            total.update(counts)
            bar.update(stop - start)
    if not total:
        raise ValueError(f"The files hold no text to train on: {', '.join(map(str, paths))}.")
    return total


@contextmanager
def process_pool(processes: int, **settings):
    """A `ProcessPoolExecutor` that, when Ctrl-C, SIGTERM or an error ends it, drops what has not begun."""
    pool = ProcessPoolExecutor(processes, **settings)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _count_all(spans, special_tokens, processes):
    if processes == 1 or len(spans) < 2:
        for path, span in spans:
            yield span, count_piece(path, special_tokens, span)
        return
    with process_pool(min(processes, len(spans))) as pool:
        jobs = {pool.submit(partial(count_piece, path, special_tokens), span): span for path, span in spans}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
