"""Cosine distance of states to fixed targets: `cosine` to the label's output row, `nitp` to the next shallow state.

`cosine` is this project's neighbor of Loss_p: at the head a state is read by its products with the output rows, so
its direction should agree with the label's row. Targets are detached: with live ones the distance also falls when all
rows turn the same way.
"""

import torch
import torch.nn.functional as F

from .tokens import at_least_float32, check_states_and_targets, mean_over_tokens


def cosine(
    states: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor | None = None
) -> torch.Tensor:
    """
    `1 - cos(F_i, T)`, averaged over tokens; in [0, 2], blind to the length of either side.

    Targets are output-embedding rows of the labels (`model.get_output_embeddings().weight[labels]`).
    """
    check_states_and_targets(states, targets)
    similarity = F.cosine_similarity(at_least_float32(states), at_least_float32(targets.detach()), dim=-1)  # [N]
    return mean_over_tokens(1 - similarity, normalizer)


def nitp(
    projected: torch.Tensor, next_shallow: torch.Tensor, normalizer: float | torch.Tensor | None = None
) -> torch.Tensor:
    """
    Next Implicit Token Prediction (arXiv 2605.24956): `1 - cos(P(F_L)[t], F_s[t + 1])`, averaged over tokens, P a
    projection of the objective's own. The shallow layer's states are those at `index + 1` of [`next_token_targets`].
    """
    return cosine(projected, next_shallow, normalizer)
