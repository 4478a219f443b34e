"""Running means of the layer terms between two logs."""

from pathlib import Path

import torch
import torch.distributed as dist

from ..atomic_write import atomic_write_json
from ..files import read_json
from .layer_terms import LayerTerms


class TermLog:
    """
    Sums of what micro-batches gave, so that a log shows means over tokens, however uneven the micro-batches.

    The sums stay on the device; nothing waits for it before [`pop`].
    """

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._weight = 0.0

    def add(self, terms: LayerTerms, model_loss: torch.Tensor, count: int, normalizer, weight: float) -> None:
        """
        Add a micro-batch of `count` valid tokens: its terms, the model's own loss without them, what both were divided
        by (`None`: `count`), and the weight of the terms' sum.
        """
        tokens = count if normalizer is None else normalizer
        values = {f"layer_{layer}": term for layer, term in terms.by_layer.items()}
        for name, value in {"model_loss": model_loss, "loss": terms.total, **values}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * tokens
            self._tokens[name] = self._tokens.get(name, 0) + count
        self._weight = weight

    def pop(self) -> dict[str, float]:
        """
        The means since the last call, over all ranks.

        Returns:
            `dict[str, float]`: `evidence_flow/model_loss` (without the terms; with the balance loss of an MoE),
            `evidence_flow/loss` (the terms' sum over layers, before the weight), `evidence_flow/layer_{i}` (over the
            steps in which it had a term), and `evidence_flow/weight`. Empty if nothing was added.
        """
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        sums = torch.stack([sums, sums.new_tensor([self._tokens[name] for name in self._sums])])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        means = {
            f"evidence_flow/{name}": value / max(tokens, 1) for name, value, tokens in zip(self._sums, *sums.tolist())
        }
        means["evidence_flow/weight"] = self._weight
        self._sums, self._tokens = {}, {}
        return means

    def save(self, path: Path) -> None:
        """Write what was added since the last [`pop`], exactly, as JSON."""
        sums = {name: value.item() for name, value in self._sums.items()}
        atomic_write_json(path, {"sums": sums, "tokens": self._tokens, "weight": self._weight})

    def load(self, path: Path, device: torch.device) -> None:
        """Read what [`save`] has written."""
        saved = read_json(path)
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.double, device=device)
            for name, value in saved["sums"].items()
        }
        self._tokens, self._weight = saved["tokens"], saved["weight"]
