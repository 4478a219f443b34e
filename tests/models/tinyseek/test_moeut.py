"""MoEUT by settings of TinySeek, against its formulas written out token by token."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from causal_lm_checks import CausalLMChecks
from tiny_tinyseek import MOEUT, TINYSEEK, tiny_tinyseek

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM
from hf_evidenceflow.models.tinyseek.expert_routing import entropy_balance


IDS = torch.randint(3, TINYSEEK["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))


def make_model(**fields):
    model = tiny_tinyseek(**MOEUT, hidden_dropout=0.0, **fields)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


class TestMoEUT(CausalLMChecks):
    lora_targets = ["q_proj", "v_proj", "o_proj", "value_router"]
    takes_prefix = False  # its heads are not of `hidden_size / num_attention_heads`

    @staticmethod
    def make_model():
        return make_model()


def chosen(scores, k):
    """Indices and sigmoids of the k highest of these scores of one token."""
    order = scores.argsort(descending=True)[:k]
    return zip(order.tolist(), scores[order].sigmoid())


def turned(head, position):
    """A query or key with its first 8 channels rotated by halves."""
    angles = position * 10000.0 ** (-torch.arange(4, dtype=head.dtype) / 4)
    first, second = head[:4], head[4:8]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, head[8:]])


def attention(block, normed, states, scores):
    """One row `(T, H)`; the choices' scores of outputs and of values are added to `scores`."""
    layer, heads, experts = block.self_attn, 4, 3
    query, key = (F.linear(normed, part.weight).unflatten(-1, (heads, -1)) for part in (layer.q_proj, layer.k_proj))
    v_maps = layer.v_proj.weight.unflatten(0, (heads, experts, -1))  # [A, E, D, H]
    o_maps = layer.o_proj.weight.unflatten(1, (heads, experts, -1))  # [H, A, E, D]
    picks = [
        F.linear(normed, part.weight).unflatten(-1, (heads, experts))
        for part in (layer.output_router, layer.value_router)
    ]
    scores += picks
    rows = []
    for t in range(len(states)):
        row = 0
        for head in range(heads):
            logits, values = [], []
            for s in range(t + 1):
                logits.append(turned(query[t, head], t) @ turned(key[s, head], s) / math.sqrt(query.shape[-1]))
                values.append(sum(gate * v_maps[head, e] @ states[s] for e, gate in chosen(picks[1][s, head], 2)))
            mixed = torch.stack(logits).softmax(0) @ torch.stack(values)
            row = row + sum(gate * o_maps[:, head, e] @ mixed for e, gate in chosen(picks[0][t, head], 2))
        rows.append(row)
    return torch.stack(rows)


def experts(block, normed, states, scores):
    layer = block.mlp
    scores.append(F.linear(normed, layer.gate.weight))
    up, down = layer.experts.up_proj, layer.experts.down_proj
    return torch.stack(
        [
            sum(gate * down[e] @ (up[e] @ state).relu() for e, gate in chosen(choice, 3))
            for state, choice in zip(states, scores[-1])
        ]
    )


def entropy(scores):
    """Of the mean choice over the positions of all loops, its mean over the heads, of scores `(T, ..., E)` by loop."""
    logs = torch.cat(scores).log_softmax(-1)
    logs = logs.logsumexp(0) - math.log(len(logs))
    return -(logs * logs.exp()).sum(-1).mean()


def by_hand(model, ids):
    """Logits, and the published regularization, in loops over rows, calls, tokens, heads and experts."""
    body, logits, losses = model.model, [], []
    for row in ids:
        states, found = body.embed_tokens(row), [[] for _ in body.layers]
        for call in range(4):
            block, scores = body.layers[call % 2], []
            states = states + attention(block, block.attention_layernorm(states), states, scores)
            states = states + experts(block, block.mlp_layernorm(states), states, scores)
            found[call % 2].append(scores)
        logits.append(model.lm_head(body.norm(states)))
        for loops in found:
            outputs, values, mlp = (entropy(each) for each in zip(*loops))
            losses.append(-0.01 * mlp - 0.001 * (outputs + values))
    return torch.stack(logits), torch.stack(losses).sum() / len(ids)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_outputs_loss_and_gradients_are_those_of_the_formulas(implementation):
    model = make_model().double().train()
    model.set_attn_implementation(implementation)
    output = model(IDS, labels=IDS)
    logits, regularization = by_hand(model, IDS)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)  # angles and softmax are in fp32
    close(output.logits, logits)
    even = 2 * (0.01 * math.log(7) + 0.002 * math.log(3))  # ours is 0 where the experts are used evenly
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()) + regularization + even
    close(output.loss, expected)
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(output.loss, parameters)
    for name, one, other in zip(names, found, torch.autograd.grad(expected, parameters)):
        assert one.any(), name
        close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_padding_changes_neither_the_loss_nor_the_balance():
    model = make_model()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    labels = padded.masked_fill(torch.arange(10) <= 3, -100)
    found = model(padded, attention_mask=mask, position_ids=positions, labels=labels)
    plain = model(IDS, labels=IDS)
    torch.testing.assert_close(found.aux_loss, plain.aux_loss)
    torch.testing.assert_close(found.loss, plain.loss)


def test_even_choices_balance_at_0_and_each_row_counts_by_itself():
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert entropy_balance([torch.full((2, 4), 0.25)], 1, 4, 0).abs() < 1e-6
    torch.testing.assert_close(entropy_balance([torch.cat([one, other])], 1, 4, 0), torch.tensor(math.log(4)))
    torch.testing.assert_close(entropy_balance([one, other], 1, 4, 0), torch.tensor(math.log(2)))  # over loops


def test_the_smallest_published_size_has_44_million_parameters():
    config = TinySeekConfig.moeut(vocab_size=8000)
    with torch.device("meta"):
        model = TinySeekForCausalLM(config)
    assert round(model.num_parameters() / 1e6) == 44
