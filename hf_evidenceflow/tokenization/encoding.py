"""Encodes text files larger than memory into memory-mapped shards of token ids.

A shard is a piece of a file that begins at a special token or behind a line. It counts as done once the JSON next to
it stands, which is written last, so that an interrupted run goes on without a gap or a repeat.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..atomic_write import atomic_file, atomic_write_json
from ..files import check_fields, read_array, read_json
from .byte_level_codec import ByteLevelCodec, tokenizer_checksum
from .pretokens import PIECE_BYTES, all_pieces, cut, process_pool


INDEX_FILE_NAME = "index.json"
_PART_BYTES = 1 << 17
_AGAIN = "Encode the text again into this folder: only what is damaged is made anew."

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EncodedCorpus:
    """
    Shards of token ids; its length is the number of tokens.

    Args:
        shards (`list[np.ndarray]`): memory-mapped ids, each of shape `(tokens,)`, in the order of the text.
        index (`dict`): what `index.json` holds: tokens, bytes, settings, and one entry per shard.
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


def _encode_shard(codec: ByteLevelCodec, path, span, target: Path, run_all=map) -> dict:
    data = _read(path, span)

    def encode(part: tuple[int, int]) -> np.ndarray | None:
        text = data[part[0] : part[1]]
        ids = codec.encode(text)
        return ids if codec.decode(ids) == text else None

    # A part may end behind a line, but not within a special token that has one
    whole = any("\n" in separator for separator in codec.separators)
    parts = [(0, len(data))] if whole else cut(BytesIO(data), len(data), (), _PART_BYTES)
    encoded = list(run_all(encode, parts))
    if any(ids is None for ids in encoded):
        raise RuntimeError(
            f"Bytes {span[0]} to {span[1]} of `{path}` do not come back from their token ids: the tokenizer of "
            f"`{codec.name}` changes text. Take another one."
        )
    ids = np.concatenate(encoded)
    with atomic_file(target) as temporary, open(temporary, "wb") as file:
        np.save(file, ids)
    entry = {"file": target.name, "source": str(path), "span": list(span), "tokens": len(ids)}
    entry["sha256"] = hashlib.sha256(ids.data).hexdigest()
    atomic_write_json(target.with_suffix(".json"), entry)
    return entry


_codec_of_process: ByteLevelCodec | None = None


def _start_process(name: str) -> None:
    global _codec_of_process
    # New words are encoded one by one: the tokenizer's own threads would be of no use
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _codec_of_process = ByteLevelCodec(name, use_tiktoken=False)


def _encode_shard_in_process(*job) -> dict:
    return _encode_shard(_codec_of_process, *job)


