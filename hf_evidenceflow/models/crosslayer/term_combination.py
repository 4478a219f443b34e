"""The part of a cross-layer module that combines its own term with those of earlier layers."""

import torch
from torch import nn
from transformers import initialization as init

from .accumulation import apply_gate, combine_running, combine_terms, initial_weights
from .configuration_crosslayer import CrossLayerLlamaConfig


_WEIGHTS = {
    "mlp": "mlp_residual_weights",
    "attention": "attn_residual_weights",
    "values": "value_residual_weights",
    "states": "state_residual_weights",
    "updates": "state_residual_weights",
    "blocks": "state_residual_weights",
}


def float32_parameter(*shape):
    # With bf16's 8 bits, small steps of a scalar near 1 are rounded away
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


class TermCombination:
    """Mixin of the module that combines its own term with those of earlier layers: holds weights and gate."""

    def make_combination(self, config: CrossLayerLlamaConfig, earlier: int) -> None:
        """Adds the parameters for so many earlier terms; their values come from [`init_combination`]."""
        stream, self.combination = config.cross_layer_stream, config.cross_layer_combination
        self.is_running = config.keeps_sums
        self.num_terms = 1 + (min(earlier, 1) if config.cross_layer_sources == "first" else earlier)
        self.weights_name, size = None, self.num_terms
        if earlier and self.combination in ("softmax", "linear"):
            self.weights_name = _WEIGHTS[stream]
        elif earlier and self.combination in ("depth_attention", "normed_attention"):
            self.weights_name, size = "depth_query", config.hidden_size
        if self.weights_name:
            self.register_parameter(self.weights_name, float32_parameter(size))
        self.cross_layer_gate = float32_parameter() if earlier and config.cross_layer_gate else None

    def init_combination(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values; no random numbers are drawn, so a seed gives all variants the same linear layers."""
        if self.cross_layer_gate is not None:
            init.zeros_(self.cross_layer_gate)
        if self.weights_name == "depth_query":
            init.zeros_(self.depth_query)
        elif self.weights_name:
            stream = config.cross_layer_stream
            identity = stream == "states" or (config.identity_init and not config.cross_layer_gate)
            weights = initial_weights(self.combination, self.num_terms, identity)
            if stream in ("updates", "blocks"):  # their sum is Llama's state
                weights = torch.ones(self.num_terms)
            init.copy_(getattr(self, self.weights_name), weights)

    def combine(
        self, own: torch.Tensor, earlier: tuple, plain: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Combines this layer's term `own` with `earlier` ones, first to last, or their running sum, all `(..., D)`.
        `plain` is what Llama has in the place of the combination, if not `own`.

        Returns the combination, and what is handed to later layers: `own`, or the running sum.
        """
        if not earlier:
            return own, own
        if self.is_running:
            handed = earlier[0] + own
            combined = combine_running(handed, self.num_terms, self.combination)
        else:
            handed = own
            weights = getattr(self, self.weights_name) if self.weights_name else None
            combined = combine_terms((*earlier, own), self.combination, weights)
        return apply_gate(own if plain is None else plain, combined, self.cross_layer_gate), handed
