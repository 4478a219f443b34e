"""The module of a learned schedule: where it is, what it starts as, and that no mode loses it."""

import pytest
import torch
from hub_round_trip import run_without_package
from naive_methods import make_method
from thinking_models import MASK, PROMPTS, think

from hf_evidenceflow import ThinkingQwen2ForCausalLM, hub_code
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


FREE = {"thinking_answer_start": None}


def head_of(model):
    return {name: tensor for name, tensor in model.state_dict().items() if "thinking_head" in name}


@pytest.fixture
def saved(tmp_path):
    model = make_method("tarpo")
    model.float().save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("mode", [mode for mode in THINKING_METHODS if mode != "tarpo"])
def test_no_other_mode_makes_it(mode):
    assert not head_of(make_method(mode))


def test_a_plain_checkpoint_gets_a_fresh_one_that_never_thinks_in_greedy_decoding(plain_checkpoint):
    model = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, thinking_mode="tarpo", **FREE)
    assert {name.split(".", 2)[2] for name in head_of(model)} == {"weight", "bias"}
    assert not any(tensor.any() for tensor in head_of(model).values())
    assert not think(model).thinking_mask.any()


@pytest.mark.parametrize("mode", ["tarpo", "none", "soft"])
def test_it_is_kept_in_every_mode(saved, mode, tmp_path):
    model, folder = saved
    loaded = ThinkingQwen2ForCausalLM.from_pretrained(folder, thinking_mode=mode)
    loaded.save_pretrained(tmp_path / "again")
    again = ThinkingQwen2ForCausalLM.from_pretrained(tmp_path / "again")
    for name, tensor in head_of(model).items():
        assert torch.equal(head_of(again)[name], tensor)
    again.config.thinking_mode = "tarpo"
    assert torch.equal(think(again).sequences, think(model).sequences)


def test_a_thinking_checkpoint_without_one_gets_a_fresh_one(tmp_path):
    make_method("projection").float().save_pretrained(tmp_path)
    model = ThinkingQwen2ForCausalLM.from_pretrained(tmp_path, thinking_mode="tarpo")
    assert head_of(model) and not any(tensor.any() for tensor in head_of(model).values())


def test_a_checkpoint_that_lost_it_is_refused(saved):
    from safetensors.torch import load_file, save_file

    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "head.bias" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"lacks the weight `model.thinking_head.bias`"):
        ThinkingQwen2ForCausalLM.from_pretrained(folder)


def test_a_model_that_was_made_without_one_says_how_to_get_it():
    model = make_method("soft")
    model.config.thinking_mode = "tarpo"
    with pytest.raises(ValueError, match="needs the module `thinking_head`.*Load it with `thinking_mode='tarpo'`"):
        think(model)


def test_it_stays_in_fp32(plain_checkpoint):
    model = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, thinking_mode="tarpo", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in head_of(model.half()).values()} == {torch.float32}
    assert model.model.thinking_head(torch.ones(2, 24, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tarpo", "swi", "switch", "later", "gumbel", "soft_tokens"])
def test_the_hub_code_decodes_the_same_without_the_package(mode, tmp_path):
    model = make_method(mode).float()
    with hub_code(model):
        model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}
    expected = model.generate(PROMPTS, attention_mask=MASK, **settings).tolist()
    run_without_package(
        f"""
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True).eval()
        model.generation_config.eos_token_id = None
        torch.manual_seed(0)
        found = model.generate(torch.tensor({PROMPTS.tolist()}), attention_mask=torch.tensor({MASK.tolist()}),
                               max_new_tokens=8, do_sample=True, top_k=0)
        assert found.tolist() == {expected}
        """,
        tmp_path,
    )
