"""The bottleneck adapter after one linear layer."""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN

from .houlsby_config import HoulsbyConfig


class HoulsbyLayer(nn.Module, BaseTunerLayer):
    """
    A linear layer and what follows it: `y + up(act(down(y)))` of its output y.

    With d outputs and a bottleneck of m it has `2 d m + m + d` parameters.

    Source: Houlsby et al. 2019 (1902.00751), section 2.1 and figure 2.
    """

    # All of what peft saves, moves, freezes and deletes with an adapter; `houlsby_` is how it finds them
    adapter_layer_names = ("houlsby_down", "houlsby_up")
    other_param_names = ("houlsby_dropout", "houlsby_activation")

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: HoulsbyConfig):
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.houlsby_down, self.houlsby_up = nn.ModuleDict(), nn.ModuleDict()
        self.houlsby_dropout, self.houlsby_activation = nn.ModuleDict(), nn.ModuleDict()
        self.merged_adapters = []  # read by peft; always empty
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: HoulsbyConfig) -> None:
        """Add an adapter under its name."""
        width = config.width(self.out_features)
        down, up = nn.Linear(self.out_features, width), nn.Linear(width, self.out_features)
        for projection, std in ((down, config.init_std), (up, config.up_init_std)):
            nn.init.zeros_(projection.bias)
            if std == 0:
                nn.init.zeros_(projection.weight)
            else:
                nn.init.trunc_normal_(projection.weight, std=std, a=-2 * std, b=2 * std)
        self.houlsby_down[adapter_name], self.houlsby_up[adapter_name] = down, up
        self.houlsby_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.houlsby_activation[adapter_name] = ACT2FN[config.non_linearity]
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible: between the projections is a non-linearity, so that no weight of the layer does the same."""
        refuse_merge()

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """From `[..., in_features]` to `[..., out_features]`, in the dtype of the layer's output."""
        y = self.base_layer(x, *args, **kwargs)  # [..., d]
        for name in () if self.disable_adapters else self.active_adapters:
            if name in self.houlsby_down:
                down, up = self.houlsby_down[name], self.houlsby_up[name]
                hidden = self.houlsby_dropout[name](self._cast_input_dtype(y, down.weight.dtype))
                hidden = self.houlsby_activation[name](down(hidden))  # [..., m]
                y = y + up(hidden).to(y.dtype)
        return y

    def __repr__(self) -> str:
        return "houlsby." + super().__repr__()


def refuse_merge() -> None:
    """Raise the error of a merge."""
    raise ValueError(
        "A bottleneck adapter cannot be merged into the layer before it: it is not linear. Keep the adapter, or take "
        "`unload()` for the base model without it."
    )
