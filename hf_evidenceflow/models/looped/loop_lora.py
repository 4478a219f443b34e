"""What each loop changes in the weights of a layer that all loops share: Relaxed Recursive Transformers (Bae et al.
2024, arXiv 2410.20672).

A matrix has a low-rank change (LoRA) for each loop. Gains of norms and biases, which have no rank to lower, change in
full. The names avoid PEFT's prefix `lora_`, so that an adapter on top is told from what stands here.

Shapes: R loops, r rank.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


class LoopLinear(nn.Linear):
    """A linear layer W x + c that is (W + s B_loop A_loop) x + c + c_loop in its loop, s the config's alpha / r."""

    loop = 0

    def __init__(self, plain: nn.Linear, config):
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        loops, rank = config.num_loops, config.loop_lora_r
        self.scale = 1.0 if config.loop_lora_alpha is None else config.loop_lora_alpha / rank
        self.loop_down = nn.Parameter(torch.zeros(loops, rank, plain.in_features))
        self.loop_up = nn.Parameter(torch.zeros(loops, plain.out_features, rank))
        self.register_parameter("loop_bias", None)
        if plain.bias is not None:
            self.loop_bias = nn.Parameter(torch.zeros(loops, plain.out_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        change = F.linear(F.linear(hidden_states, self.loop_down[self.loop]), self.loop_up[self.loop])
        output = super().forward(hidden_states) + self.scale * change
        return output if self.loop_bias is None else output + self.loop_bias[self.loop]


class LoopRMSNorm(nn.Module):
    """Llama's norm with gain g + g_loop; no subclass of it, in whose place a kernel may run that knows g alone."""

    loop = 0

    def __init__(self, plain: nn.Module, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones_like(plain.weight))
        self.loop_gain = nn.Parameter(torch.zeros(config.num_loops, len(plain.weight)))
        self.variance_epsilon = plain.variance_epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states = hidden_states.to(torch.float32)
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.loop_gain[self.loop]) * states.to(hidden_states.dtype)


def add_loop_lora(module: nn.Module, config) -> None:
    """Gives each linear layer and norm below a module its changes, which are 0 until trained."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, LoopLinear(child, config))
        elif child.__class__.__name__.endswith("RMSNorm"):
            setattr(module, name, LoopRMSNorm(child, config))
        else:
            add_loop_lora(child, config)


def set_loop(module: nn.Module, loop: int) -> None:
    """Lets everything below a module run with the changes of this loop, from 0."""
    for part in module.modules():
        if isinstance(part, (LoopLinear, LoopRMSNorm)):
            part.loop = loop


def init_loop_lora(module: nn.Module, std: float) -> None:
    """Fresh changes of a module, if it has any: they are 0, and train."""
    if isinstance(module, LoopLinear):
        init.normal_(module.loop_down, std=std)
        init.zeros_(module.loop_up)
        if module.loop_bias is not None:
            init.zeros_(module.loop_bias)
    elif isinstance(module, LoopRMSNorm):
        init.zeros_(module.loop_gain)


def check_loop_count(module: nn.Module, num_loops: int) -> None:
    """Raises a `ValueError` unless what is below a module has changes for so many loops, or none."""
    for part in module.modules():
        if isinstance(part, LoopLinear) and len(part.loop_up) != num_loops:
            raise ValueError(
                f"The model has LoRA of their own for {len(part.loop_up)} loops and cannot run {num_loops}. Convert "
                "the plain checkpoint again, with that number of loops."
            )
