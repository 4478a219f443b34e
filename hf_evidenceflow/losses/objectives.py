"""The objectives by name. Each is called as `objective(batch, layer)` and gives the layer's term, a scalar.

The batch, a [`~hf_evidenceflow.supervision.layer_terms.LayerBatch`], hands out supervised tokens and features only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .controls import shuffled, zero
from .cosine_distance import cosine, nitp
from .mean_squared_error import mse, normalized_mse
from .readout import cross_entropy, lens_kl


Term = Callable[[Any, int], torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """
    An objective and what the settings have to know of it.

    `term(batch, layer)` is the sum over the batch's tokens divided by `batch.normalizer`. `target`: the embedding that
    is pulled to unless the settings say otherwise; `None` where there is none to choose. `live_target`: gradients may
    reach it. `masked`: it can be restricted to a block of features. `reads_out`: it needs the states as logits, by
    default on an eighth of the tokens and not on the last layer. `make_modules(hidden_size, vocab_size, layers)` gives
    modules of its own by name.
    """

    term: Term
    target: str | None = "input_embedding"
    live_target: bool = True
    masked: bool = True
    reads_out: bool = False
    make_modules: Callable[[int, int, list[int]], dict[str, nn.Module]] | None = None


OBJECTIVES: dict[str, Objective] = {}


def register_objective(name: str, **traits) -> Callable[[Term], Term]:
    """
    Give an objective a name, one that is not taken, for the settings and the command line. `traits` are fields of
    [`Objective`].

    Example:

    ```python
    >>> @register_objective("smooth_l1")
    ... def smooth_l1(batch, layer):
    ...     errors = F.smooth_l1_loss(batch.states_at(layer), batch.target_at(layer), reduction="none")
    ...     return mean_over_tokens(errors.mean(-1), batch.normalizer)

    >>> evidence_flow(model, objective="smooth_l1")
    ```
    """

    def register(term: Term) -> Term:
        if name in OBJECTIVES:
            raise ValueError(f"There is an objective {name!r} already. Choose another name.")
        OBJECTIVES[name] = Objective(term, **traits)
        return term

    return register


def find_objective(objective: str | Term) -> Objective:
    """The objective of a name, or of a callable `objective(batch, layer)`."""
    return OBJECTIVES[objective] if isinstance(objective, str) else Objective(objective)


@register_objective("mse")
def _mse(batch, layer):
    return mse(batch.states_at(layer), batch.target_at(layer), batch.normalizer)


@register_objective("normalized_mse")
def _normalized_mse(batch, layer):
    return normalized_mse(batch.states_at(layer), batch.target_at(layer), batch.normalizer)


@register_objective("cosine", target="output_embedding", live_target=False)
def _cosine(batch, layer):
    return cosine(batch.states_at(layer), batch.target_at(layer), batch.normalizer)


@register_objective("zero", target=None)
def _zero(batch, layer):
    return zero(batch.states_at(layer), batch.normalizer)


@register_objective("shuffled")
def _shuffled(batch, layer):
    return shuffled(batch.states_at(layer), batch.target_at(layer), batch.generator, batch.normalizer)


@register_objective("cross_entropy", target=None, masked=False, reads_out=True)
def _cross_entropy(batch, layer):
    settings = batch.normalizer, batch.config.chunk_size
    return cross_entropy(batch.raw_states_at(layer), batch.labels, batch.parts.readout, *settings)


@register_objective("lens_kl", target=None, masked=False, reads_out=True)
def _lens_kl(batch, layer):
    settings = batch.normalizer, batch.config.chunk_size
    return lens_kl(batch.raw_states_at(layer), batch.raw_states_at(-1), batch.parts.readout, *settings)


def _norm_and_head_per_layer(hidden_size, vocab_size, layers):
    return {
        str(layer): nn.Sequential(nn.RMSNorm(hidden_size), nn.Linear(hidden_size, vocab_size, bias=False))
        for layer in layers
    }


@register_objective(
    "deep_supervision", target=None, masked=False, reads_out=True, make_modules=_norm_and_head_per_layer
)
def _deep_supervision(batch, layer):
    settings = batch.normalizer, batch.config.chunk_size
    return cross_entropy(batch.raw_states_at(layer).float(), batch.labels, batch.own_modules[str(layer)], *settings)


def _projection(hidden_size, vocab_size, layers):
    return {"projection": nn.Linear(hidden_size, hidden_size, bias=False)}


@register_objective("nitp", target=None, live_target=False, masked=False, make_modules=_projection)
def _nitp(batch, layer):
    next_shallow = batch.raw_states_at(batch.config.shallow_layer, shift=1)
    projected = batch.own_modules["projection"](batch.states_at(layer).float())
    return nitp(projected, next_shallow.float(), batch.normalizer)
