"""Exit at one fixed depth: the model without its upper layers, for `generate` and for forward passes."""

import contextlib
from collections.abc import Iterator

from torch import nn

from .layer_calls import profile_layers, replaced_layer_calls


@contextlib.contextmanager
def exit_at(model: nn.Module, depth: int) -> Iterator[None]:
    """
    The model leaves after `depth` layers inside the `with` block; its own final norm and head read the states out.

    The layers above are not run and get no entries in the KV cache: do not go on with such a cache at another depth.

    Raises:
        ValueError: if the depth is not from 1 to L, where the model is itself, or it cannot be read out early.
        RuntimeError: if the model exits early already.

    Example:

    ```python
    >>> with exit_at(model, depth=4):
    ...     output = model.generate(**inputs, max_new_tokens=32)
    ```
    """
    profile = profile_layers(model)
    profile.check_depth(depth)

    def run(call, forward, states):
        return forward(states) if call <= depth else profile.output(states)

    with replaced_layer_calls(profile.parts, run):
        yield
