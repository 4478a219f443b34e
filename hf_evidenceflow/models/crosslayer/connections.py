"""What connects the sublayers of a layer in the place of residual additions, by the config."""

import torch
from torch import nn

from .block_attention import BlockConnection
from .configuration_crosslayer import CrossLayerLlamaConfig
from .hyper_connections import ConstrainedHyperConnection, HyperConnection, StreamReadout


CONNECTED = ("streams", "blocks")


def add_connections(layer: nn.Module, config: CrossLayerLlamaConfig, layer_idx: int) -> None:
    """Gives a layer `attention_connection`, `mlp_connection`, and as the last one `last_connection` (or `None`)."""
    is_last = layer_idx == config.num_hidden_layers - 1
    layer.last_connection = None
    if config.cross_layer_stream == "blocks":
        size = config.layers_per_block
        begins = layer_idx % size == 0
        done = layer_idx // size + 1
        layer.attention_connection = BlockConnection(config, done - begins, begins)
        layer.mlp_connection = BlockConnection(config, done)
        if is_last:
            layer.last_connection = BlockConnection(config, done)
        return
    constrained = config.cross_layer_combination == "sinkhorn"
    kind = ConstrainedHyperConnection if constrained else HyperConnection
    layer.attention_connection = kind(config, 2 * layer_idx)
    layer.mlp_connection = kind(config, 2 * layer_idx + 1)
    if is_last and constrained:
        layer.last_connection = StreamReadout(config)


def first_memory(config: CrossLayerLlamaConfig, embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the first layer finds in the memory, from embeddings `(B, T, H)`."""
    if config.cross_layer_stream == "streams":
        return (embeds.unsqueeze(-2).expand(-1, -1, config.num_residual_streams, -1),)
    return (embeds,) if config.cross_layer_stream in ("states", "updates", "blocks") else ()
