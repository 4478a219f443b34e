"""Lets models attend over shared prompts with whatever attention they have, while others use them as ever.

`SharedPromptCache.update` returns its layer in the place of keys and values; a packed row rides along as the argument
`packed_prompts`. Each attention function that transformers hands out looks whether it got one of them, and only then
gives way: nothing of the model or its config is touched, so that other threads may generate with the same model.
"""

import functools
import threading
from contextlib import contextmanager

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .shared_prompt_cache import SharedPromptLayer


_lock = threading.Lock()
_passes = 0


def _attend(
    stock, module, query, key, value, attention_mask, scaling=None, dropout=0.0, packed_prompts=None, **kwargs
):
    """Attention function of transformers' interface; `stock` is the one that it stands in for."""
    if packed_prompts is not None:
        return packed_prompts.attend(query, key, value, module.scaling if scaling is None else scaling), None
    if isinstance(key, SharedPromptLayer):
        scaling = module.scaling if scaling is None else scaling
        return key.attend(query, scaling, dropout, kwargs.get("s_aux")), None
    return stock(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def _get_interface(attn_implementation, default):
    stock = type(ALL_ATTENTION_FUNCTIONS).get_interface(ALL_ATTENTION_FUNCTIONS, attn_implementation, default)
    return functools.partial(_attend, stock)


def allow_packed_prompts() -> None:
    """Let models attend over packed rows from now on: checkpointed layers are computed again in the backward pass."""
    global _passes
    with _lock:
        _passes += 1
        ALL_ATTENTION_FUNCTIONS.get_interface = _get_interface


@contextmanager
def shared_prompt_passes():
    """Let models attend over a [`SharedPromptCache`] inside the block; several threads may be in such a block."""
    global _passes
    allow_packed_prompts()
    try:
        yield
    finally:
        with _lock:
            _passes -= 1
            if not _passes:
                del ALL_ATTENTION_FUNCTIONS.get_interface
