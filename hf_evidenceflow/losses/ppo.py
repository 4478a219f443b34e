"""Proximal policy optimization on tokens, as pure functions: rewards, advantages, the two clipped losses.

    r_t = -beta (log pi_old - log pi_ref)_t + [t is the last token] R        rewards of a completion's tokens
    A_t = sum_l (gamma lambda)^l delta_(t+l),  delta_t = r_t + gamma V_(t+1) - V_t        (GAE)
    L_t = -min(rho_t A_t, clip(rho_t, 1 - e, 1 + e) A_t),  rho_t = pi(a_t) / pi_old(a_t)

`pi_old` and the old values are those of the rollout, and stay so through all epochs over it: the ratio is 1 at the
first update and moves away afterwards, which is what the clip bounds.

Source: Schulman et al. 2017 (PPO, arXiv 1707.06347), equations 7 and 11; Schulman et al. 2016 (GAE, arXiv 1506.02438),
equation 16; Ouyang et al. 2022 (arXiv 2203.02155), the penalty of each token in the reward. The value clip is that of
OpenAI's `baselines`, not of the paper.

Shapes: all tensors are `(B, C)`, B rows and C completion tokens, unless said otherwise. `mask` is 1 at the tokens that
count; what stands elsewhere changes nothing. `logps` are log-probabilities of the tokens under the policy, `old_logps`
under that of the rollout, `ref_logps` under the reference. `reduce` sums a tensor over the processes of a distributed
run.
"""

from collections.abc import Callable

import torch


def token_rewards(
    scores: torch.Tensor,
    mask: torch.Tensor,
    logps: torch.Tensor | None = None,
    ref_logps: torch.Tensor | None = None,
    beta: float = 0.0,
) -> torch.Tensor:
    """
    The reward of each token: the score `[B]` of the completion at its last token, less `beta` times the KL penalty
    (k1) of every token, between the log-probabilities of the rollout and of the reference. 0 outside the mask; a row
    without any token gets no reward.

    Example:

    ```python
    >>> token_rewards(torch.tensor([2.0]), torch.tensor([[1, 1, 0]]))
    tensor([[0., 2., 0.]])
    ```
    """
    mask = mask.bool()
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # [B, C]
    rewards = torch.where(last, scores[:, None].float(), 0.0)
    if beta:
        rewards = rewards - beta * torch.where(mask, logps - ref_logps, 0.0)
    return rewards


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Generalized advantage estimates, and the returns (advantages plus values) that the values are fitted to; both are 0
    outside the mask.

    A completion ends its episode: the value after its last token is 0. Tokens outside the mask are stepped over, so
    that the estimates of the others are those of the sequence without them, wherever they stand (padding, the output
    of a tool). `lam` of 0 is the one-step error, of 1 the return less the value.
    """
    mask = mask.bool()
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))  # [B]
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage
    return torch.where(mask, advantages, 0.0), torch.where(mask, advantages + values, 0.0)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    shift_mean: bool = True,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> torch.Tensor:
    """
    Unit variance over the tokens that count, and zero mean unless `shift_mean` is `False`; 0 outside the mask. Fewer
    than two tokens stay as they are.
    """
    mask = mask.bool()
    mean, variance, count = _moments(values, mask, reduce)
    if count < 2:
        return torch.where(mask, values, 0.0)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def explained_variance(
    values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> float:
    """
    The share of the returns' variance that the values explain: 1 for a perfect critic, 0 for a constant one; NaN where
    the returns are all the same.
    """
    mask = mask.bool()
    variance = _moments(returns, mask, reduce)[1]
    unexplained = _moments(returns - values, mask, reduce)[1]
    return (1 - unexplained / variance).item() if variance > 0 else float("nan")


def _moments(values, mask, reduce):
    """Mean, variance (of a sample) and number of the values in the mask."""
    total, count = reduce(torch.stack([torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)]))
    mean = total / count.clamp(min=1)
    squares = reduce(torch.where(mask, values - mean, 0.0).square().sum())
    return mean, squares / (count - 1).clamp(min=1), count


def clipped_policy_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The clipped surrogate of each token, to be minimized, and whether the clip takes its gradient away.

    The ratio counts in `[1 - clip_low, 1 + clip_high]`; `clip_high` is `clip_low` if `None`.
    """
    ratio = (logps - old_logps).exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    plain, clipped = -advantages * ratio, -advantages * clipped_ratio
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Half the squared error of each value, the larger one of the value and of the value kept within `clip` of that of
    the rollout (`inf`: the plain squared error); and whether the clip takes its gradient away.
    """
    near = values.clamp(old_values - clip, old_values + clip)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def reference_kl(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """
    Estimate k3 of the KL to the reference, at least 0 for each token: the penalty for use in a loss.

    The estimate k1 of [`token_rewards`] has no place there: the expectation of its gradient is 0. That of k3 is the
    gradient of `KL(pi_ref || pi)`.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = ref_logps - logps
    return log_ratio.exp() - 1 - log_ratio
