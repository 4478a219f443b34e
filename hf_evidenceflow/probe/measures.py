"""What is measured in the states of one layer, and over the layers of one token: plain functions on tensors.

Shapes: N tokens, C tokens of a chunk, H hidden size, V vocabulary, K listed tokens, L layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..losses.tokens import at_least_float32, check_states_and_targets


class LensMeasures(NamedTuple):
    """
    What the readout of C states says about their labels. Made by [`lens_measures`].

    Attributes:
        loss (`torch.Tensor` of shape `(C,)`):
            Cross-entropy of the label in nats.
        rank (`torch.Tensor` of shape `(C,)`):
            Rank of the label, int64; 1 is the most probable token.
        probability (`torch.Tensor` of shape `(C,)`):
            Probability of the label.
        entropy (`torch.Tensor` of shape `(C,)`):
            Entropy of the distribution in nats.
        log_odds (`torch.Tensor` of shape `(C,)`):
            `ln(p / (1 - p))` of the label: the evidence for it against all other tokens together.
        top_ids (`torch.Tensor` of shape `(C, K)`):
            The most probable tokens, int64, best first.
        top_probabilities (`torch.Tensor` of shape `(C, K)`):
            Their probabilities.
    """

    loss: torch.Tensor
    rank: torch.Tensor
    probability: torch.Tensor
    entropy: torch.Tensor
    log_odds: torch.Tensor
    top_ids: torch.Tensor
    top_probabilities: torch.Tensor


def lens_measures(logits: torch.Tensor, labels: torch.Tensor, top_k: int = 5) -> LensMeasures:
    """
    Compare logits with the right next tokens.

    Args:
        logits (`torch.Tensor` of shape `(C, V)`):
            Readout of the states of one layer, any float dtype; computed in at least fp32.
        labels (`torch.Tensor` of shape `(C,)`):
            The right next tokens, int64.
        top_k (`int`, *optional*, defaults to `5`):
            Number of listed tokens K; all V if there are fewer.

    Returns:
        [`LensMeasures`]. Of equal logits the one with the lower id ranks first, so that a layer that says nothing does
        not seem to know the label.

    Source: the logit lens, nostalgebraist 2020.
    """
    logits = at_least_float32(logits)
    log_probs = F.log_softmax(logits, dim=-1)  # [C, V]
    rows = labels.unsqueeze(-1)  # [C, 1]
    own = logits.gather(-1, rows)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < rows))  # [C, V]
    label_log_probs = log_probs.gather(-1, rows).squeeze(-1)
    probabilities = log_probs.exp()
    # `log_probs * p` is NaN where a logit is -inf; such a token adds nothing
    entropy = torch.special.entr(probabilities).sum(-1)
    top = probabilities.topk(min(top_k, logits.shape[-1]))
    # 1 - p would lose all digits for a label that the model is sure of
    others = logits.scatter(-1, rows, -torch.inf).logsumexp(-1)  # [C]
    return LensMeasures(
        loss=-label_log_probs,
        rank=ahead.sum(-1) + 1,
        probability=label_log_probs.exp(),
        entropy=entropy,
        log_odds=own.squeeze(-1) - others,
        top_ids=top.indices,
        top_probabilities=top.values,
    )


def state_measures(
    states: torch.Tensor,
    previous: torch.Tensor | None,
    targets: torch.Tensor,
    output_rows: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """
    Compare the states after a layer with their targets and with the states before it.

    Args:
        states (`torch.Tensor` of shape `(N, H)`):
            States after the layer.
        previous (`torch.Tensor` of shape `(N, H)` or `None`):
            States before it; `None` for the embedding, which no layer made.
        targets (`torch.Tensor` of shape `(N, H)`):
            Input-embedding rows of the right next tokens.
        output_rows (`torch.Tensor` of shape `(N, H)`):
            Output-embedding rows of the same tokens.

    Returns:
        `dict[str, torch.Tensor]`: fp32 tensors of shape `(N,)`:
            `mse_to_target`: squared distance to the target, averaged over H: the token's term of Loss_p;
            `cosine_to_target`, `cosine_to_output_row`: cosine to either row;
            `state_norm`: Euclidean norm of the state;
            `step_norm`: norm of what the layer changed; NaN for the embedding;
            `relative_step`: `step_norm` divided by the norm before the layer; NaN for the embedding.

    Raises:
        ValueError: if a shape is another one.
    """
    for other in (targets, output_rows) if previous is None else (previous, targets, output_rows):
        check_states_and_targets(states, other)
    states, targets, output_rows = map(at_least_float32, (states, targets, output_rows))
    norm = states.norm(dim=-1)  # [N]
    step = relative = torch.full_like(norm, torch.nan)
    if previous is not None:
        previous = at_least_float32(previous)
        step = (states - previous).norm(dim=-1)
        relative = step / previous.norm(dim=-1)
    return {
        "mse_to_target": (states - targets).square().mean(-1),
        "cosine_to_target": F.cosine_similarity(states, targets, dim=-1),
        "cosine_to_output_row": F.cosine_similarity(states, output_rows, dim=-1),
        "state_norm": norm,
        "step_norm": step,
        "relative_step": relative,
    }


def effective_rank(states: torch.Tensor) -> float:
    """
    Number of directions that states really use: `exp` of the entropy of their normalised singular values.

    It lies between 1 (all states on one line through the origin) and `min(N, H)`; few tokens bound it from above, so
    compare layers on the same tokens. The states are not centred, as in the source.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.

    Args:
        states (`torch.Tensor` of shape `(N, H)`):
            States of one layer.

    Returns:
        `float`: 0 if all states are 0; NaN if a value is not finite.

    Raises:
        ValueError: if the states are not `(N, H)` with at least one row.
    """
    if states.dim() != 2 or states.shape[0] == 0:
        raise ValueError(f"`states` must be [N, H] with at least one token, got {tuple(states.shape)}.")
    if not states.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals(at_least_float32(states))
    if values[0] == 0:
        return 0.0
    return torch.special.entr(values / values.sum()).sum().exp().item()


def drift_rate(log_odds: torch.Tensor) -> torch.Tensor:
    """
    Rate at which the evidence for the right next token grows with depth: the slope of its log-odds over the layers.

    In the drift-diffusion model the accumulated evidence is a log-likelihood ratio that changes by `v dt` on average;
    here a layer is the unit of time, the logit lens gives the log-odds of the label against all other tokens, and `v`
    is its least-squares slope, in nats a layer. For equally spaced layers this is the linear regression with an
    intercept (the starting point, which the embedding sets).

    Source: Ratcliff 1978 (drift `v`); Bogacz et al. 2006, "The physics of optimal decision making" (evidence as a
    log-likelihood ratio). The reading of layers as time is this project's.

    Args:
        log_odds (`torch.Tensor` of shape `(L, N)`):
            Log-odds of the labels, first layer to last.

    Returns:
        `torch.Tensor` of shape `(N,)`; NaN if there is a single layer.
    """
    depth = torch.arange(log_odds.shape[0], dtype=log_odds.dtype, device=log_odds.device)
    depth = depth - depth.mean()  # [L]
    return depth @ log_odds / depth.square().sum()


def effective_depth(relative_steps: torch.Tensor, threshold: float = 0.1) -> torch.Tensor:
    """
    Number of layers that do something: those whose relative step is above a threshold.

    Args:
        relative_steps (`torch.Tensor` of shape `(L, N)`):
            Norm of each layer's change divided by the norm before it, without the embedding.
        threshold (`float`, *optional*, defaults to `0.1`):
            Relative step from which on a layer counts.

    Returns:
        `torch.Tensor` of shape `(N,)`, int64, each in [0, L].
    """
    return (relative_steps > threshold).sum(0)
