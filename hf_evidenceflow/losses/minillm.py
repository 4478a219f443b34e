"""MiniLLM: the reverse KL of a student to its teacher on the student's own samples, as a loss for autograd.

The reverse KL of whole completions y, with q the student and p the teacher, is L = E_(y ~ q) log(q(y) / p(y)). With
the reward r_t = log(p(y_t | y_<t) / q(y_t | y_<t)) its gradient is that of a policy gradient, which the paper splits
in the part that the next token decides, summed over the vocabulary instead of the token drawn (`Single`), and what
comes after (`Long`):

    grad L = E_y sum_t [ grad KL(q(. | y_<t) || p(. | y_<t))  -  R_(t+1) grad log q(y_t | y_<t) ]

R_(t+1) is the sum of the rewards after t, or, length-normalized, their mean: a sum favors short completions. Samples
from a mixture of teacher and student, a p + (1 - a) q, are weighted with w_t.

Deviations: the mean over all tokens, not the sum, so that the size does not depend on the length; R is divided by the
number of tokens after t, where the paper prints one fewer, which is 0 at the last but one. One update per batch of
samples, so that the paper's clip of the probability ratio, which is then 1, is left out.

Source: Gu et al. 2023, arXiv 2306.08543, section 2.2 and algorithm 1.

Shapes: all tensors are `(B, C)`, B completions and C completion tokens; logits `(B, C, V)`, V the vocabulary, predict
these tokens, and other shapes of theirs are a `ValueError`. `mask` is 1 at the tokens of completions, the end of
sequence included, and 0 at padding; prompts are no part of these tensors. The teacher gets no gradient.
"""

import torch


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`KL(q || p)` at each token in nats, summed over the vocabulary; 0 where the mask is 0."""
    _check(student_logits, teacher_logits, mask)
    student, teacher = (
        _without_padding(logits, mask).float().log_softmax(-1) for logits in (student_logits, teacher_logits.detach())
    )
    return (student.exp() * (student - teacher)).sum(-1)  # two equal distributions at padding: 0


def token_logps(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token `(B, C)` under the logits `(B, C, V)` that predict it."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def future_rewards(rewards: torch.Tensor, mask: torch.Tensor, length_normalized: bool = True) -> torch.Tensor:
    """
    `R_(t+1)`: the mean of the rewards `log(p / q)` after each token, or, without `length_normalized`, their sum; 0 at
    the last token of a completion.
    """

    def after(values):
        return values.flip(1).cumsum(1).flip(1) - values

    mask = mask.to(rewards.dtype)
    total = after(torch.where(mask.bool(), rewards, 0.0))
    return total / after(mask).clamp_min(1) if length_normalized else total


def importance_weights(
    student_logps: torch.Tensor, sampling_logps: torch.Tensor, mask: torch.Tensor, cumulative: bool = False
) -> torch.Tensor:
    """
    `w_t` for samples from another distribution than the student's, without gradient: the ratio at t alone, as the
    paper has it, or, `cumulative`, the product of the ratios up to t, which varies a lot.
    """
    ratios = torch.where(mask.bool(), student_logps - sampling_logps, 0.0).detach()
    return (ratios.cumsum(1) if cumulative else ratios).exp()


def minillm_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling_logps: torch.Tensor | None = None,
    length_normalized: bool = True,
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    A loss whose gradient is MiniLLM's, without the term of the pretraining text. Its value is no KL.

    `sampling_logps` are the log-probabilities of the `tokens` under the mixture that they were drawn from; `None`: it
    was the student alone.

    Returns:
        `tuple[torch.Tensor, dict[str, float]]`: the loss, a mean over the tokens of the mask; and `reverse_kl` and
        `reward`, means per token, and `weight`, the mean of `w_t`.
    """
    _check(student_logits, teacher_logits, mask)
    student_logits, teacher_logits = (_without_padding(one, mask) for one in (student_logits, teacher_logits.detach()))
    keep = mask.bool()
    student_logps = token_logps(student_logits, tokens)
    rewards = torch.where(keep, token_logps(teacher_logits, tokens) - student_logps, 0.0).detach()
    if sampling_logps is None:
        weights = torch.ones_like(rewards)
    else:
        weights = importance_weights(student_logps, sampling_logps, mask)
    single = reverse_kl(student_logits, teacher_logits, mask)
    long = -future_rewards(rewards, mask, length_normalized) * torch.where(keep, student_logps, 0.0)
    tokens_counted = keep.sum().clamp_min(1)
    loss = (weights * (single + long) * keep).sum() / tokens_counted
    return loss, {
        "reverse_kl": (single.detach().sum() / tokens_counted).item(),
        "reward": (rewards.sum() / tokens_counted).item(),
        "weight": ((weights * keep).sum() / tokens_counted).item(),
    }


def _without_padding(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits with 0 at padding: a product with 0 at the end would leave nan where one is infinite."""
    return logits.masked_fill(~mask.bool()[..., None], 0.0)


def _check(student_logits, teacher_logits, mask) -> None:
    if student_logits.shape != teacher_logits.shape or mask.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"Logits of student and teacher and the mask have shapes {tuple(student_logits.shape)}, "
            f"{tuple(teacher_logits.shape)} and {tuple(mask.shape)}. They must be (B, C, V) twice and (B, C), with "
            "one vocabulary."
        )
