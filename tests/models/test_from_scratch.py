"""Models with random weights: what a config cannot be is refused with its fields."""

import pytest
from launching import fork_script

from hf_evidenceflow.models.from_scratch import model_from_scratch


def test_a_thinking_type_is_made_in_a_process_that_has_used_none(tmp_path):
    script = tmp_path / "fresh.py"
    script.write_text(
        "from hf_evidenceflow.models.from_scratch import model_from_scratch\n"
        "class Tokenizer:\n"
        "    bos_token_id = eos_token_id = pad_token_id = 0\n"
        "    def __len__(self): return 7\n"
        "sizes = {'hidden_size': 8, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'num_hidden_layers': 1}\n"
        "print(type(model_from_scratch('thinking_qwen2', sizes, Tokenizer())).__name__)\n"
    )
    process = fork_script(script, [], stdout=tmp_path / "out", stderr=tmp_path / "errors")
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "out").read_text() == "ThinkingQwen2ForCausalLM\n"


@pytest.mark.parametrize(
    "overrides",
    [{"num_attention_heads": 0}, {"hidden_size": -4}, {"hidden_size": "wide"}, {"hidden_act": "none such"}],
    ids=str,
)
def test_fields_that_make_no_model_are_named(overrides, tokenizer):
    with pytest.raises(ValueError, match=r"No `llama` model can be made with .*\. Correct these") as raised:
        model_from_scratch("llama", overrides, tokenizer)
    assert str(overrides) in str(raised.value)


def test_a_dtype_that_is_none_is_refused(tokenizer):
    with pytest.raises(ValueError, match="`dtype` must be a type such as 'float32'.*got 'float12'"):
        model_from_scratch("llama", {}, tokenizer, dtype="float12")
