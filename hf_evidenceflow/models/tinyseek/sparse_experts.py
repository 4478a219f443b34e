"""Routing and experts with gradients that only touch the chosen experts: the fast versions for CPU.

Pairs of token and expert are sorted by expert and padded a little, so that batched products take some experts at a
time: on all threads, for which the product of one expert is too small. A gate scales an expert's inner state, which is
narrow, and not its output. A router's logits have a gradient at the chosen experts only, so its gradient is a sum of
rows that are read where they lie (an embedding bag), and no product with all experts.

The plain versions are `TinySeekExperts.forward` and `top_k_gates` of a linear layer.

Shapes: N tokens, H hidden size, E experts, k experts of a token, S = N k pairs, P rows with padding, I width of
an expert.
"""

import torch
import torch.nn.functional as F

from .expert_routing import top_k_gates


CHUNK = 1024  # rows of width H that are held at a time
WASTE, SLACK = 1.6, 64  # padded rows for each one in use, and for all


class SparseRouting(torch.autograd.Function):
    """
    `SparseRouting.apply(tokens, weight, noise_weight, k)`: logits, gates and indices as `top_k_gates(logits, k)` gives
    them, with logits `tokens weight^T + noise * softplus(tokens noise_weight^T)`; `noise_weight` may be `None`.

    Tokens `(N, H)` and weights `(E, H)` have one dtype, fp32 or fp64. The logits `(N, E)` carry no gradient.
    """

    @staticmethod
    def forward(ctx, tokens, weight, noise_weight, k):
        logits = F.linear(tokens, weight)
        slope = None
        if noise_weight is None:
            gates, indices = top_k_gates(logits, k)
        else:
            deviation = F.linear(tokens, noise_weight)
            noise = torch.randn_like(logits)
            logits = torch.addcmul(logits, noise, F.softplus(deviation))
            gates, indices = top_k_gates(logits, k)
            slope = noise.gather(1, indices) * deviation.gather(1, indices).sigmoid()  # [N, k]
        ctx.mark_non_differentiable(logits, indices)
        ctx.save_for_backward(tokens, weight, noise_weight, gates, indices, slope)
        return logits, gates, indices

    @staticmethod
    def backward(ctx, _, gates_gradient, __):
        tokens, weight, noise_weight, gates, indices, slope = ctx.saved_tensors
        gradient = gates * (gates_gradient - (gates * gates_gradient).sum(-1, keepdim=True))  # [N, k]
        pairs = _Pairs(indices, len(weight))
        tokens_gradient = _weighted_rows(weight, indices, gradient)
        weight_gradient = pairs.sum_by_expert(tokens, gradient)
        noise_gradient = None
        if noise_weight is not None:
            gradient = gradient * slope
            tokens_gradient += _weighted_rows(noise_weight, indices, gradient)
            noise_gradient = pairs.sum_by_expert(tokens, gradient)
        return tokens_gradient, weight_gradient, noise_gradient, None


class SparseExperts(torch.autograd.Function):
    """
    `SparseExperts.apply(tokens, indices, gates, up, up_bias, down, down_bias, activation)`: the gated sum of each
    token's experts `(N, H)`.

    Tokens `(N, H)`, gates `(N, k)`, and the experts' weights `(E, I, H)`, `(E, I)`, `(E, H, I)`, `(E, H)` have one
    floating dtype; indices `(N, k)` are integers.
    """

    @staticmethod
    def forward(ctx, tokens, indices, gates, up, up_bias, down, down_bias, activation):
        pairs = PaddedPairs(indices, len(up))
        gate = pairs.pad(gates)[:, None]  # [P, 1], 0 in padding
        inner = tokens.new_empty(len(gate), up.shape[1])  # [P, I]
        output = _weighted_rows(down_bias, indices, gates)
        for rows, experts in pairs.chunks:
            own, part, its_gate = pairs.rows_of(tokens, inner, gate, rows, experts)
            torch.baddbmm(up_bias[experts, None], own, up[experts].mT, out=part)
            gated = activation(part) * its_gate
            output.index_add_(0, pairs.token[rows], torch.bmm(gated, down[experts].mT).flatten(0, 1))
        ctx.save_for_backward(tokens, indices, up, down, down_bias, inner, gate)
        ctx.activation, ctx.pairs = activation, pairs
        return output

    @staticmethod
    def backward(ctx, output_gradient):
        tokens, indices, up, down, down_bias, inner, gate = ctx.saved_tensors
        pairs = ctx.pairs
        with torch.enable_grad():
            inner = inner.detach().requires_grad_()
            active = ctx.activation(inner)
        values = active.detach()
        gated, gated_gradient = values * gate, torch.empty_like(values)  # [P, I]
        gate_gradient = torch.empty_like(gate)
        gradients = [torch.empty_like(weight) for weight in (up, up[..., 0], down, down_bias)]
        up_gradient, up_bias_gradient, down_gradient, down_bias_gradient = gradients
        for rows, experts in pairs.chunks:
            own, part, its_gate = pairs.rows_of(output_gradient, gated_gradient, gate, rows, experts)
            torch.bmm(own, down[experts], out=part)
            torch.bmm(own.mT, gated[rows].view_as(part), out=down_gradient[experts])
            torch.bmm(its_gate.mT, own, out=down_bias_gradient[experts, None])
            torch.bmm(own, down_bias[experts, :, None], out=gate_gradient[rows].view_as(its_gate))
        (inner_gradient,) = torch.autograd.grad(active, inner, gated_gradient * gate)
        tokens_gradient = torch.zeros_like(tokens)
        for rows, experts in pairs.chunks:
            own, part, _ = pairs.rows_of(tokens, inner_gradient, gate, rows, experts)
            torch.bmm(part.mT, own, out=up_gradient[experts])
            torch.sum(part, 1, out=up_bias_gradient[experts])
            tokens_gradient.index_add_(0, pairs.token[rows], torch.bmm(part, up[experts]).flatten(0, 1))
        gate_gradient += (gated_gradient * values).sum(-1, keepdim=True)
        gates_gradient = gate_gradient[pairs.place].view_as(indices)
        return tokens_gradient, None, gates_gradient, *gradients, None


