"""Block attention residuals: sublayers read a softmax over the sums of earlier blocks of layers, not all of it added.

Kimi's AttnRes, with the deviation of `accumulation`; with `"normed_attention"` Inkling 2's, whose values are normed.
The memory is b_0 (the embedding), b_1, .., and the sum so far of the block that a sublayer is in: their sum is what
Llama's residual stream would be.
"""

from torch import nn

from .configuration_crosslayer import CrossLayerLlamaConfig
from .term_combination import TermCombination


class BlockConnection(TermCombination, nn.Module):
    """
    The connection of one sublayer to blocks.

    Args:
        earlier (`int`): blocks that are complete before the sublayer, and the embedding.
        begins (`bool`, *optional*): whether its output begins a block.
    """

    def __init__(self, config: CrossLayerLlamaConfig, earlier: int, begins: bool = False):
        super().__init__()
        self.begins = begins
        self.make_combination(config, earlier)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values of the variant's own parameters."""
        self.init_combination(config)

    def read(self, memory: tuple) -> tuple:
        """Input `(B, T, H)` of the sublayer; `write` needs nothing of it."""
        *earlier, own = memory
        gated = self.cross_layer_gate is not None
        return self.combine(own, tuple(earlier), plain=self.plain(memory) if gated else None)[0], ()

    def write(self, memory: tuple, weights: tuple, output) -> tuple:
        """The memory behind the sublayer, from its output `(B, T, H)`."""
        return (*memory, output) if self.begins else (*memory[:-1], memory[-1] + output)

    def plain(self, memory: tuple):
        """Llama's residual stream `(B, T, H)`."""
        total = memory[0]
        for block in memory[1:]:
            total = total + block
        return total
