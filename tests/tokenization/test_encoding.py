"""Bulk encoding: the ids are those of the tokenizer, bytes survive, and an interruption leaves no gap."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_evidenceflow.tokenization import encoding
from hf_evidenceflow.tokenization.encoding import ByteLevelCodec, encode_files, load_encoded
from hf_evidenceflow.tokenization.pretokens import GPT2_PATTERN
from hf_evidenceflow.tokenization.training import train_tokenizer


TEXT = "Tom has 3 apples.<|endoftext|>Ann gives him 2 more apples, naïve 🍎 Ann! <|endoftext|>Tom's apples: 5\n\n"
DATA = TEXT.encode() * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoding")
    (path / "text.txt").write_bytes(DATA)
    train_tokenizer([path / "text.txt"], 290, ["<|endoftext|>", "<|end"]).save_pretrained(path / "tokenizer")
    return path


def encode(folder, output, **kwargs):
    return encode_files([folder / "text.txt"], str(folder / "tokenizer"), output, **{"piece_bytes": 300, **kwargs})


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_hold_the_tokenizers_ids_of_the_whole_text(folder, tmp_path, processes):
    corpus = encode(folder, tmp_path / "out", processes=processes)
    expected = AutoTokenizer.from_pretrained(folder / "tokenizer")(DATA.decode())["input_ids"]
    assert len(corpus.shards) > 3 and np.concatenate(corpus.shards).tolist() == expected
    assert len(corpus) == len(expected) and all(isinstance(shard, np.memmap) for shard in corpus.shards)


def test_any_bytes_come_back(folder):
    codec = ByteLevelCodec(str(folder / "tokenizer"))
    data = (
        bytes(range(256)) + b"Tom \xff\xfe has<|endoftext|>\xc3 3 apples" + "é\udc80".encode("utf-8", "surrogatepass")
    )
    assert codec.decode(codec.encode(data)) == data
    assert len(codec.encode(b"a\xffb")) == 3


def test_words_are_split_as_the_tokenizer_does(folder, monkeypatch):
    text = "Tom's  has\n\n3 apples \n Ann\t\thas'll 22½ \u00a0\u3000 \tapples.\r\n" * 20
    monkeypatch.setattr(encoding, "_CACHED_WORDS", 5)
    ids = ByteLevelCodec(str(folder / "tokenizer")).encode(text.encode()).tolist()
    assert ids == AutoTokenizer.from_pretrained(folder / "tokenizer")(text)["input_ids"]


def test_ids_equal_tiktokens_for_the_same_vocabulary(folder):
    tiktoken = pytest.importorskip("tiktoken")
    codec = ByteLevelCodec(str(folder / "tokenizer"))
    ranks = {value: index for index, value in codec._bytes.items() if index > 1}
    other = tiktoken.Encoding("test", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 0})
    assert codec.encode(DATA).tolist() == other.encode(DATA.decode(), allowed_special="all")


def test_special_tokens_in_the_text_are_one_id_the_longer_first(folder):
    codec = ByteLevelCodec(str(folder / "tokenizer"))
    assert codec.encode(b"<|endoftext|><|end<|endoftext|>").tolist() == [0, 1, 0]


def test_an_interrupted_run_goes_on_without_a_gap_or_a_repeat(folder, tmp_path, monkeypatch):
    whole = encode(folder, tmp_path / "whole")
    original, calls = encoding._encode_shard, []

    def interrupted(*job):
        if len(calls) == 2:
            (job[3].with_suffix(".part.npy")).write_bytes(b"half a shard")
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
    load_encoded(tmp_path)
    with pytest.raises(ValueError, match="tokens-00001.npy. is not what was written"):
        load_encoded(tmp_path, verify=True)
    np.save(name, ids[1:])
    with pytest.raises(ValueError, match="tokens-00001.npy. is not what was written"):
        load_encoded(tmp_path)
    name.unlink()
    encode(folder, tmp_path)
    load_encoded(tmp_path, verify=True)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)  # letters and digits only
    with pytest.raises(ValueError, match="is not byte-level with all 256 bytes"):
        ByteLevelCodec(str(tmp_path))


def test_a_text_that_does_not_come_back_stops_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ByteLevelCodec, "decode", lambda self, ids: b"another text")
    with pytest.raises(RuntimeError, match="do not come back from their token ids"):
        encode(folder, tmp_path)


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
