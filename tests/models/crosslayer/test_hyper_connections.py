"""Hyper-connections: the formulas of the papers, and transformers' own modules on the same weights."""

import pytest
import torch
from moved_crosslayer import moved_model
from tiny_models import TINY
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection, DeepseekV4HyperHead

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM, extra_parameters
from hf_evidenceflow.models.crosslayer.hyper_connections import (
    ConstrainedHyperConnection,
    HyperConnection,
    StreamReadout,
    doubly_stochastic,
)


STREAMS = 3
SIZE = TINY["hidden_size"]


def config(variant, **fields):
    return CrossLayerLlamaConfig(**{**TINY, **fields}, variant=variant, num_residual_streams=STREAMS)


def random_weights(*modules, seed=0):
    with torch.no_grad():
        for module in modules:
            generator = torch.Generator().manual_seed(seed)
            for parameter in module.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))


def random_streams():
    return torch.randn(2, 5, STREAMS, SIZE, generator=torch.Generator().manual_seed(1), requires_grad=True)


def outputs_and_gradients(run, module):
    """What `run(streams)` gives, and the gradients of streams and weights."""
    streams = random_streams()
    output = run(streams)
    (output * torch.arange(output.numel()).view(output.shape).sin()).sum().backward()
    return output.detach(), streams.grad, [parameter.grad for parameter in module.parameters()]


def assert_equal(found, expected):
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def theirs(kind):
    settings = {"hidden_size": SIZE, "hc_mult": STREAMS, "rms_norm_eps": config("mhc").rms_norm_eps}
    return kind(DeepseekV4Config(**settings))


def sublayer(states):
    return states.tanh() * 1.7


def test_constrained_connections_are_those_of_deepseek_v4_on_its_weights():
    ours, reference = ConstrainedHyperConnection(config("mhc"), 1), theirs(DeepseekV4HyperConnection)
    random_weights(ours, reference)

    def run(streams):
        states, weights = ours.read((streams,))
        return ours.write((streams,), weights, sublayer(states))[0]

    def expected(streams):  # as in its decoder layer
        post, comb, states = reference(streams)
        return post.unsqueeze(-1) * sublayer(states).unsqueeze(-2) + torch.matmul(comb.transpose(-1, -2), streams)

    assert_equal(outputs_and_gradients(run, ours), outputs_and_gradients(expected, reference))


def test_the_last_states_are_those_of_deepseek_v4_on_its_weights():
    ours, reference = StreamReadout(config("mhc")), theirs(DeepseekV4HyperHead)
    random_weights(ours, reference)
    found = outputs_and_gradients(lambda streams: ours.read((streams,))[0], ours)
    assert_equal(found, outputs_and_gradients(reference, reference))


def test_dynamic_connections_are_those_of_the_paper():
    module = HyperConnection(config("hyper_connections"), 1)
    random_weights(module)
    streams = random_streams().detach()
    states, weights = module.read((streams,))
    (written,) = module.write((streams,), weights, sublayer(states))
    for row in range(2):
        for place in range(5):
            matrix = streams[row, place]  # H, [n, H]
            centered = matrix - matrix.mean(-1, keepdim=True)
            normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            w_m, w_beta, w_r = module.hyper_weight[0], module.hyper_weight[1], module.hyper_weight[2:].T
            s_beta, s_alpha = module.hyper_scale
            a_m = s_alpha * (normed @ w_m).tanh() + module.hyper_input
            a_r = s_alpha * (normed @ w_r).tanh() + module.hyper_mix
            beta = s_beta * (normed @ w_beta).tanh() + module.hyper_output
            expected = torch.outer(beta, sublayer(a_m @ matrix)) + a_r.T @ matrix
            torch.testing.assert_close(written[row, place], expected, rtol=1e-5, atol=1e-5)


def test_a_mix_neither_grows_nor_shrinks_what_streams_have_in_common():
    matrix = doubly_stochastic(torch.randn(4, STREAMS, STREAMS, generator=torch.Generator().manual_seed(0)))
    for dim in (-1, -2):
        torch.testing.assert_close(matrix.sum(dim), torch.ones(4, STREAMS), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_model_runs_its_sublayers_on_streams_as_deepseek_v4_does():
    model = moved_model("mhc", num_residual_streams=STREAMS)
    body, ids = model.model, torch.arange(3, 12)[None]
    states = body.embed_tokens(ids)
    inputs = {"position_embeddings": body.rotary_emb(states, position_ids=torch.arange(9)[None])}
    inputs["attention_mask"] = torch.full((9, 9), -torch.inf).triu(1)[None, None]

    def reference(kind, ours):
        module = theirs(kind)
        for parameter, value in zip(module.parameters(), ours.parameters(), strict=True):
            parameter.copy_(value)
        return module

    def step(streams, ours, run):
        post, comb, collapsed = reference(DeepseekV4HyperConnection, ours)(streams)
        return post.unsqueeze(-1) * run(collapsed).unsqueeze(-2) + torch.matmul(comb.transpose(-1, -2), streams)

    streams = states.unsqueeze(2).expand(-1, -1, STREAMS, -1).contiguous()
    for layer in body.layers:
        attend = lambda x, layer=layer: layer.self_attn(layer.input_layernorm(x), **inputs)[0]  # noqa: E731
        streams = step(streams, layer.attention_connection, attend)
        streams = step(streams, layer.mlp_connection, lambda x, m=layer: m.mlp(m.post_attention_layernorm(x)))
    last = reference(DeepseekV4HyperHead, body.layers[-1].last_connection)(streams)
    torch.testing.assert_close(model(ids).logits, model.lm_head(body.norm(last)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["hyper_connections", "mhc"])
def test_streams_part_in_the_first_steps_and_all_parameters_learn(variant):
    """With equal reading, writing and mixing of all streams they would stay one."""
    torch.manual_seed(0)
    model = CrossLayerLlamaForCausalLM(config(variant, initializer_range=0.2))
    ids, found = torch.arange(3, 12)[None], []
    optimizer = torch.optim.SGD(extra_parameters(model).values(), lr=0.5)
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
    model.model.layers[-1].register_forward_hook(lambda module, inputs, output: found.append(output[1]))
    model(ids)
    (streams,) = found
    assert (streams - streams.mean(-2, keepdim=True)).abs().max() > 1e-4
    # The first sublayer reads streams that are all the embedding: their shares are taken away by its norm
    without = {name for name, weight in extra_parameters(model).items() if weight.grad.abs().max() < 1e-9}
    assert without <= {"model.layers.0.attention_connection.hyper_input"}