class _Pairs:
    """Pairs of token and expert, sorted by expert."""

    def __init__(self, indices, num_experts):
        self.expert, self.order = indices.flatten().sort(stable=True)  # [S]: experts, and places in token order
        self.token = self.order // indices.shape[1]
        self.counts = torch.bincount(self.expert, minlength=num_experts)
        self.starts = self.counts.cumsum(0) - self.counts

    def sum_by_expert(self, rows, weights):
        """Rows `(N, H)` of the tokens to each expert's sum over its tokens `(E, H)`, weighted by `(N, k)`."""
        return F.embedding_bag(
            self.token, rows, self.starts, mode="sum", per_sample_weights=weights.flatten()[self.order]
        )


class PaddedPairs:
    """
    Pairs sorted by expert and, for batched products, cut into chunks of neighboring experts that are padded to as many
    rows as the chunk's fullest expert has.

    Attributes:
        chunks (`list[tuple[slice, slice]]`):
            Rows and experts of each chunk; all have about the same size, so that its rows stay in the cache.
        token (`torch.Tensor` of shape `(P,)`):
            Token of each of the P rows; in padding any.
        place (`torch.Tensor` of shape `(S,)`):
            Row of each pair, in token order.
    """

    def __init__(self, indices, num_experts):
        pairs = _Pairs(indices, num_experts)
        self.chunks, widths = [], []
        start = 0
        for experts, width in padded_chunks(pairs.counts.tolist()):
            count = experts.stop - experts.start
            self.chunks.append((slice(start, start + count * width), experts))
            widths += [width] * count
            start += count * width
        widths = torch.tensor(widths, device=indices.device)
        shift = widths.cumsum(0) - widths - pairs.starts  # [E]
        rows = torch.arange(len(pairs.order), device=indices.device) + shift[pairs.expert]  # [S]
        self.place = torch.empty_like(rows).scatter_(0, pairs.order, rows)
        # Neighbors in padding differ, since adding to one row of many is slow
        self.token = torch.arange(start, device=indices.device) % len(indices)
        self.token[rows] = pairs.token

    def pad(self, values):
        """A value of each pair `(N, k)` to one of each row `(P,)`, 0 in padding."""
        return values.new_zeros(len(self.token)).scatter_(0, self.place, values.flatten())

    def rows_of(self, tokens, inner, gate, rows, experts):
        """Of a chunk of e experts, c rows each: tokens `(e, c, H)`, inner states `(e, c, I)`, gates `(e, c, 1)`."""
        count = experts.stop - experts.start
        parts = tokens.index_select(0, self.token[rows]), inner[rows], gate[rows]
        return [part.view(count, len(part) // count, part.shape[1]) for part in parts]


def padded_chunks(counts):
    """
    Cuts the experts with these numbers of rows into chunks.

    Yields:
        `tuple[slice, int]`: experts of a chunk, and the rows that each is padded to. No chunk of several experts has
        more than `CHUNK` rows, or more than `WASTE` times those that are used, and `SLACK`.
    """
    first = used = width = 0
    for expert, count in enumerate(counts):
        padded = (expert + 1 - first) * max(width, count)
        if expert > first and padded > min(CHUNK, WASTE * (used + count) + SLACK):
            yield slice(first, expert), width
            first, used, width = expert, 0, 0
        used, width = used + count, max(width, count)
    yield slice(first, len(counts)), width


def _weighted_rows(table, indices, weights):
    """Weighted sum of k rows of a table `(E, H)` for each token `(N, H)`."""
    return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)
