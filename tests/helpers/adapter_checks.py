"""Checks of PEFT's adapters that every causal LM of the package passes, or refuses with the reason."""

import pytest
import torch
from generation_checks import MASK, PROMPTS, generate
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from hf_evidenceflow.models.thinking.cache_argument import CACHE


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}


def logits_of(model, **kwargs):
    with torch.no_grad():
        return model(input_ids=PROMPTS, attention_mask=MASK, **kwargs).logits


def with_lora(model, targets, names=("default",), **fields):
    """Adapters that change the logits visibly."""
    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    adapted = get_peft_model(model, config, adapter_name=names[0]).eval()
    for name in names[1:]:
        adapted.add_adapter(name, config)
    return adapted


class AdapterChecks:
    """To be mixed in with a fixture `model`; `lora_targets` are names of modules."""

    lora_targets = ["q_proj", "v_proj", "o_proj"]
    takes_prefix = True

    @pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
    def test_adapters_can_be_disabled_and_merged(self, model, use_dora):
        base = logits_of(model)
        adapted = with_lora(model, self.lora_targets, use_dora=use_dora)
        expected = logits_of(adapted)
        assert (expected - base).abs().max() > 1e-2
        with adapted.disable_adapter():
            assert torch.equal(logits_of(adapted), base)
        adapted.merge_adapter()
        torch.testing.assert_close(logits_of(adapted), expected, rtol=0, atol=1e-3)
        adapted.unmerge_adapter()
        torch.testing.assert_close(logits_of(adapted), expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(logits_of(adapted.merge_and_unload()), expected, rtol=0, atol=1e-3)

    def test_each_row_may_have_an_adapter_of_its_own(self, model):
        model.double()  # else rounding may decide between two tokens
        base, base_tokens = logits_of(model), generate(model)
        adapted = with_lora(model, self.lora_targets, names=("one", "two"))
        expected, tokens = [base[0]], [base_tokens[0]]
        for row, name in ((1, "one"), (2, "two")):
            adapted.set_adapter(name)
            expected.append(logits_of(adapted)[row])
            tokens.append(generate(adapted)[row])
        names = ["__base__", "one", "two"]
        torch.testing.assert_close(logits_of(adapted, adapter_names=names), torch.stack(expected), rtol=0, atol=1e-4)
        assert generate(adapted, adapter_names=names) == tokens

    def test_adapters_can_be_added_up(self, model):
        adapted = with_lora(model, self.lora_targets, names=("one", "two"))
        adapted.add_weighted_adapter(["one", "two"], [1.0, 0.0], "sum", combination_type="cat")
        adapted.set_adapter("one")
        expected = logits_of(adapted)
        adapted.set_adapter("sum")
        torch.testing.assert_close(logits_of(adapted), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig])
    def test_virtual_tokens_decode_and_train(self, model, kind):
        adapted = get_peft_model(model, kind(**VIRTUAL)).eval()
        assert len(generate(adapted, count=3)[0]) == 3
        adapted.train()(input_ids=PROMPTS, attention_mask=MASK, labels=PROMPTS).loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)

    def test_prefix_tuning_works_or_is_refused_by_name(self, model):
        adapted = get_peft_model(model, PrefixTuningConfig(**VIRTUAL)).eval()
        if not self.takes_prefix:
            with pytest.raises(ValueError, match="prefix tuning.*Use LoRA or prompt tuning"):
                logits_of(adapted)
            if CACHE == "cache":  # PEFT 0.21 gives `generate` the prefix under the old name, which it drops
                return
            with pytest.raises(ValueError, match="prefix tuning.*Use LoRA or prompt tuning"):
                generate(adapted)
            return
        assert len(generate(adapted, count=3)[0]) == 3
        adapted.train()(input_ids=PROMPTS, attention_mask=MASK, labels=PROMPTS).loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
