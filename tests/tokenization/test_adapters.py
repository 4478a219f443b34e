"""The adapter for the tests of CS336's first assignment, on what those tests ask for."""

import io

import pytest
from cs336_adapters import get_tokenizer, run_train_bpe


TEXT = "There was\n\na naïve cat, 12 years old. It's 🙃 fun<|endoftext|>Once more<|endoftext|><|endoftext|>\n\n\n  x\n"
SPECIAL = ["<|endoftext|>", "<|endoftext|><|endoftext|>"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return run_train_bpe(path, 300, SPECIAL[:1])


def test_the_vocabulary_has_special_tokens_bytes_and_merges(trained):
    vocab, merges = trained
    assert vocab[0] == SPECIAL[0].encode() and len(vocab) == 300 == 1 + 256 + len(merges)
    assert set(vocab.values()) == {
        SPECIAL[0].encode(),
        *(bytes([byte]) for byte in range(256)),
        *map(b"".join, merges),
    }
    assert not any(b"<|" in token for token in list(vocab.values())[1:])


def test_the_tokenizer_keeps_the_ids_it_is_given(trained):
    vocab, merges = trained
    moved = {len(vocab) - 1 - index: token for index, token in vocab.items()}
    ids, others = (get_tokenizer(each, merges, SPECIAL[:1]).encode(TEXT) for each in (vocab, moved))
    assert [vocab[index] for index in ids] == [moved[index] for index in others] and ids != others
    assert b"".join(vocab[index] for index in ids).decode() == TEXT


def test_of_overlapping_special_tokens_the_longest_counts(trained):
    vocab, merges = trained
    tokenizer = get_tokenizer({**vocab, len(vocab): SPECIAL[1].encode()}, merges, SPECIAL)
    tokens = [tokenizer.decode([index]) for index in tokenizer.encode(TEXT)]
    assert tokens.count(SPECIAL[0]) == 1 and tokens.count(SPECIAL[1]) == 1
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_lines_one_by_one_give_the_ids_of_the_whole(trained):
    tokenizer = get_tokenizer(*trained, SPECIAL[:1])
    assert list(tokenizer.encode_iterable(io.StringIO(TEXT))) == tokenizer.encode(TEXT)
