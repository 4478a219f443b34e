"""Models with random weights: what a config cannot be is refused with its fields."""

import pytest

from hf_evidenceflow.models.from_scratch import model_from_scratch


@pytest.mark.parametrize(
    "overrides",
    [{"num_attention_heads": 0}, {"hidden_size": -4}, {"hidden_size": "wide"}, {"hidden_act": "none such"}],
    ids=str,
)
def test_fields_that_make_no_model_are_named(overrides, tokenizer):
    with pytest.raises(ValueError, match=r"No model can be made with `config_overrides` .*\. Correct them") as raised:
        model_from_scratch("llama", overrides, tokenizer)
    assert str(overrides) in str(raised.value)


def test_a_dtype_that_is_none_is_refused(tokenizer):
    with pytest.raises(ValueError, match="`dtype` must be a type such as 'float32'.*got 'float12'"):
        model_from_scratch("llama", {}, tokenizer, dtype="float12")
