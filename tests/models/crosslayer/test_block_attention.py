"""Attention over blocks: Inkling 2's modules on the same weights, and Kimi's formula."""

import pytest
import torch
from moved_crosslayer import moved_model
from tiny_models import TINY
from torch import nn
from transformers.models.inkling2.configuration_inkling2 import Inkling2TextConfig
from transformers.models.inkling2.modeling_inkling2 import Inkling2BlockAttentionResidual

from hf_evidenceflow.models.crosslayer.block_attention import BlockConnection


IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
SIZE = TINY["hidden_size"]


def make_model(variant, **fields):
    return moved_model(variant, num_hidden_layers=5, layers_per_block=2, **fields)


def connections(model):
    return [module for module in model.modules() if isinstance(module, BlockConnection)]


def by_hand(model, read, first):
    """Logits as Inkling 2's decoder takes them from blocks and partial sums, with Llama's sublayers."""
    body = model.model
    states = body.embed_tokens(IDS)
    inputs = {"position_embeddings": body.rotary_emb(states, position_ids=torch.arange(7)[None])}
    inputs["attention_mask"] = torch.full((7, 7), -torch.inf).triu(1)[None, None]
    blocks = states.new_zeros(*states.shape[:-1], 0, SIZE)
    for number, layer in enumerate(body.layers):
        boundary = number % model.config.layers_per_block == 0
        block, hidden = states, states
        if number or first:
            hidden = read(layer.attention_connection, blocks, states)
        hidden = layer.self_attn(layer.input_layernorm(hidden), **inputs)[0]
        if boundary:
            blocks = torch.cat([blocks, block.unsqueeze(-2)], dim=-2)
        residual = hidden if boundary else block + hidden
        hidden = read(layer.mlp_connection, blocks, residual)
        states = residual + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(body.norm(read(body.layers[-1].last_connection, blocks, states)))


def inkling(connection, blocks, partial):
    module = Inkling2BlockAttentionResidual(Inkling2TextConfig(hidden_size=SIZE))
    module.query = nn.Parameter(connection.depth_query.detach())
    return module(blocks, partial)[0]


def kimi(connection, blocks, partial):
    """softmax_i(q . RMSNorm(b_i)) over b_i."""
    terms = torch.cat([blocks, partial.unsqueeze(-2)], dim=-2)
    keys = terms / (terms.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return ((keys @ connection.depth_query).softmax(-1).unsqueeze(-1) * terms).sum(-2)


@torch.no_grad()
def test_normed_blocks_are_read_as_in_inkling_2_on_its_weights():
    model = make_model("block_attention_normed")
    expected = by_hand(model, inkling, first=False)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_a_read_are_those_of_inkling_2():
    model = make_model("block_attention_normed")
    connection = model.model.layers[-1].mlp_connection
    blocks = torch.randn(2, 5, 3, SIZE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    partial = torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(1))
    module = Inkling2BlockAttentionResidual(Inkling2TextConfig(hidden_size=SIZE))
    module.query = nn.Parameter(connection.depth_query.detach().clone())
    gradients = []
    for output, query in (
        (connection.read((*blocks.unbind(-2), partial))[0], connection.depth_query),
        (module(blocks, partial)[0], module.query),
    ):
        gradients.append(torch.autograd.grad(output.sin().sum(), (query, blocks)))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blocks_are_read_by_kimis_formula():
    """Ours is so many times that, which the norm behind it takes away."""
    model = make_model("block_attention", rms_norm_eps=1e-12)
    expected = by_hand(model, kimi, first=False)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["block_attention", "block_attention_normed"])
def test_each_sublayer_has_a_query_but_the_first(variant):
    model = make_model(variant)
    found = [connection.num_terms for connection in connections(model)]
    assert found == [1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert sum(name.endswith("depth_query") for name, _ in model.named_parameters()) == 10
