import pytest
from transformers import AutoTokenizer

from hf_evidenceflow.tokenization.training import train_tokenizer


TEXT = "Tom has 3 apples.<|endoftext|>Ann gives him 2 more apples, naïve Ann! <|endoftext|>Tom's apples: 5\n\n"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 5, encoding="utf-8")
    return path


@pytest.mark.parametrize("tie_rule", ["tokenizers", "greatest"])
def test_a_saved_tokenizer_loads_and_round_trips(text_file, tmp_path, tie_rule):
    tokenizer = train_tokenizer([text_file], 280, ["<|endoftext|>", "<|user|>"], tie_rule)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(loaded) == 280 and loaded.eos_token == "<|endoftext|>"
    text = "Tom's naïve 🍎 apples<|endoftext|>\n\n and <|user|> more"
    ids = loaded(text)["input_ids"]
    assert loaded.decode(ids, clean_up_tokenization_spaces=False) == text
    assert ids.count(0) == 1 and ids.count(1) == 1


def test_special_tokens_are_never_split_nor_merged_across(text_file):
    tokenizer = train_tokenizer([text_file], 400, tie_rule="greatest")
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in range(1, len(tokenizer))]
    assert not [piece for piece in pieces if "endof" in piece or "<|" in piece]


def test_the_two_rules_agree_where_there_are_no_ties(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd " * 8 + "bcd " * 4 + "cd " * 2)
    vocabularies = [
        set(train_tokenizer([path], 260, tie_rule=rule).get_vocab()) for rule in ("tokenizers", "greatest")
    ]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"vocab_size": 256}, "at least 257 .256 bytes and 1 special tokens., got 256"),
        ({"vocab_size": 300, "tie_rule": "random"}, "'tokenizers', 'greatest', got 'random'"),
    ],
)
def test_bad_arguments_are_refused(text_file, arguments, words):
    with pytest.raises(ValueError, match=words):
        train_tokenizer([text_file], **arguments)


@pytest.mark.parametrize("tie_rule", ["tokenizers", "greatest"])
def test_an_empty_corpus_is_refused(tmp_path, tie_rule):
    path = tmp_path / "empty.txt"
    path.write_text("")
    with pytest.raises(ValueError, match="no text to train on"):
        train_tokenizer([path], 300, tie_rule=tie_rule)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        train_tokenizer([tmp_path / "nothing.txt"], 300)
