"""The byte-level tokenizer trained on documents."""

import pytest

from hf_evidenceflow.data.text import generate_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer


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
