"""Tiny models of several families, one of them trained so that its exits differ from token to token."""

import pytest
import torch
from tiny_models import TINY
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
)

from hf_evidenceflow import EvidenceFlowConfig, evidence_flow


LAYERS = 5
SIZE = {**TINY, "num_hidden_layers": LAYERS}
# A wide initialization gives peaked distributions, in which a wrong state shows
WIDE = {"initializer_range": 0.2}


SPECIAL = {name: SIZE[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZE, **WIDE),
    "qwen2": lambda: Qwen2Config(**SIZE, **WIDE, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**SIZE, **WIDE, head_dim=6, query_pre_attn_scalar=6, sliding_window=9),
    "gpt_neox": lambda: GPTNeoXConfig(**{name: SIZE[name] for name in SIZES}, **SPECIAL, **WIDE),
    "gpt2": lambda: GPT2Config(n_embd=24, n_layer=LAYERS, n_head=4, n_positions=128, **SPECIAL, **WIDE),
}


def make(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


@pytest.fixture(scope="session")
def make_model():
    return make


@pytest.fixture(scope="session")
def trained():
    """A Llama that learned cross-entropy at all layers, on sequences of which half the tokens can be foreseen."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    supervision = EvidenceFlowConfig(objective="cross_entropy", weight=0.5, token_fraction=1.0, log_every=0)
    with evidence_flow(model, supervision):
        for _ in range(30):
            ids = sequences(16)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def sequences(rows, length=24):
    """Pairs: a free token, then the one that follows from it."""
    free = torch.randint(3, 50, (rows, length // 2))
    return torch.stack([free, free + 40], dim=-1).flatten(1)  # [B, T]


@pytest.fixture
def prompts():
    """Three rows of unlike length, padded on the left; the second ends within a pair."""
    torch.manual_seed(7)
    ids, mask = sequences(3, 10), torch.ones(3, 10, dtype=torch.long)
    ids[1] = sequences(1, 12)[0, 1:11]
    for row, padding in ((0, 4), (2, 1)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def no_end():
    """Settings of `generate` under which no row ends early."""
    return {"max_new_tokens": 11, "min_new_tokens": 11, "do_sample": False}
