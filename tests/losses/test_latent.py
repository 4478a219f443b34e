"""Losses of latent training against their formulas."""

import torch
import torch.nn.functional as F

from hf_evidenceflow.losses.latent import hidden_state_distance, soft_target_losses


def example():
    """Two rows of three thoughts over five tokens; the first thought of the second row has no target."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    ids = torch.tensor([[[0, 3], [4, 0], [2, 1]], [[0, 0], [1, 0], [3, 4]]])
    weights = torch.tensor([[[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0], [1.0, 0.0], [0.1, 0.9]]])
    whole = torch.zeros(2, 3, 5).scatter_add(-1, ids, weights)
    return logits, ids, weights, whole


def test_the_divergence_is_that_of_the_whole_distributions():
    logits, ids, weights, whole = example()
    kl, _ = soft_target_losses(logits, ids, weights)
    expected = F.kl_div(logits.log_softmax(-1), whole, reduction="none").sum(-1)
    expected[1, 0] = 0
    torch.testing.assert_close(kl, expected)


def test_its_gradient_is_the_difference_of_the_distributions():
    logits, ids, weights, whole = example()
    soft_target_losses(logits, ids, weights)[0].sum().backward()
    expected = logits.detach().softmax(-1) - whole
    expected[1, 0] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_the_divergence_of_a_distribution_to_itself_is_zero():
    logits, *_ = example()
    weights = logits.detach().softmax(-1)
    kl, share = soft_target_losses(logits, torch.arange(5).expand_as(weights), weights)
    torch.testing.assert_close(kl, torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(share, torch.ones(2, 3))


def test_the_share_is_the_probability_of_the_tokens_with_a_weight():
    logits, ids, weights, whole = example()
    share = soft_target_losses(logits, ids, weights)[1]
    torch.testing.assert_close(share, (logits.softmax(-1) * (whole > 0)).sum(-1).detach())
    assert share[1, 0] == 0 and not share.requires_grad


def test_the_distance_is_measured_in_standard_deviations_of_the_teacher():
    """Of two layers whose scales differ; a layer that is the same adds nothing."""
    torch.manual_seed(0)
    teacher = [torch.randn(4, 3), 100 * torch.randn(4, 3), torch.ones(4, 3)]
    student = [teacher[0] + 1, teacher[1] - 50, teacher[2].clone()]
    expected = (1 / teacher[0].std() + 50 / teacher[1].std() + 0) / 3
    torch.testing.assert_close(hidden_state_distance(student, teacher), expected)


def test_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    hidden_state_distance([student], [teacher]).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
