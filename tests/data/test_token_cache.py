"""Token ids of documents, and what is kept between runs on the same text."""

import pytest

from hf_evidenceflow.data.text import generate_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.data.token_cache import cached_text_tokenizer, encode_documents


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
