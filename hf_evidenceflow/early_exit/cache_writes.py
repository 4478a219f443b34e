"""Writes a layer's keys and values without the rest of the layer, for any family.

A decoder layer hands its new keys and values to `Cache.update` once, before it attends. Stopping it there leaves out
attention, output projection and MLP, and needs no knowledge of the family's projections and rotary embedding.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from .layer_calls import shadowed


class _KeysWritten(Exception):
    pass


def writes_can_stand_alone(cache: Cache, config: Any) -> bool:
    """
    Whether a layer may be stopped after its cache update: each layer has keys and values of its own and nothing else,
    so no recurrent states, indexers or shared keys and values. `cache` is that after the prefill.
    """
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return plain and not getattr(config, "num_kv_shared_layers", 0)


def write_keys_and_values(forward: Callable[[torch.Tensor], Any], states: torch.Tensor, cache: Cache) -> None:
    """Run a layer, as a function of the states `[B, T, H]`, up to its update of the cache."""
    update = cache.update

    def update_and_stop(*args, **kwargs):
        update(*args, **kwargs)
        raise _KeysWritten

    with shadowed(cache, "update", update_and_stop), contextlib.suppress(_KeysWritten):
        forward(states)
