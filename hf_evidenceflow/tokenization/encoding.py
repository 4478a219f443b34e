"""Encodes text files larger than memory into memory-mapped shards of token ids.

A shard is a piece of a file that begins at a special token or behind a line. It counts as done once the JSON beside it
stands, which is written last, so that an interrupted run goes on without a gap or a repeat.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import regex
from transformers.utils import logging

from ..data.tokenizer_loading import load_tokenizer
from ..reporting import atomic_write_json
from .pretokens import GPT2_PATTERN, PIECE_BYTES, all_pieces


INDEX_FILE_NAME = "index.json"
_PATTERN = regex.compile(GPT2_PATTERN)
_INVALID = "[\udc80-\udcff]"  # how `surrogateescape` reads a byte that is no UTF-8


_CACHED_WORDS = 1 << 20


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


class ByteLevelCodec:
    """
    Bytes to token ids and back, with a byte-level tokenizer; bytes that are no UTF-8 get the tokens of single bytes.

    Args:
        path_or_id (`str` or `os.PathLike`):
            Folder or Hub name of a fast tokenizer.

    Raises:
        `ValueError`: if it is not byte-level, or lacks some bytes.
    """

    def __init__(self, path_or_id: str | os.PathLike):
        tokenizer = load_tokenizer(path_or_id)
        self._backend = tokenizer.backend_tokenizer
        self.checksum = tokenizer_checksum(self._backend)
        special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        # The longest first, where one begins like another
        self.separators = sorted(filter(None, special.values()), key=len, reverse=True)
        self._split = regex.compile(f"({'|'.join([*map(regex.escape, self.separators), _INVALID])})")
        characters = _byte_characters()
        self._bytes = {}
        for token, index in tokenizer.get_vocab().items():
            if index in special:
                self._bytes[index] = special[index].encode()
            elif set(token) <= characters.keys():
                self._bytes[index] = bytes(characters[character] for character in token)
        singles = {value[0]: index for index, value in self._bytes.items() if len(value) == 1 and index not in special}
        complete = len(singles) == 256 and len(self._bytes) == len(tokenizer.get_vocab())
        if not complete or not _splits_like_gpt2(self._backend):
            raise ValueError(
                f"The tokenizer of `{path_or_id}` is not byte-level with all 256 bytes, GPT-2's pre-tokens and no "
                "normalizer. Train one with `recipes/train_tokenizer.py`, or take GPT-2's."
            )
        self._words = _WordIds(self._backend)
        self._fixed = {text: index for index, text in special.items()}
        self._fixed |= {chr(0xDC00 + byte): singles[byte] for byte in range(128, 256)}
        self.dtype = np.uint16 if max(self._bytes) < 1 << 16 else np.uint32

    def encode(self, data: bytes) -> np.ndarray:
        """
        Token ids of a text.

        Args:
            data (`bytes`): text, valid UTF-8 or not.

        Returns:
            `np.ndarray` of shape `(N,)`, uint16 or uint32.
        """
        text = data.decode("utf-8", errors="surrogateescape")
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._fixed:
                ids.append(self._fixed[part])
            else:
                ids.extend(chain.from_iterable(map(self._words.__getitem__, _PATTERN.findall(part))))
        return np.array(ids, dtype=self.dtype)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of token ids; the inverse of [`ByteLevelCodec.encode`]."""
        return b"".join([self._bytes[index] for index in ids.tolist()])


@dataclass(frozen=True)
class EncodedCorpus:
    """
    Shards of token ids; its length is the number of tokens.

    Args:
        shards (`list[np.ndarray]`): memory-mapped ids, each of shape `(tokens,)`, in the order of the text.
        index (`dict`): what `index.json` holds: tokens, bytes, settings, and one entry for each shard.
    """

    shards: list[np.ndarray]
    index: dict

    def __len__(self) -> int:
        return self.index["tokens"]

    def check_tokenizer(self, tokenizer):
        """Raises a `ValueError` if the shards were encoded with another tokenizer than this fast one."""
        if tokenizer_checksum(tokenizer.backend_tokenizer) != self.index["tokenizer"]:
            raise ValueError(
                f"The tokens of {self.index['files'][0][0]!r} were made with another tokenizer than this one. Give "
                "the one that encoded them, or encode the text again."
            )


def _read(path, span) -> bytes:
    with open(path, "rb") as file:
        file.seek(span[0])
        return file.read(span[1] - span[0])


def _encode_shard(tokenizer, path, span, target: Path) -> dict:
    codec = _codec(tokenizer)
    data = _read(path, span)
    ids = codec.encode(data)
    if codec.decode(ids) != data:
        raise RuntimeError(
            f"Bytes {span[0]} to {span[1]} of `{path}` do not come back from their token ids: the tokenizer of "
            f"`{tokenizer}` changes text. Take another one."
        )
    partial = target.with_suffix(".part.npy")
    np.save(partial, ids)
    os.replace(partial, target)
    entry = {"file": target.name, "source": str(path), "span": list(span), "tokens": len(ids)}
    entry["sha256"] = hashlib.sha256(ids.tobytes()).hexdigest()
    atomic_write_json(target.with_suffix(".json"), entry)
    return entry


_CODECS: dict[str, ByteLevelCodec] = {}


