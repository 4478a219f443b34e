"""Layer-wise objectives as pure functions on tensors, their controls, and what aligns them with tokens and layers."""

from .controls import other_tokens, shuffled, zero
from .cosine_distance import cosine, nitp
from .layers import LAYER_WEIGHTS, layer_selection, layer_weights, released_features
from .mean_squared_error import mse, normalized_mse
from .next_token import NextTokenTargets, next_token_targets
from .objectives import OBJECTIVES, Objective, register_objective
from .readout import cross_entropy, lens_kl
from .tokens import mean_over_tokens


__all__ = [
    "LAYER_WEIGHTS",
    "OBJECTIVES",
    "NextTokenTargets",
    "Objective",
    "cosine",
    "cross_entropy",
    "layer_selection",
    "layer_weights",
    "lens_kl",
    "mean_over_tokens",
    "mse",
    "next_token_targets",
    "nitp",
    "normalized_mse",
    "other_tokens",
    "register_objective",
    "released_features",
    "shuffled",
    "zero",
]
