"""How a mixture of experts uses its experts: load, its entropy, experts without tokens, balance.

Works on any model whose experts follow transformers' interface: a module `experts` with `num_experts`, called with
tokens, the indices of their experts and the gates. A looped block counts as a layer for each of its calls.

Shapes: B rows, T positions, N tokens, E experts, k experts of a token.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .decoder import base_causal_lm


@dataclass(frozen=True)
class LayerLoad:
    """
    How one layer used its experts.

    Attributes:
        load (`torch.Tensor` of shape `(E,)`):
            Share of the tokens that went to each expert; sums to k.
        tokens (`int`):
            Tokens counted.
        balance (`float`):
            `E/k * sum_e f_e P_e - 1` with f the load and P the mean gate; 0 is even.
    """

    load: torch.Tensor
    tokens: int
    balance: float

    @property
    def max_load(self) -> float:
        """Load of the busiest expert, as a multiple of the mean; 1 is even."""
        return (self.load.max() / self.load.mean()).item() if self.load.any() else float("nan")

    @property
    def entropy(self) -> float:
        """Entropy of the load as a share of the largest possible; 1 is even, 0 is one expert."""
        if len(self.load) == 1:
            return 1.0
        shares = self.load / self.load.sum()
        return (torch.special.entr(shares).sum() / torch.log(torch.tensor(float(len(shares))))).item()

    @property
    def dead(self) -> float:
        """Share of the experts that got no token."""
        return (self.load == 0).double().mean().item()


def expert_modules(model: nn.Module) -> list[nn.Module]:
    """The routed experts of a model, in the order of its modules; empty if it has none."""
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "experts" and isinstance(getattr(module, "num_experts", None), int)
    ]


class RouterStatistics:
    """
    Counts what goes to which expert in the forward passes inside a `with` block, or between [`attach`] and [`remove`].

    Padding (zeros of a two-dimensional `attention_mask`) is left out, as are passes that gradient checkpointing
    repeats. With `once` one forward pass ends an [`attach`].

    Raises:
        `ValueError`: if the model has no experts.

    Example:

    ```python
    >>> with RouterStatistics(model) as statistics:
    ...     model(**inputs)
    >>> statistics.summary()["router_dead_experts"]
    ```
    """

    names = (
        *("router_max_load", "router_load_entropy", "router_effective_experts", "router_dead_experts"),
        "router_balance",
    )

    def __init__(self, model: nn.Module, once: bool = False):
        self._model = base_causal_lm(model)
        self._experts = expert_modules(self._model)
        if not self._experts:
            raise ValueError(
                f"{type(self._model).__name__} has no module `experts` with `num_experts`: there is nothing to "
                "count. Leave the statistics out."
            )
        self._once = once
        self._handles = []
        self._call: int | None = None
        self._mask = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was counted."""
        self._used, self._gates, self._tokens, self._k = [], [], 0, 1

    def counts(self) -> dict:
        """What was counted, as JSON can hold it exactly."""
        used, gates = ([tensor.tolist() for tensor in tensors] for tensors in (self._used, self._gates))
        return {"used": used, "gates": gates, "tokens": self._tokens, "experts_per_token": self._k}

    def load_counts(self, counts: dict, device: torch.device) -> None:
        """Goes on from the [`counts`] of a model of the same layers."""
        self._used, self._gates = (
            [torch.tensor(layer, dtype=torch.double, device=device) for layer in counts[name]]
            for name in ("used", "gates")
        )
        self._tokens, self._k = counts["tokens"], counts["experts_per_token"]

    def attach(self) -> None:
        """Puts the hooks on the model; nothing if they are there."""
        if not self._handles:
            self._call = None
            self._handles = [self._model.register_forward_pre_hook(self._begin, with_kwargs=True)]
            self._handles += [module.register_forward_pre_hook(self._count) for module in self._experts]
            self._handles.append(self._model.register_forward_hook(self._end, always_call=True))

    def remove(self) -> None:
        """Takes the hooks away; nothing if they are gone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self):
        self.attach()
        return self

    def __exit__(self, *exception):
        self.remove()

    def layers(self) -> list[LayerLoad]:
        """What was counted, in the order of the layer calls; a `RuntimeError` if no forward pass was."""
        if not self._tokens:
            raise RuntimeError("No token was counted yet: run the model inside the `with` block first.")
        return [
            LayerLoad(
                (used / self._tokens).cpu(),
                self._tokens,
                (len(used) / self._k * (used * gates).sum() / self._tokens**2).item() - 1,
            )
            for used, gates in zip(self._used, self._gates)
        ]

    def summary(self) -> dict[str, float]:
        """
        Means over the layers: `router_max_load`, `router_load_entropy`, `router_dead_experts` and `router_balance`,
        see [`LayerLoad`], and `router_effective_experts`: as many evenly used experts would have that entropy.
        """
        rows = [
            (layer.max_load, layer.entropy, len(layer.load) ** layer.entropy, layer.dead, layer.balance)
            for layer in self.layers()
        ]
        return {name: sum(values) / len(values) for name, values in zip(self.names, zip(*rows))}

    def pop(self) -> dict[str, float]:
        """The [`summary`] since the last call, empty if nothing was counted."""
        result = self.summary() if self._tokens else {}
        self.reset()
        return result

    def _begin(self, module, args, kwargs):
        self._call, mask = 0, kwargs.get("attention_mask")
        self._mask = None
        if mask is not None and mask.dim() == 2:
            inputs = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
            self._mask = (mask[:, -inputs.shape[1] :] != 0).flatten()

    @torch.no_grad()
    def _count(self, module, args):
        if self._call is None:
            return
        _, indices, gates = args[:3]  # [N, k]
        if self._mask is not None:
            indices, gates = indices[self._mask], gates[self._mask]
        if self._call == len(self._used):
            zeros = torch.zeros(module.num_experts, dtype=torch.double, device=indices.device)
            self._used.append(zeros)
            self._gates.append(zeros.clone())
        flat = indices.flatten()
        self._used[self._call].scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.double))
        self._gates[self._call].scatter_add_(0, flat, gates.flatten().double())
        if self._call == 0:
            self._tokens += len(indices)
            self._k = indices.shape[1]
        self._call += 1

    def _end(self, *call):
        self._call = None
        if self._once:
            self.remove()
