"""Bulk encoding: the ids are those of the tokenizer, bytes survive, and an interruption leaves no gap."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_evidenceflow.tokenization import byte_level_codec, encoding
from hf_evidenceflow.tokenization.byte_level_codec import ByteLevelCodec, merges_follow_ids
from hf_evidenceflow.tokenization.encoding import encode_files, load_encoded
from hf_evidenceflow.tokenization.training import train_tokenizer


TEXT = "Tom has 3 apples.<|endoftext|>Ann gives him 2 more apples, naïve 🍎 Ann! <|endoftext|>Tom's apples: 5\n\n"
DATA = TEXT.encode() * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoding")
    (path / "text.txt").write_bytes(DATA)
    train_tokenizer([path / "text.txt"], 290, ["<|endoftext|>", "<|end"]).save_pretrained(path / "tokenizer")
    return path


@pytest.fixture(params=["tiktoken", "words"])
def codec(request, folder):
    """The tokenizer's codec, with each engine."""
    return ByteLevelCodec(folder / "tokenizer", use_tiktoken=request.param == "tiktoken")


def encode(folder, output, tokenizer=None, **kwargs):
    tokenizer = tokenizer or str(folder / "tokenizer")
    return encode_files([folder / "text.txt"], tokenizer, output, **{"piece_bytes": 300, **kwargs})


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_hold_the_tokenizers_ids_of_the_whole_text(folder, codec, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(encoding, "_PART_BYTES", 70)
    corpus = encode(folder, tmp_path / "out", codec, processes=processes)
    expected = AutoTokenizer.from_pretrained(folder / "tokenizer")(DATA.decode())["input_ids"]
    assert len(corpus.shards) > 3 and np.concatenate(corpus.shards).tolist() == expected
    assert len(corpus) == len(expected) and all(isinstance(shard, np.memmap) for shard in corpus.shards)


def test_any_bytes_come_back(codec, monkeypatch):
    monkeypatch.setattr(byte_level_codec, "_DECODED_AT_A_TIME", 7)
    data = (
        bytes(range(256)) + b"Tom \xff\xfe has<|endoftext|>\xc3 3 apples" + "é\udc80".encode("utf-8", "surrogatepass")
    )
    assert codec.decode(codec.encode(data)) == data
    assert len(codec.encode(b"a\xffb")) == 3
    assert codec.decode(codec.encode(b"")) == b""


def test_words_are_split_as_the_tokenizer_does(folder, codec, monkeypatch):
    text = "Tom's  has\n\n3 apples \n Ann\t\thas'll 22½ \u00a0\u3000 \tapples.\r\n" * 20
    monkeypatch.setattr(byte_level_codec, "_CACHED_WORDS", 5)
    ids = codec.encode(text.encode()).tolist()
    assert ids == AutoTokenizer.from_pretrained(folder / "tokenizer")(text)["input_ids"]


def test_special_tokens_in_the_text_are_one_id_the_longer_first(codec):
    assert codec.encode(b"<|endoftext|><|end<|endoftext|>").tolist() == [0, 1, 0]


def test_a_run_of_spaces_that_tiktoken_gives_up_on_is_encoded_all_the_same(folder):
    codec = ByteLevelCodec(folder / "tokenizer", use_tiktoken=True)
    data = b"Tom" + b" " * 1_000_000 + b"has"
    with pytest.raises(ValueError, match="Regex error"):  # else this shows nothing
        codec._tiktoken.encode_to_numpy(data.decode())
    assert codec.decode(codec.encode(data)) == data


def test_a_special_token_with_a_line_break_is_not_cut(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(b"Tom has 3 apples.<a\nb>Ann<a\nb>" * 9)
    train_tokenizer([tmp_path / "text.txt"], 280, ["<a\nb>"]).save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(encoding, "_PART_BYTES", 5)
    corpus = encode_files([tmp_path / "text.txt"], tmp_path / "tokenizer", tmp_path / "out", processes=2)
    assert np.concatenate(corpus.shards).tolist().count(0) == 18


@pytest.mark.parametrize(
    ("ranks", "merges", "follows"),
    [
        ({b"ab": 256, b"abc": 257}, [(b"a", b"b"), (b"ab", b"c")], True),
        # `abc` as a word: the merges join `ab` first, the lowest id of a union is that of `bc`
        ({b"bc": 256, b"ab": 257, b"abc": 258}, [(b"ab", b"c")], False),
        ({b"bc": 256, b"ab": 257}, [(b"a", b"b"), (b"b", b"c")], False),
        ({b"bc": 256, b"ab": 257, b"abc": 258}, [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")], False),
        ({b"bc": 256, b"ab": 257, b"abc": 258}, [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")], True),
        ({b"abc": 256}, [], False),
    ],
)
def test_merges_follow_ids_only_if_each_product_comes_to_its_own_parts(ranks, merges, follows):
    assert merges_follow_ids({bytes([byte]): byte for byte in range(256)} | ranks, merges) is follows


def reordered(folder, target):
    """The tokenizer with the ids of its first and last merge exchanged."""
    backend = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    first, *_, last = ("".join(pair) for pair in backend["model"]["merges"])
    vocab = backend["model"]["vocab"]
    vocab[first], vocab[last] = vocab[last], vocab[first]
    target.mkdir()
    (target / "changed.json").write_text(json.dumps(backend))
    PreTrainedTokenizerFast(tokenizer_file=str(target / "changed.json")).save_pretrained(target)
    return target


def test_ids_that_are_not_in_the_order_of_the_merges_are_left_to_the_tokenizer(folder, tmp_path):
    changed = reordered(folder, tmp_path / "tokenizer")
    codec = ByteLevelCodec(changed)
    assert not codec.uses_tiktoken
    expected = PreTrainedTokenizerFast.from_pretrained(changed)(DATA.decode())["input_ids"]
    assert codec.encode(DATA).tolist() == expected
    with pytest.raises(ValueError, match="tiktoken would give other ids"):
        ByteLevelCodec(changed, use_tiktoken=True)


def test_without_tiktoken_words_are_looked_up(folder, monkeypatch):
    monkeypatch.setattr(byte_level_codec.importlib.util, "find_spec", lambda name: None)
    assert not ByteLevelCodec(folder / "tokenizer").uses_tiktoken
    with pytest.raises(ImportError, match=r"hf-evidenceflow\[encoding\]"):
        ByteLevelCodec(folder / "tokenizer", use_tiktoken=True)


def test_an_interrupted_run_goes_on_without_a_gap_or_a_repeat(folder, tmp_path, monkeypatch):
    whole = encode(folder, tmp_path / "whole")
    original, calls = encoding._encode_shard, []

    def interrupted(*job):
        if len(calls) == 2:
            job[3].with_name(f".{job[3].name}.1.tmp").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        calls.append(job[2])
        return original(*job)

    monkeypatch.setattr(encoding, "_encode_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(folder, tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="run the encoding to its end first"):
        load_encoded(tmp_path / "cut")
    again = []
    monkeypatch.setattr(encoding, "_encode_shard", lambda *job: again.append(job[2]) or original(*job))
    cut = encode(folder, tmp_path / "cut")
    assert len(again) == len(whole.shards) - 2 and not set(again) & set(calls)
    assert all(np.array_equal(one, two) for one, two in zip(cut.shards, whole.shards, strict=True))


def test_a_folder_of_other_settings_is_refused(folder, tmp_path):
    encode(folder, tmp_path)
    with pytest.raises(ValueError, match="holds shards of other files, another tokenizer or another `piece_bytes`"):
        encode(folder, tmp_path, piece_bytes=400)


def test_a_changed_shard_is_found(folder, tmp_path):
    corpus = encode(folder, tmp_path)
    name = tmp_path / corpus.index["shards"][1]["file"]
    ids = np.load(name)
    ids[0] += 1
    np.save(name, ids)
    with pytest.raises(ValueError, match="tokens-00001.npy. is not what was written"):
        load_encoded(tmp_path)


@pytest.mark.parametrize("damage", ["value", "length", "dtype", "cut", "gone", "entry"])
def test_encoding_again_makes_only_the_damaged_shard_anew(folder, tmp_path, monkeypatch, damage):
    whole = encode(folder, tmp_path)
    expected = [shard.copy() for shard in whole.shards]
    name = tmp_path / whole.index["shards"][1]["file"]
    ids = expected[1].copy()
    if damage == "value":
        ids[0] += 1
    if damage in ("value", "length", "dtype"):
        np.save(name, {"value": ids, "length": ids[1:], "dtype": ids.view(">u2")}[damage])
    elif damage == "cut":
        name.write_bytes(name.read_bytes()[:-3])
    elif damage == "gone":
        name.unlink()
    else:
        name.with_suffix(".json").write_text('{"file": ')
    if damage != "entry":
        with pytest.raises((ValueError, FileNotFoundError), match=r"tokens-00001\.npy"):
            load_encoded(tmp_path)
    original, again = encoding._encode_shard, []
    monkeypatch.setattr(encoding, "_encode_shard", lambda *job: again.append(job[3]) or original(*job))
    healed = encode(folder, tmp_path)
    assert again == [name]
    assert all(np.array_equal(one, two) for one, two in zip(healed.shards, expected, strict=True))


@pytest.mark.parametrize("content", ['{"tokens"', "{}", '{"tokens": 1}'])
def test_a_broken_index_is_named(folder, tmp_path, content):
    encode(folder, tmp_path)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json.*Encode the text again"):
        load_encoded(tmp_path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)  # letters and digits only
    with pytest.raises(ValueError, match="is not byte-level with all 256 bytes"):
        ByteLevelCodec(str(tmp_path))


def test_a_text_that_does_not_come_back_stops_the_run(folder, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(ByteLevelCodec, "decode", lambda self, ids: b"another text")
    with pytest.raises(RuntimeError, match="do not come back from their token ids"):
        encode(folder, tmp_path, codec)


@pytest.mark.parametrize("change", ["pre_tokenizer", "normalizer"])
def test_a_tokenizer_that_splits_otherwise_is_refused(folder, tmp_path, change):
    backend = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    backend[change] = {"pre_tokenizer": {"type": "WhitespaceSplit"}, "normalizer": {"type": "Lowercase"}}[change]
    (tmp_path / "changed.json").write_text(json.dumps(backend))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "changed.json")).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="is not byte-level with all 256 bytes"):
        ByteLevelCodec(str(tmp_path / "tokenizer"))


def test_an_empty_file_is_refused(folder, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="hold no text to encode"):
        encode_files([tmp_path / "empty.txt"], str(folder / "tokenizer"), tmp_path / "out")
