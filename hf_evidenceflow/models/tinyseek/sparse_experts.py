"""Routing and experts with gradients that only touch the chosen experts: the fast versions for CPU.

Pairs of token and expert are sorted by expert, so that each expert's tokens lie together for a grouped product. A gate
scales an expert's inner state, which is narrow, and not its output. Sums over a token's experts or over an expert's
tokens are embedding bags, which read the rows where they lie. A router's logits have a gradient at the chosen experts
only, so its gradient is a bag as well, and no product with all experts.

The plain versions are `TinySeekExperts.forward` and `top_k_gates` of a linear layer.

Shapes: N tokens, H hidden size, E experts, k experts of a token, S = N k pairs, I width of an expert.
"""

import torch
import torch.nn.functional as F
from transformers.utils import is_torch_greater_or_equal

from .expert_routing import top_k_gates


# Weights that are mapped from a file may lie at any address. Remove with torch 2.10
_TAKES_ANY_ADDRESS = is_torch_greater_or_equal("2.11")
CHUNK = 1024  # pairs whose rows of width H are held at a time


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
        pairs = _Pairs(indices, len(up))
        inner = tokens.new_empty(len(pairs.order), up.shape[1])  # [S, I]
        output = _weighted_rows(down_bias, indices, gates)
        sorted_gates = gates.flatten()[pairs.order, None]
        for part, experts, ends in pairs.chunks():
            rows = tokens.index_select(0, pairs.token[part])
            inner[part] = grouped_product(rows, up[experts].mT, ends)
            inner[part] += up_bias.index_select(0, pairs.expert[part])
            gated = activation(inner[part]) * sorted_gates[part]
            output.index_add_(0, pairs.token[part], grouped_product(gated, down[experts].mT, ends))
        ctx.save_for_backward(tokens, indices, gates, up, down, down_bias, inner)
        ctx.activation, ctx.pairs = activation, pairs
        return output

    @staticmethod
    def backward(ctx, output_gradient):
        tokens, indices, gates, up, down, down_bias, inner = ctx.saved_tensors
        pairs = ctx.pairs
        with torch.enable_grad():
            inner = inner.detach().requires_grad_()
            active = ctx.activation(inner)
        gate, values = gates.flatten()[pairs.order, None], active.detach()
        gated, gated_gradient = values * gate, torch.empty_like(values)  # [S, I]
        up_gradient, down_gradient = torch.empty_like(up), torch.empty_like(down)
        tokens_gradient = torch.zeros_like(tokens)
        for part, experts, ends in pairs.chunks():
            rows = output_gradient.index_select(0, pairs.token[part])
            gated_gradient[part] = grouped_product(rows, down[experts], ends)
            grouped_outer_product(rows, gated[part], ends, out=down_gradient[experts])
        (inner_gradient,) = torch.autograd.grad(active, inner, gated_gradient * gate)
        for part, experts, ends in pairs.chunks():
            rows = tokens.index_select(0, pairs.token[part])
            grouped_outer_product(inner_gradient[part], rows, ends, out=up_gradient[experts])
            rows = grouped_product(inner_gradient[part], up[experts], ends)
            tokens_gradient.index_add_(0, pairs.token[part], rows)
        gates_gradient = (output_gradient @ down_bias.T).gather(1, indices)  # [N, k]
        gates_gradient.view(-1)[pairs.order] += (gated_gradient * values).sum(-1)
        return (
            tokens_gradient,
            None,
            gates_gradient,
            up_gradient,
            pairs.sum_rows(inner_gradient),
            down_gradient,
            pairs.sum_by_expert(output_gradient, gates),
            None,
        )


class _Pairs:
    """Pairs of token and expert, sorted by expert."""

    def __init__(self, indices, num_experts):
        k = indices.shape[1]
        self.expert, self.order = indices.flatten().sort(stable=True)  # [S]: experts, and places in token order
        self.token = self.order // k
        counts = torch.bincount(self.expert, minlength=num_experts)
        ends = counts.cumsum(0)
        self._ends = ends
        self._starts = ends - counts

    def chunks(self):
        """
        Some experts at a time, so that the rows of their tokens stay in the processor's cache.

        Yields:
            `tuple`: slice of the pairs, slice of the experts, and the end of each of them in the slice, int32.
        """
        ends = self._ends.tolist()
        first = start = 0
        for expert, end in enumerate(ends):
            if end - start >= CHUNK or expert == len(ends) - 1:
                local = (self._ends[first : expert + 1] - start).to(torch.int32)
                yield slice(start, end), slice(first, expert + 1), local
                first, start = expert + 1, end

    def sum_by_expert(self, rows, weights):
        """Rows `(N, H)` of the tokens to each expert's sum over its tokens `(E, H)`, weighted by `(N, k)`."""
        return F.embedding_bag(
            self.token, rows, self._starts, mode="sum", per_sample_weights=weights.flatten()[self.order]
        )

    def sum_rows(self, rows):
        """Sorted rows `(S, I)` to each expert's sum `(E, I)`."""
        return F.embedding_bag(torch.arange(len(rows), device=rows.device), rows, self._starts, mode="sum")


def _weighted_rows(table, indices, weights):
    """Weighted sum of k rows of a table `(E, H)` for each token `(N, H)`."""
    return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)


def grouped_product(rows, weight, ends):
    """
    Rows times the matrix of their group.

    Args:
        rows (`torch.Tensor` of shape `(S, X)`):
            Rows, sorted by group.
        weight (`torch.Tensor` of shape `(E, X, Y)`):
            Matrices.
        ends (`torch.Tensor` of shape `(E,)`):
            End of each group, int32.

    Returns:
        `torch.Tensor` of shape `(S, Y)`.
    """
    if _has_kernel(rows, weight.shape[-1]):
        return F.grouped_mm(rows, weight, offs=ends)
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    output = rows.new_empty(len(rows), weight.shape[-1])
    for part, matrix, target in zip(rows.split(sizes), weight.unbind(), output.split(sizes)):
        torch.mm(part, matrix, out=target)
    return output


def grouped_outer_product(left, right, ends, out):
    """
    Sum over each group of the outer products of two rows.

    Args:
        left (`torch.Tensor` of shape `(S, X)`), right (`torch.Tensor` of shape `(S, Y)`):
            Rows, sorted by group.
        ends (`torch.Tensor` of shape `(E,)`):
            End of each group, int32.
        out (`torch.Tensor` of shape `(E, X, Y)`):
            Where the result is written; 0 for a group without rows.
    """
    if _has_kernel(left, right.shape[1]):
        out.copy_(F.grouped_mm(left.T, right, offs=ends))
        return
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    for rows, columns, target in zip(left.split(sizes), right.split(sizes), out.unbind()):
        torch.mm(rows.T, columns, out=target)


def _has_kernel(rows, width):
    """Whether torch's grouped product takes these: not fp64, and each row a multiple of 16 bytes."""
    sizes = (rows.shape[1] * rows.element_size(), width * rows.element_size())
    return _TAKES_ANY_ADDRESS and rows.dtype != torch.float64 and not any(size % 16 for size in sizes)
