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


def layer_skip_weights(layers: Sequence[int], num_layers: int, scale: float) -> tuple[dict[int, float], float]:
    """
    LayerSkip's weights of the early layers `layers`, and that of the last layer's own loss; together 1.

    Before they are normalized, that of layer l is `scale * sum_{i<=l} i`, so that layer 0 has none, and the last one's
    `L - 1 + scale * sum_{i<=L-2} i`.

    Source: Elhoushi et al. 2024, arXiv 2404.16710, equation 6 and the one below it.
    """
    if num_layers - 1 in layers:
        raise ValueError("The last layer has the model's own loss in LayerSkip's: leave it out of `layers`.")
    early = {layer: scale * layer * (layer + 1) / 2 for layer in layers}
    last = num_layers - 1 + scale * (num_layers - 2) * (num_layers - 1) / 2
    total = last + sum(early.values())
    return {layer: weight / total for layer, weight in early.items()}, last / total


def enabled_layers(
    curriculum: str | None, layers: Sequence[int], num_layers: int, step: int, total_steps: int
) -> list[int]:
    """
    The layers whose loss LayerSkip's curriculum enables in an optimizer step; without one, all.

    `"rotational:R"`: each R-th, one further on with each step. `"gradual"`: from the last layer down, one more each
    `total_steps / 2L` steps.

    Source: Elhoushi et al. 2024, arXiv 2404.16710, section 4.1.2.
    """
    if curriculum is None:
        return list(layers)
    if curriculum == "gradual":
        return [layer for layer in layers if step * 2 * num_layers >= (num_layers - 1 - layer) * total_steps]
    period = rotation_period(curriculum)
    return [layer for layer in layers if (layer - step) % period == 0]


def rotation_period(curriculum: str) -> int:
    """R of `"rotational:R"`; a `ValueError` if it is no such text."""
    match = re.fullmatch("rotational:([1-9][0-9]*)", curriculum)
    if match is None:
        raise ValueError(f"`layer_curriculum` must be 'gradual' or 'rotational:R' with R from 1, got {curriculum!r}.")
    return int(match[1])


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
