"""Config of the bottleneck adapter, as peft saves it in `adapter_config.json`."""

from dataclasses import dataclass

from peft import PeftConfig
from transformers.activations import ACT2FN

from .registration import OurPeftType, is_registered


@dataclass
class HoulsbyConfig(PeftConfig):
    """
    Config of [`HoulsbyModel`].

    Args:
        bottleneck_size (`int`, *optional*):
            Width m of the bottleneck, at least 1; `None`: the layer's width over `reduction`.
        reduction (`int`, *optional*, defaults to `16`):
            The layer's width over the bottleneck's, rounded down, where `bottleneck_size` is not given.
        non_linearity (`str`, *optional*, defaults to `"gelu"`):
            Activation in the bottleneck, by its name in transformers.
        dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of the adapter's input, in [0, 1).
        init_std (`float`, *optional*, defaults to `0.01`):
            Standard deviation of the first projection at the start, cut off at two of them.
        up_init_std (`float`, *optional*, defaults to `0.0`):
            The same of the second one; 0: the tuned model starts as the base model exactly. The paper's is 0.01.
        target_modules (`list[str]` or `str`, *optional*):
            Linear layers that an adapter comes after: names or ends of names, or one regular expression; `None`: the
            projection that ends the attention and the one that ends the feed-forward part, for the known model types.
        exclude_modules (`list[str]` or `str`, *optional*):
            Layers to leave out of them.
        modules_to_save (`list[str]`, *optional*):
            Modules to train and save whole, such as the layer norms, which the paper trains too.

    Raises:
        ValueError: If a value is out of its range.
        RuntimeError: Before [`~peft.houlsby.register_houlsby`] was called.
    """

    bottleneck_size: int | None = None
    reduction: int = 16
    non_linearity: str = "gelu"
    dropout: float = 0.0
    init_std: float = 0.01
    up_init_std: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = OurPeftType.HOULSBY
        if not is_registered(self.peft_type):
            raise RuntimeError("PEFT does not know bottleneck adapters yet. Call `register_houlsby()` first.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.bottleneck_size is not None and self.bottleneck_size < 1:
            raise ValueError(f"`bottleneck_size` must be at least 1, got {self.bottleneck_size}.")
        if self.reduction < 1:
            raise ValueError(f"`reduction` must be at least 1, got {self.reduction}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        for name in ("init_std", "up_init_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.init_std == self.up_init_std == 0:
            raise ValueError(
                "`init_std` and `up_init_std` are both 0, at which neither projection has a gradient. Set one of them."
            )
        if self.non_linearity not in ACT2FN:
            raise ValueError(f"`non_linearity` must be one of {sorted(ACT2FN)}, got {self.non_linearity!r}.")

    def width(self, features: int) -> int:
        """Width of the bottleneck after a layer of so many outputs, at least 1."""
        return self.bottleneck_size or max(1, features // self.reduction)
