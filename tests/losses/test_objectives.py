"""Objectives on raw states: values by hand, gradients by finite differences, and what is detached."""

import pytest
import torch

from hf_evidenceflow.losses import cosine, mse, nitp, normalized_mse, shuffled, zero


N, H = 7, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def shuffled_seeded(states, targets, normalizer=None):
    return shuffled(states, targets, seeded(3), normalizer)


def zero_of_two(states, targets, normalizer=None):
    return zero(states, normalizer)


WITH_TARGETS = {
    "mse": mse,
    "normalized_mse": normalized_mse,
    "cosine": cosine,
    "nitp": nitp,
    "zero": zero_of_two,
    "shuffled": shuffled_seeded,
}
every_objective = pytest.mark.parametrize("objective", WITH_TARGETS.values(), ids=WITH_TARGETS)


@every_objective
def test_gradient_by_the_states_agrees_with_finite_differences(objective):
    states, targets = draw(N, H).requires_grad_(), draw(N, H, seed=1)
    assert torch.autograd.gradcheck(lambda states: objective(states, targets), states)


@pytest.mark.parametrize(
    "objective", [mse, normalized_mse, shuffled_seeded], ids=["mse", "normalized_mse", "shuffled"]
)
def test_gradient_by_live_targets_agrees_with_finite_differences(objective):
    states, targets = draw(N, H), draw(N, H, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda targets: objective(states, targets), targets)


@pytest.mark.parametrize("objective", [cosine, nitp])
def test_cosine_targets_get_no_gradient(objective):
    states, targets = draw(N, H).requires_grad_(), draw(N, H, seed=1).requires_grad_()
    objective(states, targets).backward()
    assert states.grad is not None
    assert targets.grad is None


def test_mse_by_hand():
    states = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 3.0]])
    targets = torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, 1.0]])
    assert mse(states, targets).item() == pytest.approx((1 + 4 + 1 + 0 + 0 + 4) / 6)


def test_normalized_mse_by_hand():
    # Each row becomes (-1, 1) or (1, -1): agreement costs 0, opposition 4
    states = torch.tensor([[0.0, 10.0], [2.0, 1.0]])
    targets = torch.tensor([[0.5, 0.6], [0.0, 7.0]])
    assert normalized_mse(states, targets, eps=0.0).item() == pytest.approx((0 + 4) / 2, abs=1e-5)


def test_cosine_by_hand():
    states = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    targets = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    assert cosine(states, targets).item() == pytest.approx((0 + 1 + 2) / 3)
    assert nitp(states, targets).item() == pytest.approx((0 + 1 + 2) / 3)


def test_zero_is_the_mean_square_of_the_states():
    assert zero(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).item() == pytest.approx((1 + 4 + 9) / 4)


@pytest.mark.parametrize(
    "objective", [mse, normalized_mse, shuffled_seeded], ids=["mse", "normalized_mse", "shuffled"]
)
def test_published_start_value_is_two_per_layer(objective):
    # Standard deviation of the mean over 2000 x 128 numbers: sqrt(8 / 256000) = 0.006
    states = torch.nn.functional.layer_norm(draw(2000, 128), (128,))
    assert objective(states, draw(2000, 128, seed=1)).item() == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize("objective", [normalized_mse, cosine])
def test_shrinking_the_states_gains_nothing(objective):
    states, targets = draw(N, H), draw(N, H, seed=1)
    assert objective(states * 0.1, targets).item() == pytest.approx(objective(states, targets).item(), rel=1e-3)


@every_objective
def test_normalizer_replaces_the_count(objective):
    states, targets = draw(N, H), draw(N, H, seed=1)
    mean = objective(states, targets)
    for normalizer in (11, 11.0, torch.tensor(11)):
        torch.testing.assert_close(objective(states, targets, normalizer=normalizer), mean * N / 11)


@pytest.mark.parametrize("objective", [mse, normalized_mse, cosine, nitp])
def test_uneven_micro_batches_add_up_to_the_full_batch(objective):
    states, targets = draw(N, H).requires_grad_(), draw(N, H, seed=1)
    full = objective(states, targets)
    (expected,) = torch.autograd.grad(full, states)
    parts = [objective(states[rows], targets[rows], N) for rows in (slice(0, 1), slice(1, 6), slice(6, 7))]
    (gradient,) = torch.autograd.grad(sum(parts), states)
    torch.testing.assert_close(sum(parts), full)
    torch.testing.assert_close(gradient, expected)


@every_objective
def test_no_token_costs_zero_and_has_a_gradient(objective):
    states = torch.zeros(0, H, requires_grad=True)
    loss = objective(states, torch.zeros(0, H))
    loss.backward()
    assert loss.item() == 0.0
    assert states.grad.shape == (0, H)


@every_objective
def test_bf16_is_computed_in_fp32(objective):
    states, targets = draw(N, H).bfloat16(), draw(N, H, seed=1).bfloat16()
    loss = objective(states, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(states.float(), targets.float()), rtol=0, atol=0)


@pytest.mark.parametrize("objective", [mse, normalized_mse, cosine, nitp])
def test_broadcasting_is_refused(objective):
    with pytest.raises(ValueError, match=r"both be \[N, H\].*got \(7, 5\) and \(1, 5\)"):
        objective(draw(N, H), draw(1, H))
    with pytest.raises(ValueError, match=r"both be \[N, H\].*got \(2, 7, 5\)"):
        objective(draw(2, N, H), draw(2, N, H))
