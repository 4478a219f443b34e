"""The functions of TinySeek against their plain definitions, outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F

from hf_evidenceflow.models.tinyseek import sparse_experts
from hf_evidenceflow.models.tinyseek.expert_routing import balance_loss, top_k_gates
from hf_evidenceflow.models.tinyseek.latent_attention import absorbed_attention, absorbing_is_cheaper, expand_latent
from hf_evidenceflow.models.tinyseek.sparse_experts import (
    SparseExperts,
    SparseRouting,
    padded_chunks,
)


N, H, E, K, WIDTH = 13, 5, 7, 3, 4
NAMES = ["tokens", "gates", "up", "up_bias", "down", "down_bias"]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expert_inputs(tokens=N, size=H, width=WIDTH, dtype=torch.float64, unused=(2, E - 1)):
    """Indices that leave some experts without a token, and the leaves with their gradients still open."""
    scores = draw(tokens, E, seed=1)
    scores[:, list(unused)] = -torch.inf
    indices = scores.topk(K, dim=-1).indices
    shapes = [(tokens, size), (tokens, K), (E, width, size), (E, width), (E, size, width), (E, size)]
    return indices, [draw(*shape, seed=10 + i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]


def plain_experts(tokens, indices, gates, up, up_bias, down, down_bias, activation):
    inner = activation(torch.einsum("nkih,nh->nki", up[indices], tokens) + up_bias[indices])
    outer = torch.einsum("nkhi,nki->nkh", down[indices], inner) + down_bias[indices]
    return (gates[..., None] * outer).sum(1)


def run(function, indices, leaves, activation=F.gelu):
    tokens, gates, *weights = leaves
    output = function(tokens, indices, gates, *weights, activation)
    gradients = torch.autograd.grad((output * draw(*output.shape, seed=9).to(output)).sum(), leaves)
    return output, dict(zip(NAMES, gradients))


def check(one, other, tolerance=1e-10):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    for name in other[1]:
        torch.testing.assert_close(
            one[1][name], other[1][name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("activation", [F.relu, F.gelu, torch.tanh], ids=lambda function: function.__name__)
def test_sparse_experts_are_the_plain_sum_with_its_gradients(activation):
    inputs = expert_inputs()
    check(run(SparseExperts.apply, *inputs, activation), run(plain_experts, *inputs, activation))


@pytest.mark.parametrize("chunk", [1, 5, 11])
def test_sparse_experts_in_chunks_are_the_plain_sum_with_its_gradients(chunk, monkeypatch):
    monkeypatch.setattr(sparse_experts, "CHUNK", chunk)
    inputs = expert_inputs()
    check(run(SparseExperts.apply, *inputs), run(plain_experts, *inputs))


def test_more_pairs_than_a_chunk_are_the_plain_sum():
    inputs = expert_inputs(tokens=sparse_experts.CHUNK, size=2, width=3)
    # Sums of a thousand tokens
    check(run(SparseExperts.apply, *inputs), run(plain_experts, *inputs), 1e-9)


@pytest.mark.parametrize("tokens", [1, 2])
def test_sparse_experts_take_few_tokens(tokens):
    inputs = expert_inputs(tokens)
    check(run(SparseExperts.apply, *inputs), run(plain_experts, *inputs))


def test_experts_without_tokens_get_a_gradient_of_zero():
    _, gradients = run(SparseExperts.apply, *expert_inputs())
    for name in NAMES[2:]:
        assert not gradients[name][[2, E - 1]].any(), name
        assert gradients[name][[0, 1, 3, 4, 5]].flatten(1).any(1).all(), name


def test_gradients_of_sparse_experts_agree_with_finite_differences():
    indices, leaves = expert_inputs(tokens=4, size=3, width=2)

    def function(tokens, gates, *weights):
        return SparseExperts.apply(tokens, indices, gates, *weights, torch.tanh)

    assert torch.autograd.gradcheck(function, leaves)


def plain_routing(tokens, weight, noise_weight, k):
    logits = tokens @ weight.T
    if noise_weight is not None:
        logits = logits + torch.randn_like(logits) * F.softplus(tokens @ noise_weight.T)
    return logits, *top_k_gates(logits, k)


@pytest.mark.parametrize("noisy", [False, True])
def test_sparse_routing_is_plain_routing_with_its_gradients(noisy):
    leaves = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(N, H), (E, H), (E, H)])]
    leaves = leaves if noisy else leaves[:2]
    results = []
    for function in (SparseRouting.apply, plain_routing):
        torch.manual_seed(3)
        logits, gates, indices = function(*leaves, *([] if noisy else [None]), K)
        gradients = torch.autograd.grad((gates * draw(N, K, seed=8)).sum(), leaves)
        results.append((logits, gates, indices, *gradients))
    for name, one, other in zip(["logits", "gates", "indices", "tokens", "weight", "noise"], *results):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_sparse_routing_draws_its_noise_anew():
    tokens, weight, noise_weight = draw(N, H), draw(E, H, seed=1), draw(E, H, seed=2)
    torch.manual_seed(0)
    logits = [SparseRouting.apply(tokens, weight, noise_weight, K)[0] for _ in range(2)]
    assert (logits[0] - logits[1]).abs().min() > 0


@pytest.mark.parametrize("counts", [[0, 0], [3, 0, 4, 2], [1, 900, 1, 1], [21] * 100, [0, 1] * 60])
def test_padded_chunks_hold_each_expert_once_with_little_padding(counts):
    chunks = list(padded_chunks(counts))
    assert [index for experts, _ in chunks for index in range(len(counts))[experts]] == list(range(len(counts)))
    for experts, width in chunks:
        own = counts[experts]
        assert width == max(own)
        padded = width * len(own)
        assert len(own) == 1 or padded <= sparse_experts.CHUNK, own
        assert padded <= sparse_experts.WASTE * sum(own) + sparse_experts.SLACK, own


# Rows, new and cached positions, heads, latent, unrotated, rotary and value sizes
B, T, S, A, C, NOPE, ROPE, VALUE = 2, 3, 11, 5, 13, 7, 4, 6


def attention_inputs():
    shapes = [(B, A, T, NOPE), (B, 1, T, ROPE), (B, 1, S, C), (B, 1, S, ROPE), (A, NOPE + VALUE, C), (A, NOPE + VALUE)]
    return [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def expanded_attention(query, rotary_query, latent, rotary_key, weight, bias, scaling, mask):
    key, value = expand_latent(latent, lambda x: F.linear(x, weight.flatten(0, 1), bias.flatten()), A, NOPE)
    full_query = torch.cat([query, rotary_query.expand(-1, A, -1, -1)], dim=-1)
    full_key = torch.cat([key, rotary_key.expand(-1, A, -1, -1)], dim=-1)
    scores = full_query @ full_key.mT * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    probabilities = scores.softmax(-1)
    return (probabilities @ value).transpose(1, 2), probabilities


SEEN = (draw(B, 1, T, S, seed=20) > 0) | (torch.arange(S) == 0)
MASKS = {
    "none": None,
    "boolean": SEEN,
    "boolean_of_one_row": SEEN[:1],
    "additive": torch.zeros(SEEN.shape, dtype=torch.float64).masked_fill(~SEEN, -1e30),
    "soft": draw(B, 1, T, S, seed=21),
}


@pytest.mark.parametrize("mask", MASKS)
def test_absorbed_attention_is_attention_on_expanded_keys_and_values(mask):
    inputs = attention_inputs()
    *others, bias = inputs
    results = []
    for function, bias_argument in ((absorbed_attention, bias[:, NOPE:]), (expanded_attention, bias)):
        output, probabilities = function(*others, bias_argument, 0.3, MASKS[mask])
        assert output.shape == (B, T, A, VALUE) and probabilities.shape == (B, A, T, S)
        gradients = torch.autograd.grad((output * draw(*output.shape, seed=30)).sum(), inputs)
        results.append((output, probabilities, *gradients))
    names = ["output", "probabilities", "query", "rotary query", "latent", "rotary key", "weight", "bias"]
    for name, one, other in zip(names, *results):
        # Probabilities are computed in fp32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_expanded_keys_stand_before_values_in_each_head():
    latent = draw(B, 1, S, C)
    key, value = expand_latent(latent, lambda x: x[..., :1] + torch.arange(A * (NOPE + VALUE)), A, NOPE)
    assert key.shape == (B, A, S, NOPE) and value.shape == (B, A, S, VALUE)
    offset = latent[..., :1]
    rows = torch.arange(A * (NOPE + VALUE)).view(A, 1, NOPE + VALUE)
    assert torch.equal(key, offset + rows[..., :NOPE]) and torch.equal(value, offset + rows[..., NOPE:])


def test_absorbing_is_for_few_new_positions_on_many_cached_ones():
    published = {"latent_size": 128, "nope_size": 64, "value_size": 64}
    assert absorbing_is_cheaper(1, 512, **published)
    assert not absorbing_is_cheaper(512, 512, **published)
    by_new = [absorbing_is_cheaper(new, 512, **published) for new in range(1, 513)]
    assert by_new == sorted(by_new, reverse=True), "once expanding is cheaper it stays so with more new positions"
    by_cached = [absorbing_is_cheaper(4, cached, **published) for cached in range(4, 600)]
    assert by_cached == sorted(by_cached), "once absorbing is cheaper it stays so with more cached positions"


def test_absorbing_is_chosen_where_it_takes_fewer_multiplications():
    latent, nope, value = 12, 6, 5
    for new in range(1, 30):
        for cached in range(new, 60):
            absorbed = new * latent * nope + new * cached * latent + new * cached * latent + new * latent * value
            expanded = cached * latent * nope + cached * latent * value + new * cached * nope + new * cached * value
            assert absorbing_is_cheaper(new, cached, latent, nope, value) is (absorbed < expanded), (new, cached)


def even_indices():
    """Each of E experts is used by K of E tokens."""
    return (torch.arange(E)[:, None] + torch.arange(K)) % E


def test_gates_sum_to_one_and_are_the_softmax_over_the_largest():
    logits = draw(N, E)
    gates, indices = top_k_gates(logits, K)
    torch.testing.assert_close(gates.sum(-1), torch.ones(N, dtype=torch.float64))
    best = logits.argsort(-1, descending=True)[:, :K]
    assert torch.equal(indices, best)
    torch.testing.assert_close(gates, logits.gather(1, best).softmax(-1))


def test_even_use_has_no_balance_loss():
    loss = balance_loss(torch.full((E, K), 1 / K, dtype=torch.float64), even_indices(), E)
    torch.testing.assert_close(loss, torch.tensor(0.0, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("equal", [True, False])
def test_all_tokens_on_the_same_experts_cost_experts_over_k_minus_one(equal):
    gates = torch.full((N, K), 1 / K) if equal else draw(N, K, dtype=torch.float32).softmax(-1)
    loss = balance_loss(gates, torch.tensor([4, 0, 2]).expand(N, K), E)
    torch.testing.assert_close(loss, torch.tensor(E / K - 1))


def test_balance_loss_is_its_formula():
    gates, indices = top_k_gates(draw(N, E), K)
    dense = torch.zeros(N, E, dtype=torch.float64).scatter(1, indices, gates)
    expected = E / K * sum((dense[:, e] > 0).double().mean() * dense[:, e].mean() for e in range(E)) - 1
    torch.testing.assert_close(balance_loss(gates, indices, E), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masked_tokens_do_not_count_in_the_balance(dtype):
    gates, indices = top_k_gates(draw(N, E), K)
    mask = torch.arange(N) % 3 != 1
    loss = balance_loss(gates, indices, E, mask.to(dtype))
    torch.testing.assert_close(loss, balance_loss(gates[mask], indices[mask], E))
    assert abs(loss - balance_loss(gates, indices, E)) > 1e-3


def test_balance_loss_without_any_token_is_zero_with_a_finite_gradient():
    gates, indices = top_k_gates(draw(N, E).requires_grad_(), K)
    loss = balance_loss(gates, indices, E, torch.zeros(N))
    (gradient,) = torch.autograd.grad(loss, gates)
    assert loss == 0 and not gradient.any()


def test_gradient_of_the_balance_is_the_share_of_tokens():
    gates, indices = top_k_gates(draw(N, E).requires_grad_(), K)
    (gradient,) = torch.autograd.grad(balance_loss(gates, indices, E), gates)
    share = torch.bincount(indices.flatten(), minlength=E).double() / N
    torch.testing.assert_close(gradient, E / K * share[indices] / N)


def test_balance_loss_of_bf16_gates_is_in_fp32():
    gates, indices = top_k_gates(draw(N, E).bfloat16(), K)
    assert balance_loss(gates, indices, E).dtype == torch.float32
