"""Turns layers of their own into fewer that loop: the conversion of Relaxed Recursive Transformers (Bae et al. 2024,
arXiv 2410.20672). Not part of what a model needs to run.

Call n of the new model stands for layer n of the old one. What calls share begins as the average of their layers, and
the LoRA of a loop as the truncated singular value decomposition of what its layer differs by. The paper's other ways
to begin (`stepwise`, `lower`) are not here.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .loop_lora import LoopLinear, LoopRMSNorm
from .looped_layer import LoopedLlamaDecoderLayer


def relax_loops(model, rank: int, alpha: float | None = None) -> None:
    """Gives a looped model, in place, a fresh LoRA for each loop: it computes what it did, to the bit."""
    plain = model.model.layers.state_dict()
    _rebuild_layers(model, loop_lora_r=rank, loop_lora_alpha=alpha)
    model.model.layers.load_state_dict(plain, strict=False)


@torch.no_grad()
def share_layers(
    model, num_loops: int, blocks: Sequence[Sequence[int]] | None = None, rank: int = 0, alpha: float | None = None
) -> None:
    """
    Turns a [`LoopedLlamaForCausalLM`] of one loop, in place, into one of `num_loops` loops with fewer layers. With a
    full `rank` it computes what it did, up to rounding.

    Args:
        num_loops (`int`):
            Loops R, at least 2.
        blocks (`Sequence[Sequence[int]]`, *optional*):
            Ranges [first layer, the one behind the last] of the old layers, each turned into an R-th as many that loop
            in its place. If not given, all layers.
        rank, alpha (`int` and `float`, *optional*):
            As `loop_lora_r` and `loop_lora_alpha` of [`LoopedLlamaConfig`]; of rank 0 the loops are alike.

    Raises:
        `ValueError`: if the model loops already, a block is no multiple of `num_loops`, or the weights are quantized.
    """
    config, old = model.config, model.model.layers
    if config.num_loops != 1 or num_loops < 2:
        raise ValueError(
            f"Sharing turns a model of 1 loop into one of at least 2, got {config.num_loops} and {num_loops}."
        )
    removed, shared = 0, []
    for start, end in [(0, len(old))] if blocks is None else blocks:
        size, rest = divmod(end - start, num_loops)
        if rest:
            raise ValueError(
                f"Layers {start} to {end - 1} cannot be shared by {num_loops} loops: {end - start} is no multiple of "
                "that. Give another `loop_block`."
            )
        shared.append([start - removed, start - removed + size])
        removed += end - start - size
    fields = {"num_unique_layers": len(old) - removed, "loop_blocks": shared}
    _rebuild_layers(model, **fields, num_loops=num_loops, loop_lora_r=rank, loop_lora_alpha=alpha)
    sources: list[list[nn.Module]] = [[] for _ in model.model.layers]
    for call, layer in zip(config.layer_calls(), old, strict=True):
        sources[call.layer].append(layer)
    for layer, its in zip(model.model.layers, sources):
        _fill(layer, its)


def _rebuild_layers(model, **fields):
    """New layers, for the config with these fields."""
    config, body = model.config, model.model
    if vars(config).get("quantization_config"):
        raise ValueError("Layers of quantized weights cannot be changed: load the checkpoint without quantization.")
    for name, value in fields.items():
        setattr(config, name, value)
    config.set_num_loops(config.num_loops)
    layers = [LoopedLlamaDecoderLayer(config, index) for index in range(config.num_unique_layers)]
    body.layers = nn.ModuleList(layers).to(model.device, model.dtype).train(model.training)
    body.layers.apply(model._init_weights)
    body.set_num_loops(config.num_loops)


def _fill(layer, sources):
    """The layer's weights from those that its loops had, loop by loop."""
    parts = [dict(source.named_modules()) for source in sources]
    for name, module in layer.named_modules():
        for kind, parameter in list(module.named_parameters(recurse=False)):
            if kind in ("weight", "bias"):
                values = torch.stack([getattr(each[name], kind) for each in parts])
                values = values.to(torch.promote_types(values.dtype, torch.float32))
                parameter.copy_(values.mean(0))
                _differ(module, kind, values - parameter)


def _differ(module, kind, changes):
    """Sets what each loop changes, `(R, ...)`, as far as the module can."""
    if isinstance(module, LoopRMSNorm):
        module.loop_gain.copy_(changes)
    elif isinstance(module, LoopLinear) and kind == "bias":
        module.loop_bias.copy_(changes)
    elif isinstance(module, LoopLinear):
        left, sizes, right = torch.linalg.svd(changes, full_matrices=False)
        rank = min(module.loop_up.shape[-1], sizes.shape[-1])
        module.loop_up[..., :rank] = left[..., :rank] * sizes[:, None, :rank] / module.scale
        module.loop_down[:, :rank] = right[:, :rank]
