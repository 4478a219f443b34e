import importlib

import pytest
from repository import BENCHMARKS

from hf_evidenceflow.tokenization.byte_level_codec import ByteLevelCodec
from hf_evidenceflow.tokenization.exact_bpe import train_merges
from hf_evidenceflow.tokenization.training import from_merges


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_textbook_gives_our_ids(benchmark, tmp_path):
    text = "low lower lowest, naïve   newest 12\n"
    merges = train_merges({word.encode(): 3 for word in text.split()}, 12)
    from_merges(merges, ["<|endoftext|>"]).save_pretrained(tmp_path)
    vocabulary = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
    ids = {token: index for index, token in enumerate(vocabulary, start=1)}
    encoded = benchmark("tokenizer_textbook").encode(text, {pair: rank for rank, pair in enumerate(merges)}, ids)
    assert encoded == ByteLevelCodec(tmp_path).encode(text.encode()).tolist()
    assert len(encoded) < len(text)


def test_words_after_some_merges_go_on_with_the_next(benchmark):
    rows, textbook = benchmark("tokenizer_rows"), benchmark("tokenizer_textbook")
    counts = {b"newest": 6, b"widest": 3, b"lower": 2, b"low": 5}
    merges = train_merges(counts, 9)
    words = {tuple(bytes([byte]) for byte in word): count for word, count in counts.items()}
    assert textbook.learn_merges(rows.words_after(words, merges[:4]), 5) == merges[4:]


def test_the_naive_total_is_linear_between_the_timed_merges(benchmark):
    row = {"count_seconds": 2.0, "windows": {"0": 4.0, "10": 2.0}}
    assert benchmark("tokenizer_tables").naive_seconds(row, 257 + 20) == pytest.approx(2.0 + 31.0 + 20.0)


def test_the_same_command_goes_on_with_the_missing_rows(benchmark, monkeypatch, tmp_path):
    script, calls = benchmark("tokenizer_assignment"), []
    monkeypatch.setattr(script, "prepare", lambda args: None)
    monkeypatch.setattr(script, "write_tables", lambda results, path: None)

    def run(row, args):
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"seconds": 1.0}

    monkeypatch.setattr(script, "run", run)
    options = ["--text_files", "a.txt", "--rounds", "1", "--output", str(tmp_path / "rows.json")]
    with pytest.raises(KeyboardInterrupt):
        script.main(options)
    results = script.main(options)
    assert len(calls) == len(results["rows"]) + 1 == len(set(calls)) + 1
