"""The layer calls of a forward pass in which each token has its own depth.

A token that left keeps its state: it is the input of all further layers, whose keys and values are computed from it
(the state propagation of CALM, Schuster et al. 2022, arXiv 2207.07061, section 3.2), and their output for this token
is replaced by it. So every later token finds keys and values at every layer. Where no token of the pass is left, the
layers only write their keys and values; layers that take `active_tokens` skip their MLP for each token that left.

Shapes: B rows, T positions, H hidden size, L layers.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache

from ..models.decoder import layer_output
from .cache_writes import write_keys_and_values, writes_can_stand_alone
from .criteria import EarlyExitConfig, confidence, relative_change
from .layer_calls import LayerProfile, with_states


class AdaptiveDepth:
    """
    Decides which tokens leave after which layer, and runs the layers for the others.

    Attributes:
        exit_depths (`list[int]`):
            Depths at which a token may leave.
        depths (`torch.Tensor` of shape `(B, T)` or `None`):
            Depth of each token of the current forward pass, from 1 to L; `None` where all run at full depth.
    """

    def __init__(self, profile: LayerProfile, config: EarlyExitConfig):
        self.exit_depths = config.exit_depths(profile.num_layers)
        self.depths: torch.Tensor | None = None
        self._profile = profile
        self._config = config
        self._cache: Cache | None = None
        self._decided: torch.Tensor | None = None
        self._exited: torch.Tensor | None = None
        self._any_exited = self._all_exited = False

    def start(self, decided: torch.Tensor | None, cache: Cache | None = None) -> None:
        """
        Begin a forward pass that writes to the cache. `decided` `[B, T]`, int64, are depths that are fixed beforehand;
        0 where the criterion decides. `None`: all at full depth.
        """
        self._any_exited = self._all_exited = False
        self._decided = decided
        self._cache = cache
        if decided is None:
            self.depths = self._exited = None
        else:
            self.depths = torch.full_like(decided, self._profile.num_layers)
            self._exited = torch.zeros_like(decided, dtype=torch.bool)

    def run(self, depth: int, forward, states: torch.Tensor) -> Any:
        """One layer call, for [`replaced_layer_calls`]."""
        if self._decided is None:
            return forward(states)
        if self._all_exited:
            self._only_write(forward, states)
            return self._profile.output(states)
        more = {}
        if self._any_exited and self._profile.takes_active_tokens:
            more["active_tokens"] = ~self._exited
        output = forward(states, **more)
        after = layer_output(output)
        if self._any_exited:
            after = torch.where(self._exited[..., None], states, after)
        if depth < self._profile.num_layers:
            self._decide(depth, states, after)
        return with_states(output, after)

    def _only_write(self, forward, states):
        if self._cache is None:
            return
        config = self._profile.parts.model.config.get_text_config(decoder=True)
        if writes_can_stand_alone(self._cache, config):
            write_keys_and_values(forward, states, self._cache)
        else:
            forward(states)

    def _decide(self, depth, before, after):
        leaving = self._decided == depth  # [B, T]
        if depth in self.exit_depths:
            open_ = (self._decided == 0) & ~self._exited
            before, after = before[open_], after[open_]  # [N, H]
            if len(after):
                leaving[open_] = self._passes(before, after)
        self.depths[leaving] = depth
        self._exited |= leaving
        self._any_exited = bool(self._exited.any())
        self._all_exited = self._any_exited and bool(self._exited.all())

    def _passes(self, before, after):
        if self._config.criterion == "confidence":
            return confidence(after, self._profile.parts.readout) >= self._config.threshold
        return relative_change(before, after) <= self._config.threshold
