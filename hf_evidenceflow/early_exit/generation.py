"""Early exit inside stock `generate`, and the same in one parallel pass over finished sequences.

Shapes: B rows, P prompt positions, C generated tokens, T = P + C positions, V vocabulary, L layers.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache
from transformers.generation import GenerationMode

from ..models.thinking.cache_argument import CACHE
from .adaptive_depth import AdaptiveDepth
from .criteria import EarlyExitConfig
from .layer_calls import profile_layers, replaced_layer_calls, shadowed


class EarlyExits:
    """
    The exits of the last `generate` call. Made by [`early_exit`].

    Attributes:
        num_layers (`int`):
            Number of layers L.
        depths (`torch.Tensor` of shape `(B, C)`):
            Layers that were run for each generated token, int64: L for the first one, which comes from the prompt's
            pass, and 0 behind the end of a sequence.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.depths = torch.zeros(0, 0, dtype=torch.long)

    @property
    def average_depth(self) -> float:
        """Mean number of layers over the generated tokens of all rows, the first ones included."""
        generated = self.depths[self.depths > 0]
        if not len(generated):
            raise RuntimeError("No token was generated yet: call `generate` inside the `with` block first.")
        return generated.double().mean().item()


@contextlib.contextmanager
def early_exit(model: nn.Module, config: EarlyExitConfig | None = None, **settings) -> Iterator[EarlyExits]:
    """
    Let each generated token leave the layers as soon as it may, inside stock `generate`.

    The prompt runs at full depth. Rows of a batch leave each on its own; what rows have left is computed along until
    all have, and only then time is saved (TinySeek's experts are left out for each row that left). The KV cache is
    right at all layers (see [`AdaptiveDepth`]), and rows give what they give alone. Forward passes outside `generate`
    are as ever. Greedy search and sampling, with a [`~transformers.DynamicCache`] or `use_cache=False` (which
    recomputes all positions each time and saves nothing).

    Pass an [`EarlyExitConfig`] or its fields. The model is as before behind the block, also after an exception.

    Yields:
        [`EarlyExits`]: the exits of the last `generate` call.

    Raises:
        ValueError: if both or unknown settings are given, one is out of range, the model cannot be read out early, or
            `generate` is asked for beams, an assistant, attentions, chunked prefill or another kind of cache.
        RuntimeError: if the model exits early already.

    Source: CALM, Schuster et al. 2022, arXiv 2207.07061.

    Example:

    ```python
    >>> with early_exit(model, criterion="confidence", threshold=0.9) as exits:
    ...     output = model.generate(**inputs, max_new_tokens=32)
    >>> exits.average_depth
    ```
    """
    if config is not None and settings:
        raise ValueError(f"Pass either an `EarlyExitConfig` or its fields, got both: {', '.join(settings)}.")
    config = EarlyExitConfig(**settings) if config is None else config
    profile = profile_layers(model)
    exits = EarlyExits(profile.num_layers)
    steps = _GenerationSteps(AdaptiveDepth(profile, config), exits)
    base = profile.parts.model
    stock_generate = base.generate

    def generate(*args, **kwargs):
        steps.open(_checked_settings(base, args, kwargs))
        try:
            return stock_generate(*args, **kwargs)
        finally:
            steps.close()

    with replaced_layer_calls(profile.parts, steps.run, steps.begin), shadowed(base, "generate", generate):
        yield exits


