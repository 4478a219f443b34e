"""MiniLLM's loss: its gradient is that of the exact reverse KL, and padding counts for nothing."""

import itertools

import pytest
import torch

from hf_evidenceflow.losses.minillm import (
    future_rewards,
    importance_weights,
    minillm_loss,
    reverse_kl,
    token_logps,
)
from hf_evidenceflow.trainers.mixed_sampling import mixed_logps


V = 3


class Table(torch.nn.Module):
    """A distribution over two tokens: logits of the first, and of the second for each first."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(V, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(V, V, dtype=torch.float64))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first.expand(len(tokens), V), self.second[tokens[:, 0]]], dim=1)  # [B, 2, V]


def enumerated(student: Table, teacher: Table):
    """All completions of two tokens, with their log-probabilities under both."""
    tokens = torch.tensor(list(itertools.product(range(V), repeat=2)))  # [9, 2]
    logps = [
        model.logits(tokens).log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2)) for model in (student, teacher)
    ]
    return tokens, *logps


def gradients(student: Table) -> torch.Tensor:
    gradient = torch.cat([student.first.grad, student.second.grad.flatten()])
    student.zero_grad()
    return gradient


def test_the_expected_policy_gradient_is_that_of_the_exact_reverse_kl():
    student, teacher = Table(0), Table(1)
    tokens, logq, logp = enumerated(student, teacher)
    (logq.exp() * (logq - logp)).sum().backward()
    exact = gradients(student)
    probabilities, mask = logq.exp().detach(), torch.ones(1, 2)
    for row, probability in zip(tokens, probabilities):
        drawn = row[None]
        loss, _ = minillm_loss(student.logits(drawn), teacher.logits(drawn), drawn, mask, length_normalized=False)
        (probability * 2 * loss).backward()  # the loss is the mean of two tokens
    torch.testing.assert_close(gradients(student), exact, atol=1e-6, rtol=1e-5)  # the functions work in float32


def test_the_part_of_the_next_token_alone_is_not_the_gradient():
    student, teacher = Table(0), Table(1)
    tokens, logq, logp = enumerated(student, teacher)
    (logq.exp() * (logq - logp)).sum().backward()
    exact = gradients(student)
    kl = reverse_kl(student.logits(tokens), teacher.logits(tokens), torch.ones(9, 2))
    (logq.exp().detach() * kl.sum(1)).sum().backward()
    assert (gradients(student) - exact).norm() > 0.05 * exact.norm()


def test_weighted_samples_of_the_mixture_have_the_student_expectation():
    student, teacher = Table(0), Table(1)
    tokens, _, _ = enumerated(student, teacher)
    mixture = mixed_logps(student.logits(tokens), teacher.logits(tokens), 0.4)
    sampling = mixture.gather(-1, tokens[..., None])[..., 0].detach()  # [9, 2]
    logits, mask = (student.logits(tokens), teacher.logits(tokens)), torch.ones(9, 2)
    student_logps = token_logps(logits[0], tokens)
    weights = importance_weights(student_logps, sampling, mask, cumulative=True)
    kl = reverse_kl(*logits, mask)
    expected = (student_logps.sum(1).exp()[:, None] * kl).sum()
    drawn = (sampling.sum(1).exp()[:, None] * weights * kl).sum()
    torch.testing.assert_close(drawn, expected.to(drawn.dtype), rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights, importance_weights(student_logps, sampling, mask))


def test_the_ratio_of_a_token_is_its_own():
    student_logps = torch.tensor([[-1.0, -2.0, -3.0]])
    sampling, mask = torch.tensor([[-1.5, -1.0, 7.0]]), torch.tensor([[1, 1, 0]])
    torch.testing.assert_close(
        importance_weights(student_logps, sampling, mask), torch.tensor([[0.5, -1.0, 0.0]]).exp()
    )
    torch.testing.assert_close(
        importance_weights(student_logps, sampling, mask, cumulative=True), torch.tensor([[0.5, -0.5, -0.5]]).exp()
    )


def test_later_rewards_are_summed_or_averaged_over_tokens_that_count():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert future_rewards(rewards, mask, length_normalized=False).tolist() == [[14, 12, 8, 0], [2, 0, 0, 0]]
    assert future_rewards(rewards, mask)[0].tolist() == pytest.approx([14 / 3, 6, 8, 0])
    assert future_rewards(rewards, mask)[1].tolist() == [2, 0, 0, 0]


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    tokens, mask = torch.randint(5, (2, 3)), torch.ones(2, 3)
    loss, parts = minillm_loss(logits, logits.detach().clone(), tokens, mask)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and parts["reward"] == 0
    assert logits.grad.abs().max() < 1e-6


def test_padding_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    student, teacher, sampling = torch.randn(2, 5, 7), torch.randn(2, 5, 7), -torch.rand(2, 5)
    tokens, results = torch.randint(7, (2, 5)), []
    for rubbish in (None, 50.0, float("inf"), float("nan")):
        ours, theirs, drawn, ids, pad = student.clone(), teacher.clone(), sampling.clone(), tokens.clone(), mask == 0
        if rubbish is not None:
            for logits, column in ((ours, 2), (theirs, 4)):
                logits[..., column] = logits[..., column].masked_fill(pad, rubbish)
            drawn[pad], ids[pad] = rubbish, 3
        ours.requires_grad_()
        loss, _ = minillm_loss(ours, theirs, ids, mask, drawn)
        loss.backward()
        results.append((loss.item(), ours.grad))
        assert not ours.grad[pad].any()
    # Rows with less padding have the same mean
    cut, _ = minillm_loss(student[:, :3], teacher[:, :3], tokens[:, :3], mask[:, :3], sampling[:, :3])
    assert cut.item() == pytest.approx(results[0][0], rel=1e-5)
    for loss, gradient in results[1:]:
        assert loss == results[0][0] and torch.equal(gradient, results[0][1])


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\), \(2, 3, 5\) and \(2, 4\)"):
        reverse_kl(torch.ones(2, 3, 5), torch.ones(2, 3, 5), torch.ones(2, 4))
