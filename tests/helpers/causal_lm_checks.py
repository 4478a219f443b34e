"""Checks that every causal LM of the package passes; a test class sets `make_model` (and mixes this in)."""

import json

import pytest
import torch
from adapter_checks import AdapterChecks
from generation_checks import GenerationChecks
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


class CausalLMChecks(GenerationChecks, AdapterChecks):
    """Subclasses define `make_model()`, a tiny model on CPU, in fp32."""

    @staticmethod
    def make_model():
        raise TypeError("A test class that mixes in CausalLMChecks defines `make_model`.")

    @pytest.fixture
    def model(self):
        torch.manual_seed(11)
        return self.make_model().eval()

    @pytest.fixture
    def input_ids(self, model):
        return torch.randint(3, model.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(5))

    def test_reload_is_bit_equal(self, model, input_ids, tmp_path):
        model.save_pretrained(tmp_path)
        reloaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(reloaded(input_ids).logits, model(input_ids).logits)

    def test_auto_classes_load_it(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)

    def test_saved_config_holds_the_model_type(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["model_type"] == type(model.config).model_type
        assert saved["architectures"] == [type(model).__name__]

    def test_same_seed_gives_same_weights(self, model):
        torch.manual_seed(11)
        again = self.make_model()
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))

    def test_gradient_checkpointing_gives_the_same_gradients(self, model, input_ids):
        model.train()

        def gradients():
            model.zero_grad()
            model(input_ids, labels=input_ids, use_cache=False).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        plain = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        checkpointed = gradients()
        assert plain.keys() == checkpointed.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(
                checkpointed[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )

    def test_a_larger_vocabulary_keeps_the_logits_of_the_old_tokens(self, model, input_ids):
        old, size = model(input_ids).logits, model.config.vocab_size
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        model.resize_token_embeddings(size + 5)
        logits = model(input_ids).logits
        assert logits.shape[-1] == model.config.vocab_size == size + 5
        torch.testing.assert_close(logits[..., :size], old, rtol=0, atol=1e-5)
        assert tied == (model.lm_head.weight is model.get_input_embeddings().weight)

    def test_embeddings_in_the_place_of_tokens_give_the_same_logits(self, model, input_ids):
        embeds = model.get_input_embeddings()(input_ids)
        assert torch.equal(model(inputs_embeds=embeds).logits, model(input_ids).logits)

    def test_what_transformers_is_told_of_exists(self, model):
        classes = {type(module).__name__ for module in model.modules()}
        assert set(model._no_split_modules) <= classes
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        for part in type(model)._keep_in_fp32_modules_strict or ():
            assert isinstance(part, str) and part
        for pair in (type(model)._tied_weights_keys or {}).items():
            assert set(pair) <= set(names)

    def test_a_lost_weight_is_initialized_and_named(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        lost = next(name for name in weights if name.endswith("o_proj.weight"))
        del weights[lost]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert found["missing_keys"] == {lost}
        assert loaded.state_dict()[lost].std() > 0 and loaded.state_dict()[lost].isfinite().all()