class _GenerationSteps:
    """Tells the forward passes of one `generate` call apart: first the prompt, then a token each."""

    def __init__(self, adaptive: AdaptiveDepth, exits: EarlyExits):
        self._adaptive = adaptive
        self._exits = exits
        self._is_open = False

    def open(self, eos_token_ids: list[int]) -> None:
        self._is_open = True
        self._eos = eos_token_ids
        self._prompt_length = None
        self._columns: list[torch.Tensor] = []
        self._written: list[torch.Tensor] = []

    def begin(self, inputs: dict) -> None:
        ids, cache = inputs.get("input_ids"), inputs.get(CACHE)
        tokens = inputs["inputs_embeds"][..., 0] if ids is None else ids  # [B, T]
        if not self._is_open:
            self._adaptive.start(None)
        elif self._prompt_length is None:
            if cache is not None and not isinstance(cache, DynamicCache):
                raise ValueError(
                    f"Early exit needs a `DynamicCache` or `use_cache=False`, got {type(cache).__name__}."
                )
            self._prompt_length = tokens.shape[1]
            self._finished = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            self._add_column(torch.full((len(tokens),), self._exits.num_layers, device=tokens.device))
            self._adaptive.start(None)
        else:
            if ids is not None and self._eos:
                self._finished |= torch.isin(ids[:, -1], torch.tensor(self._eos, device=ids.device))
            # What a finished row computes is thrown away: it should not keep the others waiting
            last = torch.where(self._finished, self._adaptive.exit_depths[0], 0)[:, None]  # [B, 1]
            self._adaptive.start(last if cache is not None else self._all_positions(last), cache)

    def _all_positions(self, last):
        prompt = last.new_full((len(last), self._prompt_length), self._exits.num_layers)
        return torch.cat([prompt, *(column[:, None] for column in self._columns[1:]), last], dim=1)

    def run(self, depth, forward, states):
        output = self._adaptive.run(depth, forward, states)
        if depth == self._exits.num_layers and self._adaptive.depths is not None:
            self._add_column(self._adaptive.depths[:, -1])
        return output

    def _add_column(self, depths):
        self._columns.append(depths)
        self._written.append(torch.where(self._finished, 0, depths))

    def close(self) -> None:
        self._is_open = False
        depths = torch.stack(self._written, dim=1).cpu() if self._written else torch.zeros(0, 0, dtype=torch.long)
        # On GPUs `generate` may go a step too far before it sees that all rows are finished
        self._exits.depths = depths[:, (depths > 0).any(0)]
        self._columns, self._written = [], []


def _checked_settings(model, args, kwargs):
    """The end-of-text ids of a `generate` call, after a look at what it asks for."""
    others = dict(kwargs)
    given = others.pop("generation_config", args[1] if len(args) > 1 else None)
    # As `generate` prepares it, with what it takes from the model's own
    config, _ = model._prepare_generation_config(given, **others)
    mode = config.get_generation_mode(kwargs.get("assistant_model"))
    implementation = config.cache_implementation
    refused = {
        f"generation mode `{mode.value}`": mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
        "`output_attentions`": config.output_attentions,
        "`prefill_chunk_size`": config.prefill_chunk_size,
        f"`cache_implementation={implementation!r}`": implementation not in (None, "dynamic"),
        "`custom_generate`": kwargs.get("custom_generate") is not None,
    }
    if found := [name for name, asked in refused.items() if asked]:
        raise ValueError(
            f"Early exit works in greedy search and sampling with a dynamic cache; it cannot be used with "
            f"{', '.join(found)}. Leave that out, or generate outside the `early_exit` block."
        )
    eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


class SimulatedExits(NamedTuple):
    """The logits `[B, T, V]` of each position at its exit, and the number of layers run for it, int64 `[B, T]`."""

    logits: torch.Tensor
    depths: torch.Tensor


@torch.no_grad()
def simulate_early_exit(
    model: nn.Module,
    input_ids: torch.Tensor,
    config: EarlyExitConfig,
    attention_mask: torch.Tensor | None = None,
    prompt_length: int = 1,
) -> SimulatedExits:
    """
    Early exit over whole sequences in one pass: the logits and depths that generating these tokens would have given.

    All layers are computed and the states of tokens that left are held: for measuring, not for speed.

    `input_ids` `[B, T]` are prompts with their continuations. The depth is L at padding, and at the first
    `prompt_length` positions, padding included. Errors as in [`early_exit`].

    Example:

    ```python
    >>> exits = simulate_early_exit(model, input_ids, EarlyExitConfig(threshold=0.9))
    >>> exits.depths[:, 1:].double().mean()
    ```
    """
    if not 0 <= prompt_length <= input_ids.shape[1]:
        raise ValueError(f"`prompt_length` must be from 0 to T = {input_ids.shape[1]}, got {prompt_length}.")
    profile = profile_layers(model)
    adaptive = AdaptiveDepth(profile, config)
    decided = torch.zeros_like(input_ids)
    decided[:, :prompt_length] = profile.num_layers
    inputs = {"input_ids": input_ids, "use_cache": False}
    if attention_mask is not None:
        decided[attention_mask == 0] = profile.num_layers
        inputs["attention_mask"] = attention_mask
        if "position_ids" in inspect.signature(profile.parts.model.forward).parameters:
            # As `generate` counts them behind left padding
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    with replaced_layer_calls(profile.parts, adaptive.run, lambda _: adaptive.start(decided)):
        logits = profile.parts.model(**inputs).logits
    return SimulatedExits(logits, adaptive.depths)
