"""Log-densities of what a rollout draws besides its tokens; the update computes them again with the same functions.

Sources: Butt et al. 2025, Soft Tokens (arXiv 2509.19170), the Gaussian; Zheng and Lee 2025, SofT-GRPO (arXiv
2511.06411), the Gumbel; TARPO (arXiv 2606.05859), the choice. A place where nothing was drawn has 0.

Shapes: K drawn tokens, H hidden size.
"""

import math

import torch
import torch.nn.functional as F


def gaussian_log_density(mean: torch.Tensor, drawn: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """
    `log N(drawn; mean, scale^2 I)`, in at least fp32.

    Args:
        mean, drawn (`torch.Tensor` of shape `(..., H)`): the state without noise and the drawn one.
        scale (`float` or scalar `torch.Tensor`): standard deviation > 0 of each entry.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    scale = torch.as_tensor(scale, dtype=dtype, device=mean.device)
    distance = ((drawn.to(dtype) - mean.to(dtype)) / scale).square().sum(-1)
    return -distance / 2 - drawn.shape[-1] * (scale.log() + math.log(2 * math.pi) / 2)


def gumbel_log_density(scores: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """
    Log-density of log-probabilities with Gumbel noise: `sum_k -z_k - exp(-z_k)` with `z = drawn - log p`, in at least
    fp32.

    Args:
        scores (`torch.Tensor` of shape `(..., K)`):
            Scores of the drawn tokens, up to a constant; `p` is their softmax.
        drawn (`torch.Tensor` of shape `(..., K)`):
            `log p` with noise; `-inf` leaves a token out.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    kept = drawn > -torch.inf
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~kept, -1e9)
    noise = torch.where(kept, drawn - scores.log_softmax(-1), 0.0)
    return torch.where(kept, -noise - (-noise).exp(), 0.0).sum(-1)


def choice_log_density(logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """
    Log-probability of a choice between two, in at least fp32.

    Args:
        logits (`torch.Tensor` of shape `(...)`): log-odds of 1.
        choice (`torch.Tensor` of shape `(...)`): 1 or 0; `-1` where nothing was chosen.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    density = F.logsigmoid(torch.where(choice == 1, logits, -logits))
    return torch.where(choice < 0, 0.0, density)
