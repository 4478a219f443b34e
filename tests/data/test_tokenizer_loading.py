from tiny_models import TINY
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from hf_evidenceflow.data import load_tokenizer
from hf_evidenceflow.tasks import build_word_problem_tokenizer


TEXT = "Ann has 3 apples"


def test_a_tokenizer_of_no_family_beside_a_qwen2_is_taken_as_it_was_saved(tmp_path):
    tokenizer = build_word_problem_tokenizer()
    Qwen2ForCausalLM(Qwen2Config(**{**TINY, "vocab_size": len(tokenizer)})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer(TEXT)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] != expected  # remove `load_tokenizer` when equal
    loaded = load_tokenizer(tmp_path, padding_side="left")
    assert loaded(TEXT)["input_ids"] == expected and loaded.padding_side == "left"


def test_a_tokenizer_of_a_family_stays_one(tmp_path):
    Qwen2Tokenizer(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]).save_pretrained(tmp_path)
    assert type(load_tokenizer(tmp_path)) is Qwen2Tokenizer
