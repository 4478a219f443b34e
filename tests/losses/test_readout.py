"""Objectives in the vocabulary: chunked equals plain in value and gradient, and keeps no [N, V] tensor."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_evidenceflow.losses import cross_entropy, lens_kl


N, H, V = 7, 5, 11


class Readout(nn.Module):
    """Final norm and head."""

    def __init__(self, hidden_size=H, vocab_size=V, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.gain = nn.Parameter(1 + 0.3 * torch.randn(hidden_size, generator=generator, dtype=dtype))
        self.weight = nn.Parameter(torch.randn(vocab_size, hidden_size, generator=generator, dtype=dtype))

    def forward(self, states):
        return F.linear(F.rms_norm(states, states.shape[-1:], self.gain, eps=1e-6), self.weight)


def make_inputs(count=N, hidden_size=H, vocab_size=V, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states, final = torch.randn(2, count, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(vocab_size, (count,), generator=generator)
    return states.requires_grad_(), final.clone().requires_grad_(), labels


def plain_cross_entropy(states, labels, readout):
    return F.cross_entropy(readout(states).float() if states.dtype == torch.bfloat16 else readout(states), labels)


def plain_lens_kl(states, final_states, readout):
    log_probs, final = (torch.log_softmax(readout(tensor), -1) for tensor in (states, final_states.detach()))
    # The identity needs p_L as data
    final = final.detach()
    return (final.exp() * (final - log_probs)).sum(-1).mean()


def arguments(objective):
    states, final, labels = make_inputs()
    return states, labels if objective is cross_entropy else final


pairs = pytest.mark.parametrize(
    "objective, plain",
    [(cross_entropy, plain_cross_entropy), (lens_kl, plain_lens_kl)],
    ids=["cross_entropy", "lens_kl"],
)
each = pytest.mark.parametrize("objective", [cross_entropy, lens_kl])


@pairs
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_chunked_equals_plain_in_value_and_gradient(objective, plain, chunk_size):
    states, other = arguments(objective)
    readout = Readout()
    inputs = [states, *readout.parameters()]
    expected = plain(states, other, readout)
    chunked = objective(states, other, readout, chunk_size=chunk_size)
    torch.testing.assert_close(chunked, expected, rtol=1e-12, atol=1e-12)
    for gradient, right in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


@each
def test_gradient_agrees_with_finite_differences(objective):
    states, other = arguments(objective)
    readout = Readout()

    def loss(states, gain, weight):
        def head(states):
            return F.rms_norm(states, states.shape[-1:], gain, eps=1e-6) @ weight.T

        return objective(states, other, head, chunk_size=3)

    assert torch.autograd.gradcheck(lambda states: loss(states, readout.gain, readout.weight), states)
    # Finite differences of the head would move the detached target of lens_kl too
    if objective is cross_entropy:
        assert torch.autograd.gradcheck(loss, (states, readout.gain, readout.weight))


@each
def test_no_tensor_of_tokens_by_vocabulary_is_saved_for_backward(objective):
    count, vocab_size, chunk_size = 60, 101, 7
    states, final, labels = make_inputs(count, vocab_size=vocab_size, dtype=torch.float32)
    readout = Readout(vocab_size=vocab_size, dtype=torch.float32)
    other = labels if objective is cross_entropy else final
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective(states, other, readout, chunk_size=chunk_size)
    assert max(saved, default=0) < chunk_size * vocab_size, max(saved)
    # Hooks do not see what Python objects hold on to
    alive = [
        t.shape for t in gc.get_objects() if type(t) is torch.Tensor and t.dim() == 2 and t.shape[1] == vocab_size
    ]
    assert not alive
    loss.backward()
    assert states.grad is not None


def test_the_check_of_saved_tensors_sees_a_plain_cross_entropy():
    states, _, labels = make_inputs(60, vocab_size=101)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        plain_cross_entropy(states, labels, Readout(vocab_size=101))
    assert max(saved) >= 60 * 101


def test_cross_entropy_of_an_even_distribution_is_log_v():
    states, _, labels = make_inputs()
    loss = cross_entropy(states, labels, lambda states: states.new_zeros(len(states), V) + 0 * states[:, :1])
    assert loss.item() == pytest.approx(torch.tensor(float(V)).log().item())


def test_lens_kl_by_hand():
    # p_L = (1/4, 3/4), p_i = (1/2, 1/2)
    states, final = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]).log()
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert lens_kl(states, final, lambda states: states).item() == pytest.approx(expected.item(), abs=1e-6)


def test_lens_kl_of_the_final_layer_is_zero_with_no_gradient():
    states, _, _ = make_inputs()
    loss = lens_kl(states, states, Readout(), chunk_size=3)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    assert states.grad.abs().max() < 1e-14


def test_lens_kl_gives_the_final_states_no_gradient():
    states, final, _ = make_inputs()
    lens_kl(states, final, Readout()).backward()
    assert states.grad is not None
    assert final.grad is None


@each
def test_normalizer_replaces_the_count(objective):
    states, other = arguments(objective)
    mean = objective(states, other, Readout(), chunk_size=3)
    chunked = objective(states, other, Readout(), normalizer=torch.tensor(13), chunk_size=3)
    torch.testing.assert_close(chunked, mean * N / 13)


@each
def test_no_token_costs_zero_and_has_a_gradient(objective):
    states, final, labels = make_inputs(0)
    loss = objective(states, labels if objective is cross_entropy else final, Readout())
    loss.backward()
    assert loss.item() == 0.0
    assert states.grad.shape == (0, H)


@each
def test_bf16_logits_are_raised_to_fp32(objective):
    states, final, labels = make_inputs(dtype=torch.bfloat16)
    readout = Readout(dtype=torch.bfloat16)
    other = labels if objective is cross_entropy else final
    loss = objective(states, other, readout, chunk_size=3)
    loss.backward()
    expected = objective(states.float(), other if objective is cross_entropy else other.float(), readout.float())
    assert loss.dtype == torch.float32
    assert states.grad.dtype == torch.bfloat16
    # Logits carry 8 bits
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)


@pairs
def test_autocast_keeps_value_and_gradients(objective, plain):
    states, final, labels = make_inputs(dtype=torch.float32)
    readout = Readout(dtype=torch.float32)
    other = labels if objective is cross_entropy else final
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked = objective(states, other, readout, chunk_size=3)
        expected = plain(states, other, lambda states: readout(states).float())
    torch.testing.assert_close(chunked, expected)
    inputs = [states, *readout.parameters()]
    # Products and sums of chunks in bf16
    for gradient, right in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(gradient, right, rtol=2e-2, atol=5e-3)


def test_wrong_shapes_and_chunks_are_errors():
    states, final, labels = make_inputs()
    with pytest.raises(ValueError, match=r"`labels` \[N\].*got \(7, 5\) and \(6,\)"):
        cross_entropy(states, labels[1:], Readout())
    with pytest.raises(ValueError, match=r"got \(7, 5\) and \(6, 5\)"):
        lens_kl(states, final[1:], Readout())
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1 token, got 0"):
        cross_entropy(states, labels, Readout(), chunk_size=0)
