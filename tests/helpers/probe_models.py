"""Tiny random causal LMs of the families that the probe is tested on; sizes that all differ."""

import torch
from tiny_models import TINY
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)


LAYERS, WIDTH, VOCABULARY = TINY["num_hidden_layers"], TINY["hidden_size"], TINY["vocab_size"]
_SHARED = {**TINY, "initializer_range": 0.2}
_OPT = {"ffn_dim": 40, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False, "dropout": 0.5}

FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHARED)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=24, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHARED)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SHARED, head_dim=6, final_logit_softcapping=3.0)),
    "opt_post_norm": lambda: OPTForCausalLM(OPTConfig(**_SHARED | _OPT)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=97, hidden_size=24, num_hidden_layers=3, state_size=5, initializer_range=0.2)
    ),
}


def tiny_model(family="llama"):
    """A seeded model in eval mode."""
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


class _Loop(nn.Module):
    def __init__(self, block, loops):
        super().__init__()
        self.block, self.loops = block, loops

    def forward(self, states, **kwargs):
        for _ in range(self.loops):
            states = self.block(states, **kwargs)
        return states


def looped_model(loops):
    """A Llama whose single block runs `loops` times."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SHARED | {"num_hidden_layers": 1})).eval()
    block = model.model.layers[0]
    model.model.shared = nn.ModuleList([block])
    model.model.layers = nn.ModuleList([_Loop(block, loops)])
    return model


def token_ids(rows=2, length=7, seed=1):
    """Random ids without padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)
