"""Decoders of the families that users load on the first day: they think, are trained, saved, exported and adapted."""

import pickle

import pytest
import torch
from datasets import Dataset
from decoder_families import DAY_ONE, SETTINGS, each_family, save_plain
from hub_round_trip import run_without_package
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from peft.utils import constants
from tiny_models import TINY
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_evidenceflow
from hf_evidenceflow import HRPOConfig, HRPOTrainer, export_base_model, hub_code, load_thinking_model
from hf_evidenceflow.models.thinking import families
from hf_evidenceflow.models.thinking.families import thinking_family
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES


PROMPTS = torch.tensor([[0, 0, 9, 17, 5, 31, 44], [23, 7, 9, 40, 12, 8, 51]])
MASK = (PROMPTS > 0).long()
NEW = 6


@pytest.fixture(scope="module")
def plain(tokenizer, tmp_path_factory):
    """Plain models and their folders by family."""
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = save_plain(family, tokenizer, folder), str(folder)
        return made[family]

    return make


def load(plain, family, mode="projection", **fields):
    return load_thinking_model(plain(family)[1], thinking_mode=mode, **SETTINGS | fields).eval()


@torch.no_grad()
def logits(model):
    return model(PROMPTS, attention_mask=MASK).logits[MASK.bool()]


def think(model, **kwargs):
    model.generation_config.eos_token_id = None
    given = {"attention_mask": MASK, "max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(PROMPTS, **given | kwargs)


@torch.no_grad()
def replay(model, rollout):
    mask = torch.cat([MASK, torch.ones(len(MASK), NEW, dtype=torch.long)], 1)
    states = {"thinking_states": rollout.thinking_states, "thinking_mask": rollout.thinking_mask}
    return model(rollout.sequences, attention_mask=mask, **states).logits[:, -NEW - 1 : -1]


@each_family
def test_mode_none_is_bit_equal_to_the_plain_model(family, plain):
    assert torch.equal(logits(load(plain, family, "none")), logits(plain(family)[0]))


@each_family
def test_a_replay_gives_the_logits_of_the_rollout_in_each_mode(family, plain):
    model = load(plain, family, "tarpo", thinking_start_id=int(PROMPTS[0, -1]), thinking_end_id=3)
    for mode in (mode for mode in THINKING_METHODS if mode != "none"):
        model.config.thinking_mode = mode
        rollout = think(model, output_logits=True)
        expected = torch.stack(rollout.logits, 1)
        gap = (replay(model, rollout) - expected).abs().max() / expected.abs().max()
        assert gap < 1e-4, f"{mode}: {gap}"


@each_family
@pytest.mark.parametrize("mode", ["projection", "soft"])
def test_in_half_precision_a_replay_is_near_the_rollout(family, mode, plain):
    model = load(plain, family, mode, dtype=torch.bfloat16)
    rollout = think(model, output_logits=True)
    expected = torch.stack(rollout.logits, 1).float()
    gaps = (replay(model, rollout).float() - expected).abs() / expected.abs().max()
    assert gaps.mean() < 2e-2  # eight bits


@each_family
@pytest.mark.parametrize("mode", ["projection", "soft"])
def test_a_static_cache_gives_what_a_dynamic_one_does(family, mode, plain):
    model = load(plain, family, mode)
    expected, found = think(model), think(model, cache_implementation="static", disable_compile=True)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.thinking_states, expected.thinking_states, rtol=1e-3, atol=1e-3)


@each_family
def test_thinking_changes_the_logits(family, plain):
    """Or the tests of replays would show nothing."""
    model = load(plain, family, "soft")
    rollout = think(model)
    fused = replay(model, rollout)
    rollout.thinking_mask = torch.zeros_like(rollout.thinking_mask)
    assert (replay(model, rollout) - fused).abs().max() > 1e-3


@each_family
def test_a_latent_pass_gives_the_logits_of_a_parallel_one_and_gradients(family, plain):
    model = load(plain, family, "soft", thinking_token_policy="argmax")
    latent = torch.zeros_like(PROMPTS, dtype=torch.bool)
    latent[:, 4:6] = True
    output = model(PROMPTS, attention_mask=MASK, latent_mask=latent)
    ids, mask = PROMPTS.clone(), torch.zeros(2, 3, dtype=torch.bool)
    ids[:, 4:6], mask[:, :2] = output.tokens, True
    states = torch.nn.functional.pad(output.states.detach(), (0, 0, 0, 1))
    expected = model(ids, attention_mask=MASK, thinking_states=states, thinking_mask=mask).logits
    torch.testing.assert_close(output.logits[:, 2:], expected[:, 2:], rtol=1e-4, atol=1e-4)
    output.logits[:, -1].log_softmax(-1)[:, 3].sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.isfinite().all() and gradient.any()


