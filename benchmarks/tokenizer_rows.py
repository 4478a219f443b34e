"""One row of `tokenizer_assignment.py`, in a process of its own: a job as JSON in, what it took as JSON out."""

import json
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import tokenizer_textbook as textbook
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_evidenceflow.data.text import END_OF_TEXT
from hf_evidenceflow.tokenization.byte_level_codec import ByteLevelCodec
from hf_evidenceflow.tokenization.encoding import encode_files
from hf_evidenceflow.tokenization.exact_bpe import train_merges
from hf_evidenceflow.tokenization.pretokens import all_pieces, count_pretokens, read_texts
from hf_evidenceflow.tokenization.training import from_merges, train_tokenizer


Merges = list[tuple[bytes, bytes]]
RESERVED = 257  # tokens that are no merges: the bytes, and the end of a text
_CHILDREN_MB = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def load_merges(path: Path) -> Merges:
    return [(bytes.fromhex(left), bytes.fromhex(right)) for left, right in json.loads(path.read_text())]


def status_mb(name: str) -> float:
    """A field of this process's status; `getrusage` would count what the process that started this one holds."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak_mb() -> float:
    """Peak memory above that of the imports; with processes also that of the largest one, shared pages included."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return status_mb("VmHWM") - _HELD_MB + (children if children > _CHILDREN_MB else 0)


_HELD_MB = status_mb("VmRSS")


def train_ours(text: Path, vocab_size: int, processes: int, **_) -> dict:
    start = time.perf_counter()
    words = count_pretokens([text], [END_OF_TEXT], processes)
    counted = time.perf_counter()
    merges = train_merges(words, vocab_size - RESERVED)
    ended = time.perf_counter()
    found = {"count_seconds": counted - start, "merge_seconds": ended - counted, "merges": len(merges)}
    return found | {"pretokens": sum(words.values()), "distinct": len(words), "peak_mb": peak_mb()}


def train_tokenizers(text: Path, vocab_size: int, **_) -> dict:
    start = time.perf_counter()
    train_tokenizer([text], vocab_size, [END_OF_TEXT])
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def train_naive(text: Path, merges: Path, timed_merges: int, windows: list[int], **_) -> dict:
    """Counting, and the time of some merges after so many (`windows`), which must be those that ours has learned."""
    learned = load_merges(merges)
    start = time.perf_counter()
    words = textbook.count_words(text, END_OF_TEXT)
    found = {"count_seconds": time.perf_counter() - start, "windows": {}}
    for first in windows:
        state = words_after(words, learned[:first]) if first else words
        start = time.perf_counter()
        new = textbook.learn_merges(state, timed_merges)
        found["windows"][first] = (time.perf_counter() - start) / timed_merges
        if new != learned[first : first + timed_merges]:
            raise RuntimeError(f"Merges {first} and on of the textbook differ: {new}")
        found.setdefault("peak_mb", peak_mb())  # of the textbook alone
    return found


def words_after(words: Counter[textbook.Word], merges: Merges) -> Counter[textbook.Word]:
    """Words after the first merges."""
    backend = from_merges(merges).backend_tokenizer
    letters = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}
    encoded = backend.encode_batch([b"".join(word).decode() for word in words], add_special_tokens=False)
    state: Counter[textbook.Word] = Counter()
    for encoding, count in zip(encoded, words.values()):
        state[tuple(b"".join(letters[letter] for letter in token) for token in encoding.tokens)] += count
    return state


def encode_ours(text: Path, tokenizer: Path, processes: int, tiktoken: bool = True, **_) -> dict:
    codec = ByteLevelCodec(tokenizer, use_tiktoken=tiktoken)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        corpus = encode_files([text], codec, output, processes, piece_bytes=1 << 22)
        return {"seconds": time.perf_counter() - start, "tokens": len(corpus), "peak_mb": peak_mb()}


def encode_tokenizers(text: Path, tokenizer: Path, **_) -> dict:
    backend = ByteLevelCodec(tokenizer, use_tiktoken=False)._backend
    start = time.perf_counter()
    texts = [part for _, span in all_pieces([text], [], 1 << 16) for part in read_texts(text, [], span)]
    tokens = sum(len(part.ids) for part in backend.encode_batch_fast(texts, add_special_tokens=False))
    return {"seconds": time.perf_counter() - start, "tokens": tokens, "peak_mb": peak_mb()}


def encode_naive(text: Path, tokenizer: Path, merges: Path, vocab_size: int, naive_bytes: int, **_) -> dict:
    """The start of the text; the ids must be those of ours."""
    with open(text, "rb") as file:
        data = file.read(naive_bytes)
    data = data[: data.rindex(b"\n")]
    vocabulary = [*(bytes([byte]) for byte in range(256))]
    learned = load_merges(merges)[: vocab_size - RESERVED]
    vocabulary += [left + right for left, right in learned]
    ids = {token: index for index, token in enumerate(vocabulary, start=1)}
    ranks = {pair: rank for rank, pair in enumerate(learned)}
    start = time.perf_counter()
    encoded: list[int] = []
    for number, document in enumerate(data.decode().split(END_OF_TEXT)):
        encoded += [0] * (number > 0) + textbook.encode(document, ranks, ids)
    found = {"seconds": time.perf_counter() - start, "tokens": len(encoded), "bytes": len(data), "peak_mb": peak_mb()}
    if encoded != ByteLevelCodec(tokenizer).encode(data).tolist():
        raise RuntimeError("The ids of the textbook differ from ours.")
    return found


PARTS = {
    ("train", "ours"): train_ours,
    ("train", "tokenizers"): train_tokenizers,
    ("train", "naive"): train_naive,
    ("encode", "ours"): encode_ours,
    ("encode", "ours without tiktoken"): lambda **job: encode_ours(**job, tiktoken=False),
    ("encode", "tokenizers"): encode_tokenizers,
    ("encode", "naive"): encode_naive,
}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    measure = PARTS[job.pop("part"), job.pop("method")]
    paths = {name: Path(job.pop(name)) for name in ("text", "tokenizer", "merges")}
    print(json.dumps(measure(**paths, **job)))
