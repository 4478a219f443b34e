"""Noise on thinking states: what sampling draws besides the tokens, with its density.

Sources: Soft Tokens (arXiv 2509.19170), equation 5, the Gaussian; SofT-GRPO (arXiv 2511.06411), section 3, the Gumbel.

Shapes: n rows at hand, K averaged tokens, H hidden size, V vocabulary.
"""

import torch

from .row_draws import RowDraws
from .thinking_density import gaussian_log_density, gumbel_log_density
from .thinking_sources import StateSource


_STREAM = 1  # of [`RowDraws`]


class StateNoise:
    """
    Draws the states of a call.

    Args:
        source ([`StateSource`]): the states without noise.
        draws ([`RowDraws`]): of the call's rows.
        scale (scalar `torch.Tensor`): standard deviation of each entry under `"gaussian"`.
        dropout (`float`): share of entries that `"dropout"` takes away.
    """

    def __init__(self, source: StateSource, draws: RowDraws, scale: torch.Tensor, dropout: float):
        self.source, self.draws, self.scale, self.dropout = source, draws, scale, dropout

    def __call__(self, scores, hidden, probs, rows, steps) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        States `(n, H)` of rows `(n,)` at steps `(n,)`, with the arguments of [`StateSource`], and what they need in
        the records: `log_density` `(n,)`, and under `"gumbel"` `drawn` and `drawn_ids` `(n, K)`.
        """
        if self.source.method.noise == "gumbel":
            return self._gumbel(scores, rows, steps)
        mean = self.source(scores, hidden, probs)
        if self.source.method.noise == "dropout":
            kept = self.draws.uniform(rows, torch.zeros_like(steps), mean.shape[-1], _STREAM) >= self.dropout
            return mean * kept / (1 - self.dropout), {}
        noise = self.draws.normal(rows, steps, mean.shape[-1], _STREAM)
        states = (mean.float() + self.scale * noise).to(mean.dtype)
        return states, {"log_density": gaussian_log_density(mean, states, self.scale).float()}

    def _gumbel(self, scores, rows, steps):
        likeliest, ids = self.source.likeliest(scores.float())
        drawn = likeliest.log_softmax(-1) + self.draws.gumbel(rows, steps, ids.shape[-1], _STREAM)
        density = gumbel_log_density(likeliest, drawn)
        return self.source.weigh(drawn, ids), {"log_density": density, "drawn": drawn, "drawn_ids": ids}
