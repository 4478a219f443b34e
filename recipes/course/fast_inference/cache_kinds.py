"""The caches that stock `generate` takes: memory, time a token, and whether the tokens stay the same."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, QuantizedCache, StaticCache
from transformers.cache_utils import Cache

from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.rollouts.generation_settings import own_generation_config


@dataclass
class CacheResult:
    """
    One kind of cache.

    Args:
        tokens (`torch.LongTensor` of shape `(new,)`):
            What was generated.
        megabytes (`float`):
            Memory of the cache at the end.
        milliseconds (`list[float]`):
            Time of each pass that gives one token.
    """

    tokens: torch.LongTensor
    megabytes: float
    milliseconds: list[float]


def cache_kinds(model: PreTrainedModel, max_length: int) -> dict[str, Callable[[], Cache | None]]:
    """
    The caches that can be used here.

    Args:
        model (`PreTrainedModel`):
            Model that they are for.
        max_length (`int`):
            Length that a static cache is laid out for.

    Returns:
        `dict[str, Callable[[], Cache | None]]`: what makes one, by name; `None` for no cache. Four-bit caches are
        there only if their package is installed.
    """
    kinds = {
        "none": lambda: None,
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=max_length),
        "8-bit (fp8)": lambda: QuantizedCache("fp8", model.config),
    }
    for package, backend in (("optimum.quanto", "quanto"), ("hqq", "hqq")):
        if _is_installed(package):
            axis = 0 if backend == "quanto" else 1
            kinds[f"4-bit ({backend})"] = lambda backend=backend, axis=axis: QuantizedCache(
                backend, model.config, nbits=4, axis_key=axis, axis_value=axis
            )
    return kinds


def cache_bytes(cache: Cache) -> int:
    """
    Memory of a cache's keys and values, quantised ones with their scales.

    Args:
        cache (`Cache`):
            A cache in use.

    Returns:
        `int`: bytes.
    """

    def size(value):
        if isinstance(value, torch.Tensor):
            return value.nbytes
        return sum(map(size, value)) if isinstance(value, tuple | list) else 0

    return sum(size(value) for layer in cache.layers for value in vars(layer).values())


@torch.no_grad()
def decode_with_cache(
    model: PreTrainedModel, prompt: torch.LongTensor, make_cache: Callable[[], Cache | None], max_new_tokens: int
) -> CacheResult:
    """
    Decode greedily, and time each pass.

    Args:
        model (`PreTrainedModel`):
            A causal LM.
        prompt (`torch.LongTensor` of shape `(1, T)`):
            Prompt.
        make_cache (`Callable[[], Cache | None]`):
            Makes the cache, or `None` for decoding without one.
        max_new_tokens (`int`):
            Tokens to generate; an EOS token does not end them.

    Returns:
        [`CacheResult`]: tokens, memory and times.
    """
    cache, milliseconds, last = make_cache(), [], None

    def clock(module, args, output):
        nonlocal last
        now = time.perf_counter()
        if last is not None:
            milliseconds.append(1000 * (now - last))
        last = now

    config = own_generation_config(
        model, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=None, use_cache=cache is not None
    )
    handle = model.register_forward_hook(clock)
    try:
        sequence = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            **{CACHE: cache},
        )
    finally:
        handle.remove()
    size = 0 if cache is None else cache_bytes(cache)
    return CacheResult(sequence[0, prompt.shape[1] :], size / 1e6, milliseconds)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