def _codec(name) -> ByteLevelCodec:
    """One for each process."""
    if name not in _CODECS:
        _CODECS[name] = ByteLevelCodec(name)
    return _CODECS[name]


def encode_files(
    paths: Sequence[str | os.PathLike],
    tokenizer_name_or_path: str,
    output_dir: str | os.PathLike,
    processes: int = 1,
    piece_bytes: int = PIECE_BYTES,
    progress: bool = False,
) -> EncodedCorpus:
    """
    Encode text files into shards; what an interrupted call finished is not encoded again. Each shard is decoded and
    compared with its text before it counts. Memory holds one piece of a file for each process.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            Text files; special tokens in them become the tokens.
        tokenizer_name_or_path (`str`):
            Byte-level tokenizer, a folder or Hub name.
        output_dir (`str` or `os.PathLike`):
            Folder of the shards.
        processes (`int`, *optional*, defaults to `1`):
            Processes that encode at the same time.
        piece_bytes (`int`, *optional*, defaults to 16 MiB):
            Bytes of text in a shard, about.
        progress (`bool`, *optional*, defaults to `False`):
            Whether a bar shows the bytes that are done.

    Returns:
        [`EncodedCorpus`]: the shards.

    Raises:
        `ValueError`: if the files hold no text, the tokenizer is not byte-level, or the folder holds shards of other
            files or settings.
        `FileNotFoundError`: if a file does not exist.
        `RuntimeError`: if a text does not come back from its ids.

    Example:

    ```python
    >>> from hf_evidenceflow.tokenization.encoding import encode_files

    >>> corpus = encode_files(["train.txt"], "outputs/tokenizer", "outputs/tokens", processes=8)
    ```
    """
    _CODECS.clear()  # the folder may have changed since
    codec = _codec(tokenizer_name_or_path)
    spans = all_pieces(paths, codec.separators, piece_bytes)
    if not spans:
        raise ValueError(f"The files hold no text to encode: {', '.join(map(str, paths))}.")
    settings = {
        "files": [[str(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in paths],
        "tokenizer": codec.checksum,
        "piece_bytes": piece_bytes,
    }
    folder = Path(output_dir)
    started = folder / "settings.json"
    if started.exists() and json.loads(started.read_text()) != settings:
        raise ValueError(
            f"`{folder}` holds shards of other files, another tokenizer or another `piece_bytes`. Choose another "
            "`output_dir`, or remove that folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(started, settings)
    names = [folder / f"tokens-{number:05d}.npy" for number in range(len(spans))]
    entries = [_finished(name) for name in names]
    todo = [
        (tokenizer_name_or_path, path, span, name)
        for (path, span), name, entry in zip(spans, names, entries)
        if entry is None
    ]
    size = sum(span[1] - span[0] for _, span in spans)
    done = size - sum(span[1] - span[0] for _, _, span, _ in todo)
    with logging.tqdm(
        total=size, initial=done, disable=not progress, desc="Encoding", unit="B", unit_scale=True
    ) as bar:
        for span in _encode_all(todo, processes):
            bar.update(span[1] - span[0])
    entries = [_finished(name) for name in names]
    index = {"tokens": sum(entry["tokens"] for entry in entries), "bytes": size, **settings, "shards": entries}
    atomic_write_json(folder / INDEX_FILE_NAME, index)
    return load_encoded(folder)


def _finished(name: Path) -> dict | None:
    entry = name.with_suffix(".json")
    return json.loads(entry.read_text()) if entry.exists() and name.exists() else None


def _encode_all(todo, processes):
    if processes == 1 or len(todo) < 2:
        for job in todo:
            _encode_shard(*job)
            yield job[2]
        return
    # New words are encoded one by one: the tokenizer's own threads would be of no use
    with ProcessPoolExecutor(
        min(processes, len(todo)), initializer=os.environ.__setitem__, initargs=("TOKENIZERS_PARALLELISM", "false")
    ) as pool:
        jobs = {pool.submit(_encode_shard, *job): job[2] for job in todo}
        for future in as_completed(jobs):
            future.result()
            yield jobs[future]


def load_encoded(folder: str | os.PathLike, verify: bool = False) -> EncodedCorpus:
    """
    Open what [`encode_files`] wrote.

    Args:
        folder (`str` or `os.PathLike`):
            Its `output_dir`.
        verify (`bool`, *optional*, defaults to `False`):
            Whether the checksum of each shard is computed again.

    Raises:
        `FileNotFoundError`: if there is no finished corpus.
        `ValueError`: if a shard has another length or checksum than when it was written.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE_NAME).exists():
        raise FileNotFoundError(f"`{folder}` holds no `{INDEX_FILE_NAME}`: run the encoding to its end first.")
    index = json.loads((folder / INDEX_FILE_NAME).read_text())
    shards = []
    for entry in index["shards"]:
        ids = np.load(folder / entry["file"], mmap_mode="r", allow_pickle=False)
        if len(ids) != entry["tokens"] or (verify and hashlib.sha256(ids.tobytes()).hexdigest() != entry["sha256"]):
            raise ValueError(
                f"`{folder / entry['file']}` is not what was written ({len(ids)} tokens, {entry['tokens']} expected, "
                "or another checksum). Remove it with its .json and encode again: only that shard is made anew."
            )
        shards.append(ids)
    return EncodedCorpus(shards, index)
