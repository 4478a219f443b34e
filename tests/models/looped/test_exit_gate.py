"""Probabilities to stop, and the loss that trains them, against sums by hand."""

import math

import pytest
import torch

from hf_evidenceflow.models.looped.exit_gate import exit_distribution, expected_exit_loss


def test_a_token_stops_where_it_did_not_before():
    chances = torch.tensor([0.5, 0.2, 0.9])
    shares = exit_distribution([chance.logit()[None] for chance in chances])
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.5 * 0.2, 0.5 * 0.8]]))


def test_one_loop_takes_all():
    assert exit_distribution([torch.zeros(2, 3)]).tolist() == torch.ones(2, 3, 1).tolist()


def test_half_precision_gates_are_weighed_in_single_precision():
    assert exit_distribution([torch.zeros(1, dtype=torch.bfloat16)] * 2).dtype == torch.float32


@pytest.mark.parametrize("count", [None, 10])
def test_the_loss_is_the_expected_cross_entropy_minus_the_entropy(count):
    torch.manual_seed(0)
    logits = [torch.randn(1, 3, 5) for _ in range(2)]
    shares = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]])
    labels = torch.tensor([[4, 2, -100]])  # only position 0 has a next token
    losses = [-each[0, 0].log_softmax(-1)[2].item() for each in logits]
    entropy = -sum(p * math.log(p) for p in (0.25, 0.75))
    expected = (0.25 * losses[0] + 0.75 * losses[1] - 0.1 * entropy) / (count or 1)
    found = expected_exit_loss(logits, shares, labels, 0.1, count).item()
    assert math.isclose(found, expected, rel_tol=1e-5)


def test_a_share_of_zero_has_a_finite_gradient():
    gates = [torch.full((1, 2), 200.0, requires_grad=True), torch.zeros(1, 2)]
    loss = expected_exit_loss([torch.randn(1, 2, 4)] * 2, exit_distribution(gates), torch.tensor([[1, 2]]), 0.1)
    loss.backward()
    assert gates[0].grad.isfinite().all()