@each_family
def test_a_saved_model_is_loaded_bit_equal(family, plain, tmp_path):
    model = load(plain, family)
    model.save_pretrained(tmp_path)
    for loader in (AutoModelForCausalLM.from_pretrained, load_thinking_model):
        again = loader(str(tmp_path)).eval()
        assert type(again) is type(model) and torch.equal(replay(again, think(again)), replay(model, think(model)))


@each_family
def test_the_exported_base_is_the_plain_checkpoint(family, plain, tmp_path):
    export_base_model(load(plain, family), tmp_path)
    base, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is type(plain(family)[0]) and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(base), logits(plain(family)[0]))


@each_family
def test_lora_leaves_the_thinking_modules_out_and_survives_saving(family, plain, tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(load(plain, family), lora).eval()
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted and not any(module in name for name in adapted for module in THINKING_MODULES)
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=2e-5)


@each_family
def test_it_is_trained_for_a_step(family, plain, tmp_path):
    def letters(completions, **kwargs):
        return [float(sum(map(ord, text)) % 11) for text in completions]

    args = HRPOConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=NEW,
        parity_check_steps=1,
        temperature=3.0,
        warmup_steps=0,
        lr_scheduler_type="constant",
        beta=0.0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={**SETTINGS, "dtype": "float32"},
    )
    prompts = Dataset.from_list([{"prompt": text} for text in ("Ann?", "7+2=", "abc", "d")])
    trainer = HRPOTrainer(plain(family)[1], letters, args=args, train_dataset=prompts)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    for module in THINKING_MODULES[:4]:
        assert any(module in name for name in changed), module


@pytest.mark.slow
def test_each_family_loads_with_its_own_code_where_the_package_is_not(plain, tmp_path):
    for family in DAY_ONE:
        model = load(plain, family)
        with hub_code(model):
            model.save_pretrained(tmp_path / family)
        assert len(list((tmp_path / family).glob("*.py"))) == 1
        rollout = think(model)
        torch.save({"tokens": rollout.sequences, "logits": replay(model, rollout)}, tmp_path / family / "expected.pt")
    script = f"""
        from transformers import AutoModelForCausalLM
        prompts, mask = torch.tensor({PROMPTS.tolist()}), torch.tensor({MASK.tolist()})
        for family in {DAY_ONE}:
            saved = torch.load(family + "/expected.pt", weights_only=True)
            model = AutoModelForCausalLM.from_pretrained(family, trust_remote_code=True)
            model.generation_config.eos_token_id = None
            out = model.generate(
                prompts, attention_mask=mask, max_new_tokens={NEW}, do_sample=False, return_dict_in_generate=True
            )
            assert torch.equal(out.sequences, saved["tokens"]), family
            both = torch.cat([mask, torch.ones(2, {NEW}, dtype=torch.long)], 1)
            found = model(
                out.sequences, attention_mask=both, thinking_states=out.thinking_states,
                thinking_mask=out.thinking_mask,
            ).logits[:, -{NEW} - 1 : -1]
            torch.testing.assert_close(found, saved["logits"], rtol=1e-5, atol=1e-5, msg=family)
    """
    run_without_package(script, tmp_path)


def test_a_class_is_made_once_and_found_by_pickle():
    family = thinking_family("gemma3_text")
    assert thinking_family("thinking_gemma3_text") is family
    assert pickle.loads(pickle.dumps(family.causal_lm)) is families.ThinkingGemma3ForCausalLM is family.causal_lm
    config = pickle.loads(pickle.dumps(family.config(num_hidden_layers=1)))
    assert type(config) is families.ThinkingGemma3TextConfig and config.num_hidden_layers == 1


def test_an_unknown_class_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'ThinkingGemma9ForCausalLM'"):
        _ = families.ThinkingGemma9ForCausalLM
    with pytest.raises(AttributeError, match="did you mean one of .*'ThinkingBertLMHeadModel'"):
        _ = families.ThinkingBertForQuestionAnswering


def test_a_type_has_the_default_targets_of_its_plain_one():
    targets = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    plain = [name for name in targets if f"thinking_{name}" in CONFIG_MAPPING]
    assert {"qwen2", "gemma3_text", "mistral"} <= set(plain)
    assert all(targets[f"thinking_{name}"] == targets[name] for name in plain)


def test_names_of_the_three_first_families_stay():
    assert hf_evidenceflow.ThinkingQwen2ForCausalLM is thinking_family("qwen2").causal_lm
    assert AutoConfig.for_model("thinking_llama").__class__ is hf_evidenceflow.ThinkingLlamaConfig


def test_gradient_checkpointing_of_the_config_is_switched_on():
    config = hf_evidenceflow.ThinkingQwen2Config(**TINY)
    config.gradient_checkpointing = True
    model = hf_evidenceflow.ThinkingQwen2ForCausalLM(config)
    assert model.model.gradient_checkpointing and model.model.layers[0].gradient_checkpointing


def test_a_type_without_a_causal_lm_is_refused():
    with pytest.raises(ValueError, match=r"Type `vit` has no thinking variant"):
        thinking_family("vit")
