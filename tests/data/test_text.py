"""Text as documents, the tokenizer trained on it, token ids and their cache, rows."""

import numpy as np
import pytest

from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents, load_documents, split_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.data.token_cache import cached_text_tokenizer, encode_documents


# Documents of 2, 3, 5 and 7 tokens; each token is unique
LENGTHS = (2, 3, 5, 7)
ENDS = np.cumsum(LENGTHS)
IDS = np.arange(100, 100 + ENDS[-1], dtype=np.int32)
DOCUMENTS = [list(IDS[end - length : end]) for length, end in zip(LENGTHS, ENDS)]


def rows_of(packing, block_size=8):
    dataset = pack_rows(IDS, ENDS, block_size, packing, pad_token_id=9)
    return [{name: value.tolist() for name, value in dataset[i].items()} for i in range(len(dataset))]


def test_a_text_file_is_cut_at_the_separator(tmp_path):
    (tmp_path / "a.txt").write_text(f"one{END_OF_TEXT}two{END_OF_TEXT}\n")
    assert load_documents(str(tmp_path / "a.txt")) == ["one", "two"]


def test_a_text_file_without_the_separator_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert load_documents(str(tmp_path / "a.txt")) == ["one\n\ntwo"]


def test_a_folder_gives_the_text_file_of_the_split(tmp_path):
    (tmp_path / "train.txt").write_text("seen")
    (tmp_path / "validation.txt").write_text("held out")
    assert load_documents(str(tmp_path), "validation") == ["held out"]


