"""The state of a token from what produced it: formulas of the sources, with gradients.

Shapes: V vocabulary, H hidden size, K averaged tokens.
"""

import weakref

import torch
import torch.nn.functional as F

from .thinking_residual import soft_state


# A token below this probability is cut from the weighted embedding; a row that would lose more than this is not cut
TOKEN_CUT = 1e-4
MAX_TAIL = 0.1
_RIDGE = 1e-4  # of the mean eigenvalue of U^T U
_known = weakref.WeakKeyDictionary()  # embedding module -> (state of the weights, alignment and norm)


def sparse_soft_state(probs: torch.Tensor, embedding: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """
    [`soft_state`] from the likely tokens, with the mean embedding in place of each unlikely one (p < 1e-4).

    Rows whose unlikely tokens hold more than 0.1 of the probability are computed exactly. In the others the sum is off
    by at most that tail times the largest distance of an embedding from the mean. Recorded is the state that was used,
    so training is exact. For CPUs: the choice reads values on the
    host, and on an accelerator the product is cheap.

    Args:
        probs (`torch.Tensor` of shape `(n, V)`), embedding (`torch.Tensor` of shape `(V, H)`): as in [`soft_state`].
        mean (`torch.Tensor` of shape `(H,)`): mean of the embeddings.
    """
    likely = probs >= TOKEN_CUT
    tail = 1 - (probs * likely).sum(-1)
    flat = tail > MAX_TAIL
    if flat.all():
        return soft_state(probs, embedding)
    if flat.any():
        likely &= ~flat[:, None]
    rows, tokens = likely.nonzero(as_tuple=True)
    weighted = F.embedding_bag(
        tokens,
        embedding,
        torch.searchsorted(rows, torch.arange(len(probs))),
        mode="sum",
        per_sample_weights=probs[rows, tokens].to(embedding.dtype),
    )
    state = weighted + tail[:, None].to(mean.dtype) * mean
    if flat.any():
        state[flat] = soft_state(probs[flat], embedding)
    return state


def average_embeddings(ids: torch.Tensor, weights: torch.Tensor, embedding: torch.Tensor, unit: bool) -> torch.Tensor:
    """
    Mean embeddings `(..., H)` of tokens with ids and weights `(..., K)`, divided by the norm of the weights if `unit`.
    """
    weights = weights.to(embedding.dtype)
    states = (weights[..., None, :] @ embedding[ids]).squeeze(-2)
    return states / weights.norm(dim=-1, keepdim=True).clamp(min=1e-9) if unit else states


def alignment(head: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """
    The linear map `W` `(H, H)`, fp32, that takes rows of the output head nearest to those of the input embeddings:
    `argmin_W ||U W - E||^2 + ridge ||W||^2 = (U^T U + ridge)^-1 U^T E`.

    Source: LaTER (arXiv 2605.07315).

    Args:
        head, embedding (`torch.Tensor` of shape `(V, H)`): `U` and `E`; more rows of one of them are left out.
    """
    rows = min(len(head), len(embedding))
    head, embedding = head[:rows].float(), embedding[:rows].float()
    gram = head.T @ head
    ridge = _RIDGE * gram.diagonal().mean()
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), device=gram.device), head.T @ embedding)


def aligned_state(hidden: torch.Tensor, matrix: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Hidden states `(..., H)` under [`alignment`], at the mean norm of the embeddings."""
    return F.normalize(hidden.to(matrix) @ matrix, dim=-1) * norm


def kept_alignment(
    module: torch.nn.Module, head: torch.Tensor, embedding: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`alignment`] and the mean norm of the embeddings, kept with their module as long as the weights stay."""
    # A tensor's own counter of changes stands still under fused optimizers
    state = [(weight.dtype, weight.device, *_fingerprint(weight)) for weight in (head, embedding)]
    if _known.get(module, (None,))[0] != state:
        with torch.inference_mode(False), torch.no_grad():  # a later backward pass may need it
            _known[module] = state, (alignment(head, embedding), embedding.float().norm(dim=-1).mean())
    return _known[module][1]


def _fingerprint(weight):
    weight, dtype = weight.detach(), torch.promote_types(weight.dtype, torch.float32)
    return weight.sum(dtype=dtype).item(), torch.linalg.vector_norm(weight, dtype=dtype).item()


class StateSource:
    """
    States from scores and hidden states.

    Args:
        method ([`ThinkingMethod`]): whose source it is.
        embedding (`torch.Tensor` of shape `(V, H)`, *optional*): input embeddings, where states are made with them.
        aligned (`tuple`, *optional*): matrix and norm of [`aligned_state`].
        top_k (`int`, *optional*): tokens that are averaged; `None`: all.
        temperature (`float`, *optional*, defaults to `1`): of their weights.
        fusion (`float`, *optional*, defaults to `0.5`): weight of the aligned state in `"fusion"`.
        approximate (`bool`, *optional*, defaults to `False`): average all tokens by [`sparse_soft_state`].
    """

    def __init__(
        self, method, embedding=None, aligned=None, top_k=None, temperature=1.0, fusion=0.5, approximate=False
    ):
        self.method, self.embedding, self.aligned = method, embedding, aligned
        self.top_k, self.temperature, self.fusion = top_k, temperature, fusion
        self.mean = embedding.mean(0) if approximate and embedding is not None else None
        self.unit = method.source == "unit_mean_embedding"

    @property
    def reads_scores(self) -> bool:
        """Whether the state depends on the scores."""
        return self.method.reads_distribution or self.method.source == "fusion"

    def __call__(self, scores, hidden: torch.Tensor, probs: torch.Tensor | None = None) -> torch.Tensor:
        """
        States `(..., H)` of the tokens that are drawn next.

        Args:
            scores (`torch.Tensor` of shape `(..., V)`): processed scores; may be `None` where nothing reads them.
            hidden (`torch.Tensor` of shape `(..., H)`): last hidden states behind them.
            probs (`torch.Tensor` of shape `(..., V)`, *optional*): the softmax of the scores, if it is there.
        """
        source = self.method.source
        if source in (None, "hidden", "projection"):
            return hidden
        if source == "aligned":
            return aligned_state(hidden, *self.aligned).to(hidden.dtype)
        mean = self._mean(scores, probs)
        if source != "fusion":
            return mean
        return torch.lerp(mean, aligned_state(hidden, *self.aligned).to(mean.dtype), self.fusion)

    def likeliest(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and ids `(..., K)` of the tokens that are averaged."""
        return scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)

    def weigh(self, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Mean embeddings `(..., H)` of tokens with scores and ids `(..., K)`."""
        return average_embeddings(ids, (scores / self.temperature).softmax(-1), self.embedding, self.unit)

    def _mean(self, scores, probs):
        if self.top_k is not None:
            return self.weigh(*self.likeliest(scores))
        if probs is None or self.temperature != 1:
            probs = (scores if self.temperature == 1 else scores / self.temperature).softmax(-1)
        if self.mean is None:
            state = soft_state(probs, self.embedding)
        else:
            state = sparse_soft_state(probs, self.embedding, self.mean)
        return state / probs.norm(dim=-1, keepdim=True).to(state.dtype) if self.unit else state
