"""The exact trainer against the textbook one, and pre-tokenization in pieces."""

import importlib
import itertools
import random
from collections import Counter

import pytest
import regex
from repository import BENCHMARKS

from hf_evidenceflow.tokenization.exact_bpe import train_merges
from hf_evidenceflow.tokenization.pretokens import GPT2_PATTERN, all_pieces, count_pretokens, pieces


@pytest.fixture
def naive_merges(monkeypatch):
    """The textbook: all pairs are counted anew for each merge."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    learn = importlib.import_module("tokenizer_textbook").learn_merges

    def merges(word_counts, num_merges):
        words = {tuple(bytes([byte]) for byte in word): count for word, count in word_counts.items()}
        return learn(words, num_merges)

    return merges


@pytest.mark.parametrize("seed", range(12))
def test_merges_equal_the_textbooks(naive_merges, seed):
    rng = random.Random(seed)
    letters = b"ab" if seed % 2 else b"abcde"  # few letters: overlapping pairs and many ties
    words = Counter(bytes(rng.choice(letters) for _ in range(rng.randint(1, 9))) for _ in range(60))
    assert train_merges(words, 40) == naive_merges(words, 40)


def test_merges_equal_the_textbooks_on_text(naive_merges):
    text = " ".join(
        f"{word}{ending}" for word in ("low", "new", "wide", "grand") for ending in ("", "er", "est", "ly")
    )
    words = Counter(word.encode() for word in regex.findall(GPT2_PATTERN, text * 3 + " lowest newest naïve 12 12"))
    assert train_merges(words, 60) == naive_merges(words, 60)


def test_of_equally_frequent_pairs_the_greatest_is_merged():
    assert train_merges({b"ab": 2, b"ba": 2, b"\xff\x00": 2}, 3) == [(b"\xff", b"\x00"), (b"b", b"a"), (b"a", b"b")]


def test_training_ends_when_nothing_is_left_to_merge():
    assert train_merges({b"abc": 1}, 10) == [(b"b", b"c"), (b"a", b"bc")]


def corpus(tmp_path, separator="<|endoftext|>"):
    rng = random.Random(0)
    documents = [
        " ".join(rng.choice(["the", "naïve", "cat\n\n", "sat,", "12", "…", "it's"]) for _ in range(rng.randint(3, 40)))
        for _ in range(200)
    ]
    path = tmp_path / "corpus.txt"
    path.write_text(separator.join(documents), encoding="utf-8")
    return path, documents


@pytest.mark.parametrize("size", [50, 333, 4000])
def test_pieces_change_no_count(tmp_path, size):
    path, documents = corpus(tmp_path)
    expected = Counter(word.encode() for document in documents for word in regex.findall(GPT2_PATTERN, document))
    assert len(all_pieces([path], ["<|endoftext|>"], size)) > 1
    assert count_pretokens([path], ["<|endoftext|>"], piece_bytes=size) == expected


def test_pieces_cover_a_file_and_begin_at_documents(tmp_path):
    path, _ = corpus(tmp_path)
    spans = list(pieces(path, ["<|endoftext|>"], 700))
    assert spans[0][0] == 0 and spans[-1][1] == path.stat().st_size
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(spans))
    content = path.read_bytes()
    assert all(content[start:].startswith(b"<|endoftext|>") for start, _ in spans[1:])


def test_without_special_tokens_pieces_end_behind_lines(tmp_path):
    path, documents = corpus(tmp_path, separator="\n")
    expected = Counter(word.encode() for word in regex.findall(GPT2_PATTERN, "\n".join(documents)))
    assert len(all_pieces([path], [], 500)) > 3
    assert count_pretokens([path], [], piece_bytes=500) == expected


@pytest.mark.slow
def test_processes_change_no_count(tmp_path):
    path, _ = corpus(tmp_path)
    expected = count_pretokens([path], ["<|endoftext|>"], piece_bytes=900)
    assert count_pretokens([path], ["<|endoftext|>"], processes=2, piece_bytes=900) == expected


def test_bytes_that_are_no_utf8_are_counted_as_they_are(tmp_path):
    path = tmp_path / "bytes.bin"
    path.write_bytes(b"caf\xe9 \xff\xfe caf\xe9")
    assert sum(count_pretokens([path]).values()) == 5
    assert b"".join(sorted(count_pretokens([path]))).count(b"\xe9") == 1
