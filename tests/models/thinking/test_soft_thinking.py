"""Soft thinking: the mean embedding of the distribution is the input."""

import pytest
import torch
from tiny_models import TINY
from transformers import Qwen2ForCausalLM

from hf_evidenceflow import ThinkingQwen2ForCausalLM
from hf_evidenceflow.models.thinking import thinking_sources
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.models.thinking.thinking_residual import (
    embedding_state,
    soft_state,
    thinking_modules_in_use,
)


INPUT_IDS = torch.arange(3, 17).view(2, 7)


@pytest.fixture
def model(plain_checkpoint):
    return ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, thinking_mode="soft").eval()


@pytest.fixture
def states():
    return torch.randn(2, 5, TINY["hidden_size"], generator=torch.Generator().manual_seed(3))


def test_certain_distributions_give_the_base_model(model, plain_checkpoint):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint).eval()
    embedding = model.get_input_embeddings().weight
    probs = torch.nn.functional.one_hot(INPUT_IDS[:, 2:], len(embedding)).float()
    states = torch.stack([soft_state(row, embedding) for row in probs])
    logits = model(INPUT_IDS, thinking_states=states, thinking_mask=torch.ones(2, 5, dtype=torch.bool)).logits
    torch.testing.assert_close(logits, base(INPUT_IDS).logits, rtol=0, atol=1e-5)


def test_without_a_mask_the_logits_are_bit_equal_to_the_base(model, plain_checkpoint):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint).eval()
    assert torch.equal(model(INPUT_IDS).logits, base(INPUT_IDS).logits)


def test_the_state_takes_the_place_of_the_embedding_where_the_mask_is_set(model, states):
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)
    embeds = model.get_input_embeddings()(INPUT_IDS)
    fused, a, r = model.model.fuse(embeds, states, mask)
    expected = embeds.clone()
    expected[:, 2:][mask] = states[mask]
    assert torch.equal(fused, expected)
    assert a.shape == r.shape == states.shape and not a.any() and not r.any()


def test_no_thinking_module_is_in_use(model, states):
    assert thinking_modules_in_use(THINKING_METHODS["soft"]) == ()
    logits = model(INPUT_IDS, thinking_states=states, thinking_mask=torch.ones(2, 5, dtype=torch.bool)).logits
    logits.sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "thinking" in name)


def test_the_state_is_the_unnormalised_mean_embedding():
    generator = torch.Generator().manual_seed(1)
    probs = torch.randn(3, 11, generator=generator).softmax(-1)
    embedding = torch.randn(13, 5, generator=generator)
    expected = sum(probs[:, v, None] * embedding[v] for v in range(11))
    torch.testing.assert_close(soft_state(probs, embedding), expected)
    assert (soft_state(probs, embedding) - embedding_state(probs, embedding)).abs().max() > 0.1


def test_a_rollout_records_the_mean_embeddings_and_teacher_forcing_agrees(model, tokenizer):
    prompts = tokenizer(["Tom has 3 apples.", "Ann?"], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    output = model.generate(
        **prompts,
        tokenizer=tokenizer,
        do_sample=True,
        max_new_tokens=9,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    embedding = model.get_input_embeddings().weight
    expected = torch.stack([soft_state(scores.softmax(-1), embedding) for scores in output.scores], dim=1)
    mask = output.thinking_mask
    assert mask.any()
    torch.testing.assert_close(output.thinking_states[mask], expected[mask], rtol=0, atol=1e-4)

    count = mask.shape[1]
    attention = torch.cat([prompts["attention_mask"], torch.ones_like(mask, dtype=torch.long)], dim=1)
    logits = model(
        output.sequences,
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        thinking_states=output.thinking_states,
        thinking_mask=mask,
    ).logits[:, -count - 1 : -1]
    gap = (logits.log_softmax(-1) - torch.stack(output.logits, dim=1).log_softmax(-1)).abs()
    # Tokens behind an end of sequence are padding
    assert gap[:, 0].max() < 1e-4 and gap[mask].max() < 1e-4, gap.amax(-1)


@pytest.mark.parametrize("approximate", [False, True])
def test_the_config_says_whether_states_are_approximated(monkeypatch, model, tokenizer, approximate):
    calls = []
    monkeypatch.setattr(thinking_sources, "sparse_soft_state", lambda *args: calls.append(1) or args[2].expand(1, -1))
    model.config.thinking_state_approximation = approximate
    model.generate(**tokenizer(["Ann?"], return_tensors="pt"), tokenizer=tokenizer, max_new_tokens=2)
    assert bool(calls) == approximate
