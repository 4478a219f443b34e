"""Losses of latent training: a thought against its target distribution, and hidden states against a teacher's.

Shapes: B rows, C thoughts, M tokens of a target, L layers, H hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch


def soft_target_losses(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL of each thought's distribution to its target (nats), and the probability that it puts on the target's tokens.

    Source: CoT2 (arXiv 2505.23648), equation 4.

    Args:
        logits (`torch.Tensor` of shape `(B, C, V)`):
            Logits that the thoughts are drawn from.
        ids, weights (`torch.Tensor` of shape `(B, C, M)`):
            Tokens of the targets and their probabilities; where all are 0 there is no target.

    Returns:
        `tuple`: both `(B, C)`, fp32, and 0 where there is no target.
    """
    logps = logits.float().log_softmax(-1).gather(-1, ids)
    kl = (torch.xlogy(weights, weights) - weights * logps).sum(-1)
    share = (logps.detach().exp() * (weights > 0)).sum(-1)
    return kl, share


def hidden_state_distance(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Mean L1 distance of hidden states, a layer's divided by the standard deviation of its teacher, which gets no
    gradient.

    Source: CODI (arXiv 2502.21074), section 3.2.

    Args:
        student, teacher (`Sequence[torch.Tensor]`): L states `(B, H)`, of the same positions.
    """
    distances = []
    for ours, theirs in zip(student, teacher):
        theirs = theirs.detach().float()
        distances.append((ours.float() - theirs).abs().mean() / theirs.std().clamp(min=1e-6))
    return torch.stack(distances).mean()