def encode_files(
    paths: Sequence[str | os.PathLike],
    tokenizer: str | os.PathLike | ByteLevelCodec,
    output_dir: str | os.PathLike,
    processes: int = 1,
    piece_bytes: int = PIECE_BYTES,
    progress: bool = False,
) -> EncodedCorpus:
    """
    Encode text files into shards; what an interrupted call finished is not encoded again. Each shard is decoded and
    compared with its text before it counts. Memory holds one piece of a file per process.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            Text files; special tokens in them become the tokens.
        tokenizer (`str`, `os.PathLike` or [`ByteLevelCodec`]):
            Byte-level tokenizer: a folder, a Hub name, or the codec of one.
        output_dir (`str` or `os.PathLike`):
            Folder of the shards.
        processes (`int`, *optional*, defaults to `1`):
            Processes that encode at the same time; threads, where tiktoken encodes.
        piece_bytes (`int`, *optional*, defaults to 16 MiB):
            Bytes of text in a shard, about.
        progress (`bool`, *optional*, defaults to `False`):
            Whether a bar shows the bytes that are done.

    Raises:
        `ValueError`: if the files hold no text, the tokenizer is not byte-level, or the folder holds shards of other
        files
            or settings.
        `FileNotFoundError`: if a file does not exist.
        `RuntimeError`: if a text does not come back from its ids.
    """
    codec = tokenizer if isinstance(tokenizer, ByteLevelCodec) else ByteLevelCodec(tokenizer)
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
    remedy = "Choose another `output_dir`, or remove that folder."
    if started.exists() and read_json(started, remedy=remedy) != settings:
        raise ValueError(
            f"`{folder}` holds shards of other files, another tokenizer or another `piece_bytes`, by its "
            f"{started.name}. {remedy}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(started, settings)
    names = [folder / f"tokens-{number:05d}.npy" for number in range(len(spans))]
    todo = [(path, span, name) for (path, span), name in zip(spans, names) if not _is_finished(name)]
    size = sum(span[1] - span[0] for _, span in spans)
    done = size - sum(span[1] - span[0] for _, span, _ in todo)
    with logging.tqdm(
        total=size, initial=done, disable=not progress, desc="Encoding", unit="B", unit_scale=True
    ) as bar:
        for span in _encode_all(codec, todo, processes):
            bar.update(span[1] - span[0])
    entries = [read_json(name.with_suffix(".json")) for name in names]
    index = {"tokens": sum(entry["tokens"] for entry in entries), "bytes": size, **settings, "shards": entries}
    atomic_write_json(folder / INDEX_FILE_NAME, index)
    return load_encoded(folder)


def _is_finished(name: Path) -> bool:
    entry = name.with_suffix(".json")
    if not entry.exists() or not name.exists():
        return False
    try:
        _read_shard(name.parent, {**read_json(entry), "file": name.name})
    except ValueError as error:
        logger.warning(f"{error} It is encoded again.")
        return False
    return True


def _encode_all(codec, todo, processes):
    if codec.uses_tiktoken or processes == 1 or len(todo) < 2:
        threads = ThreadPoolExecutor(processes) if codec.uses_tiktoken and processes > 1 else nullcontext()
        with threads as pool:
            for job in todo:
                _encode_shard(codec, *job, map if pool is None else pool.map)
                yield job[1]
        return
    with process_pool(min(processes, len(todo)), initializer=_start_process, initargs=(codec.name,)) as pool:
        jobs = {pool.submit(_encode_shard_in_process, *job): job[1] for job in todo}
        for future in as_completed(jobs):
            future.result()
            yield jobs[future]


def load_encoded(folder: str | os.PathLike) -> EncodedCorpus:
    """
    Open what [`encode_files`] wrote into a folder; the checksum of each shard is computed again (about 1.5 s per GB).

    Raises:
        `FileNotFoundError`: if there is no finished corpus, or a shard is gone.
        `ValueError`: if the index or a shard is not what was written.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE_NAME).exists():
        raise FileNotFoundError(f"`{folder}` holds no `{INDEX_FILE_NAME}`: run the encoding to its end first.")
    path = folder / INDEX_FILE_NAME
    index = read_json(path, remedy=_AGAIN)
    check_fields(index, path, _AGAIN, tokens=int, tokenizer=str, files=list, shards=list)
    shards = [_read_shard(folder, entry) for entry in index["shards"]]
    if (tokens := sum(map(len, shards))) != index["tokens"]:
        raise ValueError(f"{path} says {index['tokens']} tokens, but its shards have {tokens}. {_AGAIN}")
    return EncodedCorpus(shards, index)


def _read_shard(folder: Path, entry: dict) -> np.ndarray:
    """A shard, if it is what its entry says."""
    check_fields(entry, f"The entry of a shard in {folder}", _AGAIN, file=str, tokens=int, sha256=str)
    path = folder / entry["file"]
    ids = read_array(path, _AGAIN)
    if ids.dtype not in (np.uint16, np.uint32) or ids.shape != (entry["tokens"],):
        raise ValueError(
            f"`{path}` is not what was written: {ids.dtype} of shape {ids.shape}, {entry['tokens']} tokens expected. "
            f"{_AGAIN}"
        )
    if hashlib.sha256(ids.data).hexdigest() != entry["sha256"]:
        raise ValueError(f"`{path}` is not what was written: it has another checksum. {_AGAIN}")
    return ids
