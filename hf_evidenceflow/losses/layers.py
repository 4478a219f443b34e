"""Which layers are supervised, how strongly, and on which of their features.

Layers are counted from 0, without the embedding; the last one is taken before the final norm. A looped block counts
each of its loops as a layer.
"""

import math
import re
from collections.abc import Sequence


LAYER_WEIGHTS = ("uniform", "linear", "drift")


def layer_selection(spec: str | Sequence[int], num_layers: int) -> list[int]:
    """
    The supervised layers that a spec names.

    `"all"`; `"every:k"`: each k-th layer, that is k-1, 2k-1, ...; `"last:k"`: the last k layers; or a list of ids from
    0. Returns ids in rising order, at least one; a spec that names no layer, one twice or one that does not exist is a
    `ValueError`.

    Example:

    ```python
    >>> layer_selection("every:2", 6)
    [1, 3, 5]
    ```
    """
    if spec == "all":
        return list(range(num_layers))
    if isinstance(spec, str):
        match = re.fullmatch(r"(every|last):([1-9][0-9]*)", spec)
        if match and int(match[2]) <= num_layers:
            k = int(match[2])
            return list(range(k - 1, num_layers, k) if match[1] == "every" else range(num_layers - k, num_layers))
    elif isinstance(spec, Sequence) and all(type(layer) is int and 0 <= layer < num_layers for layer in spec):
        layers = sorted(set(spec))
        if layers and len(layers) == len(spec):
            return layers
    raise ValueError(
        f"`layers` must be 'all', 'every:k' or 'last:k' with k from 1 to {num_layers}, or a list of different ids "
        f"from 0 to {num_layers - 1}, got {spec!r}."
    )


def layer_weights(kind: str, count: int) -> list[float]:
    """
    The weights of `count` supervised layers, first to last, positive, with a mean of 1.

    `"uniform"`: all 1, as published. `"linear"`: the i-th of them in proportion to i. `"drift"`: to sqrt(i), the
    signal-to-noise ratio that a drift-diffusion with constant drift reaches in i steps; this project's.
    """
    if kind not in LAYER_WEIGHTS:
        raise ValueError(f"`layer_weights` must be one of {', '.join(map(repr, LAYER_WEIGHTS))}, got {kind!r}.")
    if count < 1:
        raise ValueError(f"There must be at least 1 layer to weigh, got {count}.")
    ramp = {"uniform": lambda i: 1.0, "linear": float, "drift": math.sqrt}[kind]
    ramp = [ramp(i) for i in range(1, count + 1)]
    return [value * count / sum(ramp) for value in ramp]


def released_features(num_layers: int, layer: int, hidden_size: int) -> slice:
    """
    The block of features on which a layer is pulled under a target mask; `layer` is its place among the `num_layers`
    supervised ones.

    The blocks of all layers are disjoint, cover H and differ in size by at most 1. Slice states and targets with it
    before the objective, whose mean then goes over the released features alone.
    """
    if not 0 <= layer < num_layers:
        raise ValueError(f"`layer` must be from 0 to {num_layers - 1}, got {layer}.")
    if num_layers > hidden_size:
        raise ValueError(
            f"{num_layers} layers cannot have a block each of {hidden_size} features: supervise fewer layers, or "
            "leave `target_mask` off."
        )
    return slice(layer * hidden_size // num_layers, (layer + 1) * hidden_size // num_layers)
