"""Stands in for the calls of a model's decoder layers, for the time of a `with` block.

Early exit changes what a layer call does (run, leave rows as they are, only write the KV cache) without knowing the
family: the `forward` of each decoder layer is shadowed on the instance and given back at the end, also on an
exception.

Depths count layer calls from 1: depth d is the state after layer d - 1. A looped block has one depth for each loop.
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from ..models.decoder import DecoderParts, decoder_parts, record_layer_states


_IN_USE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class LayerProfile:
    """
    What one short forward pass told about a model. Made by [`profile_layers`].

    Attributes:
        num_layers (`int`):
            Number of layer calls in a forward pass, L.
        extra_outputs (`int` or `None`):
            What a layer returns next to its states: `None` if a bare tensor, else the further entries of its tuple.
        takes_active_tokens (`bool`):
            Whether its forward has `active_tokens`, which tells it the tokens that need an output.
    """

    parts: DecoderParts
    num_layers: int
    extra_outputs: int | None
    takes_active_tokens: bool

    def output(self, states: torch.Tensor) -> Any:
        """The states in the form in which the model's layers return theirs."""
        return states if self.extra_outputs is None else (states, *[None] * self.extra_outputs)

    def check_depth(self, depth: int, below: int = 0) -> None:
        """Raises a ValueError unless `depth` is from 1 to `below` layers before the end."""
        if type(depth) is not int or not 1 <= depth <= self.num_layers - below:
            raise ValueError(
                f"The exit depth must be from 1 to {self.num_layers - below} layers of the {self.num_layers} of "
                f"{type(self.parts.model).__name__}, got {depth!r}."
            )


def profile_layers(model: nn.Module) -> LayerProfile:
    """
    Find the layers of a causal LM, count their calls and check that states can be read out, in one short forward pass.

    Raises:
        ValueError: if the layers cannot be found, or if the model's logits are not its final norm and head on the
            states of its last layer.
    """
    parts = decoder_parts(model)
    outputs = []
    ids = torch.arange(2, device=parts.embeddings.weight.device)[None]
    handle = parts.layers[0].register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        with torch.no_grad(), record_layer_states(parts) as states:
            logits = parts.model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    parts.check_readout(states[-1], logits)
    # A looped block stands in `layers` once or several times; it fires the hooks of each
    calls = len(states) // max(parts.layers.count(layer) for layer in parts.layers)
    extra = None if torch.is_tensor(outputs[0]) else len(outputs[0]) - 1
    takes_active = all("active_tokens" in inspect.signature(layer.forward).parameters for layer in parts.layers)
    return LayerProfile(parts, calls, extra, takes_active)


def with_states(output: Any, states: torch.Tensor) -> Any:
    """What a layer returned, with other states."""
    return states if torch.is_tensor(output) else (states, *output[1:])


@contextlib.contextmanager
def replaced_layer_calls(
    parts: DecoderParts,
    run: Callable[[int, Callable[..., Any], torch.Tensor], Any],
    begin: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """
    Hand each call of a decoder layer to `run` inside the `with` block; a `RuntimeError` if that is so already.

    `run(depth, forward, states)` gives what the layer returns: `depth` is the number of the call in this forward pass
    from 1, `forward` the layer's own forward as a function of the states (and further keywords). `begin` gets the
    keyword arguments of the causal LM before each of its forward passes.
    """
    if parts.model in _IN_USE:
        raise RuntimeError(
            f"This {type(parts.model).__name__} exits early already: leave that `with` block, or end that call, "
            "before the next one begins."
        )
    depth = 0

    def start(module, args, kwargs):
        nonlocal depth
        depth = 0
        if begin is not None:
            begin(kwargs if not args else {"input_ids": args[0], **kwargs})

    def stand_in(forward):
        @wraps(forward)
        def call(hidden_states, *args, **kwargs):
            nonlocal depth
            depth += 1
            return run(depth, lambda states, **more: forward(states, *args, **kwargs, **more), hidden_states)

        return call

    with contextlib.ExitStack() as stack:
        _IN_USE.add(parts.model)
        stack.callback(_IN_USE.discard, parts.model)
        stack.callback(parts.model.register_forward_pre_hook(start, with_kwargs=True).remove)
        for layer in dict.fromkeys(parts.layers):
            stack.enter_context(shadowed(layer, "forward", stand_in(layer.forward)))
        yield


@contextlib.contextmanager
def shadowed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object has another value inside the `with` block."""
    own = vars(owner)
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before