def test_a_data_file_gives_the_text_column_without_blank_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "one"}\n{"story": " "}\n{"story": "two"}\n')
    assert load_documents(str(tmp_path / "a.jsonl"), text_column="story") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, FileNotFoundError, "There is no file"),
        (b"", ValueError, "holds no text"),
        (b" \n", ValueError, "holds no text"),
        (b"\xff\xfe\xfa", ValueError, "is UTF-16"),
    ],
)
def test_unusable_text_files_are_named(tmp_path, content, error, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        load_documents(str(path))
    assert str(path) in str(caught.value)


def test_generated_documents_are_the_same_again_and_held_out_ones_are_new():
    train, validation = generate_documents(train=30, validation=7)
    assert (train, validation) == generate_documents(train=30, validation=7)
    assert (len(train), len(validation)) == (30, 7)
    assert not set(train) & set(validation)


def test_the_last_documents_are_held_out():
    assert split_documents(["a", "b", "c", "d", "e"], 0.3) == (["a", "b", "c"], ["d", "e"])


def test_of_a_single_document_the_end_is_held_out():
    train, validation = split_documents(["one two three four"], 0.25)
    assert (train, validation) == (["one two"], [" three four"])


@pytest.mark.parametrize("share", [0, 1, -0.1, 0.9])
def test_a_share_that_leaves_nothing_is_an_error(share):
    with pytest.raises(ValueError, match="validation_share"):
        split_documents(["a", "b"], share)


def test_any_text_is_decoded_to_itself():
    tokenizer = train_text_tokenizer(["the cat sat on the mat"] * 5, vocab_size=270)
    text = "the dog's naïve\n 猫 <unk> 12"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 270


def test_training_the_tokenizer_twice_gives_the_same():
    texts = generate_documents(50, 5)[0]
    first, second = (train_text_tokenizer(texts, 300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_vocabulary_below_the_bytes_is_an_error():
    with pytest.raises(ValueError, match="at least 258.*got 257"):
        train_text_tokenizer(["a"], 257)


def test_each_document_ends_with_eos():
    tokenizer = train_text_tokenizer(["abc"], 258)
    ids, ends = encode_documents(["abc", "", "de"], tokenizer)
    eos = tokenizer.eos_token_id
    assert ends.tolist() == [4, 5, 8]
    assert ids[ends - 1].tolist() == [eos] * 3
    assert tokenizer.decode(ids[:3]) == "abc" and tokenizer.decode(ids[5:7]) == "de"


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = train_text_tokenizer(["abc"], 258)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="EOS"):
        encode_documents(["abc"], tokenizer)


def test_the_cache_gives_what_was_computed(tmp_path):
    texts = generate_documents(20, 5)[0]
    for _ in range(2):
        tokenizer = cached_text_tokenizer(texts, 300, tmp_path)
        ids, ends = encode_documents(texts, tokenizer, tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    fresh = train_text_tokenizer(texts, 300)
    assert tokenizer.get_vocab() == fresh.get_vocab() and tokenizer.eos_token == fresh.eos_token
    for cached, computed in zip((ids, ends), encode_documents(texts, fresh)):
        assert cached.dtype == computed.dtype and (cached == computed).all()


@pytest.mark.parametrize("flipped", ["tokenizer-*", "tokens-*"])
def test_a_damaged_cache_is_made_anew(tmp_path, flipped):
    texts = generate_documents(20, 5)[0]
    tokenizer = cached_text_tokenizer(texts, 300, tmp_path)
    expected = encode_documents(texts, tokenizer, tmp_path)
    (path,) = tmp_path.glob(flipped)
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        again = cached_text_tokenizer(texts, 300, tmp_path)
        assert again.get_vocab() == tokenizer.get_vocab()
        for cached, computed in zip(encode_documents(texts, tokenizer, tmp_path), expected):
            assert cached.tolist() == computed.tolist()


@pytest.mark.parametrize("change", ["text", "borders", "tokenizer"])
def test_the_cache_tells_contents_apart(tmp_path, change):
    texts, size = ["ab", "cd"], 258
    encode_documents(texts, cached_text_tokenizer(texts, size, tmp_path), tmp_path)
    texts, size = {"text": (["ab", "ce"], 258), "borders": (["abc", "d"], 258), "tokenizer": (texts, 259)}[change]
    tokenizer = cached_text_tokenizer(texts, size, tmp_path)
    ids, ends = encode_documents(texts, tokenizer, tmp_path)
    expected = encode_documents(texts, train_text_tokenizer(texts, size))
    assert ids.tolist() == expected[0].tolist() and ends.tolist() == expected[1].tolist()


def test_blocks_are_the_stream_in_its_order_without_the_rest():
    rows = rows_of("blocks", block_size=7)
    assert [token for row in rows for token in row["input_ids"]] == IDS[:14].tolist()
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_a_text_below_one_block_is_an_error():
    with pytest.raises(ValueError, match="17 tokens, fewer than one block of 18"):
        rows_of("blocks", block_size=18)


def test_documents_are_packed_whole_and_best_fit():
    rows = rows_of("documents")
    assert [row["input_ids"] for row in rows] == [
        [*DOCUMENTS[3], 9],
        [*DOCUMENTS[2], *DOCUMENTS[1]],
        [*DOCUMENTS[0], *[9] * 6],
    ]


def test_positions_start_at_0_in_each_document():
    assert [row["position_ids"] for row in rows_of("documents")] == [
        [0, 1, 2, 3, 4, 5, 6, 0],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 0, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_first_tokens_and_fillers_have_no_label(packing):
    firsts = {document[0] for document in DOCUMENTS}
    for row in rows_of(packing):
        for token, label in zip(row["input_ids"], row["labels"]):
            assert label == (-100 if token in firsts or token == 9 else token)


def test_a_document_longer_than_a_row_is_cut_in_pieces():
    rows = rows_of("documents", block_size=4)
    tokens = sorted(token for row in rows for token in row["input_ids"] if token != 9)
    assert tokens == IDS.tolist()


def test_without_packing_each_document_has_its_row():
    rows = rows_of("none", block_size=5)
    assert [row["input_ids"][: sum(row["attention_mask"])] for row in rows] == [d[:5] for d in DOCUMENTS]
    assert [sum(row["attention_mask"]) for row in rows] == [2, 3, 5, 5]


@pytest.mark.parametrize(
    ("settings", "words"), [(("bfd", 8), "blocks, documents, none"), (("blocks", 1), "at least 2")]
)
def test_unknown_packing_and_single_token_rows_are_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        rows_of(*settings)
