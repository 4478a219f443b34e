"""LayerSkip's layer dropout: in training each row of a batch skips decoder layers, at a rate that rises with depth.

Elhoushi et al. 2024, arXiv 2404.16710, section 4.1.1, equations 1 to 4. As published, a layer computes the rows that
do not skip it alone. Where all would, it computes one of them without effect, so that no parameter is left without a
gradient, for which DDP would wait.

Hooks on the outermost module count the layer calls of a pass, hooks on the decoder layers take rows out and put them
back: gradient checkpointing repeats neither, and PEFT calls the inner model's `forward` directly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel, recursively_apply
from torch import nn

from ..early_exit.layer_calls import with_states
from ..models.decoder import decoder_parts, layer_output
from ..models.router_statistics import expert_modules


DROPOUT_CURRICULA = ("constant", "exponential")


def dropout_rate(layer: int, num_layers: int, max_rate: float, progress: float = 1.0) -> float:
    """
    The rate at which layer `layer` of `num_layers` is skipped: `max_rate * S * D` with `D = 2^(layer / (L - 1)) - 1`
    and `S = 2^progress - 1`. `progress` is t / (T - 1) in step t of T, or 1 without a curriculum.
    """
    depth = layer / (num_layers - 1) if num_layers > 1 else 1.0
    return max_rate * math.expm1(progress * math.log(2)) * math.expm1(depth * math.log(2))


class LayerDropout:
    """
    The layer dropout of one model. Made by [`layer_dropout`] or by [`LayerDropoutCallback`].

    Args:
        model (`nn.Module`):
            A causal LM; PEFT, DDP and compiled wrappers are looked through.
        max_rate (`float`, *optional*, defaults to `0.1`):
            Rate of the last layer; the first is never skipped.
        curriculum (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, for checkpoints, or `"exponential"`: from 0 at the first step, for new models.
        total_steps (`int`, *optional*):
            Optimizer steps of the run, for the curriculum.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws, which are the same in all processes and in a resumed run.
        once (`bool`, *optional*, defaults to `False`):
            Whether the hooks come off after each forward pass, until [`attach`] is called again.

    Attributes:
        skipped (`float`):
            Share of the rows that the layers of the last pass left out.

    Raises:
        ValueError: if an argument is out of range, the layers cannot be found, or the model has routed experts.
    """

    def __init__(
        self,
        model: nn.Module,
        max_rate: float = 0.1,
        curriculum: str = "constant",
        total_steps: int | None = None,
        seed: int = 0,
        once: bool = False,
    ):
        check_layer_dropout(max_rate, curriculum)
        if curriculum == "exponential" and total_steps is None:
            raise ValueError("`curriculum='exponential'` depends on the length of the run: pass `total_steps`.")
        self._outermost = extract_model_from_parallel(model, keep_torch_compile=False)
        self._parts = decoder_parts(self._outermost)
        if expert_modules(self._parts.model):
            raise ValueError(
                f"{type(self._parts.model).__name__} balances its experts over all tokens of each layer, and layer "
                "dropout takes rows out of layers. Train it without layer dropout."
            )
        self.num_layers = self._parts.model.config.get_text_config(decoder=True).num_hidden_layers
        self.skipped = 0.0
        self._max_rate, self._curriculum, self._total_steps = max_rate, curriculum, total_steps
        self._seed, self._once = seed, once
        self._handles: list = []
        self._call: int | None = None  # of the next layer; `None` outside training
        self.start_step(0)

    def start_step(self, step: int) -> None:
        """Tell the number of optimizer steps done before."""
        constant = self._curriculum == "constant"
        progress = 1.0 if constant else min(step / max(1, self._total_steps - 1), 1.0)
        layers = range(self.num_layers)
        self.rates = [dropout_rate(layer, self.num_layers, self._max_rate, progress) for layer in layers]
        self._generator = torch.Generator().manual_seed(hash((self._seed, step)) % 2**63)

    def attach(self) -> "LayerDropout":
        """Put the hooks on the model. Calling it again changes nothing."""
        if not self._handles:
            self._handles = [
                self._outermost.register_forward_pre_hook(self._before_forward),
                self._outermost.register_forward_hook(self._after_forward, always_call=True),
            ]
            for layer in self._parts.layers:
                self._handles.append(layer.register_forward_pre_hook(self._take_out, prepend=True, with_kwargs=True))
                # Before others, which are to see the states of all rows
                self._handles.append(layer.register_forward_hook(self._put_back, prepend=True))
        return self

    def remove(self) -> None:
        """Take the hooks off the model. Calling it again changes nothing."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def _before_forward(self, module, args):
        self._call = 0 if module.training and torch.is_grad_enabled() else None
        self._skipped_rows = self._rows = 0
        self._left: tuple[torch.Tensor, torch.Tensor] | None = None

    def _after_forward(self, module, args, output):
        if self._call is not None and self._rows:
            self.skipped = self._skipped_rows / self._rows
        self._call = self._left = None
        if self._once:
            self.remove()

    def _take_out(self, layer, args, kwargs):
        if self._call is None:
            return None
        states = args[0] if args else kwargs["hidden_states"]
        rate, self._call = self.rates[min(self._call, self.num_layers - 1)], self._call + 1
        kept = torch.rand(len(states), generator=self._generator) >= rate
        self._rows += len(kept)
        self._skipped_rows += len(kept) - int(kept.sum())
        if kept.all():
            return None
        effect = kept.any()
        kept[0] |= ~effect
        rows = kept.nonzero()[:, 0].to(states.device)
        self._left = (states, rows if effect else None)

        def of_rows(tensor):
            return tensor[rows.to(tensor.device)] if tensor.dim() > 1 and len(tensor) == len(states) else tensor

        return recursively_apply(of_rows, args), recursively_apply(of_rows, kwargs)

    def _put_back(self, layer, args, output):
        if self._call is None or self._left is None:
            return None
        (states, rows), self._left = self._left, None
        computed = layer_output(output)
        if rows is None:
            return with_states(output, states + 0 * computed)
        return with_states(output, states.index_copy(0, rows, computed.to(states.dtype)))


def check_layer_dropout(max_rate: float, curriculum: str) -> None:
    """Raises a ValueError if the rate or the curriculum is out of range."""
    if not 0 <= max_rate < 1:
        raise ValueError(f"The rate of layer dropout must be in [0, 1), got {max_rate}.")
    if curriculum not in DROPOUT_CURRICULA:
        raise ValueError(f"`curriculum` must be one of {', '.join(map(repr, DROPOUT_CURRICULA))}, got {curriculum!r}.")


@contextmanager
def layer_dropout(model: nn.Module, max_rate: float = 0.1, **settings) -> Iterator[LayerDropout]:
    """
    Layer dropout inside a `with` block, for training loops without a Trainer; arguments as in [`LayerDropout`]. Tell
    the steps done with its `start_step`.

    Example:

    ```python
    >>> with layer_dropout(model, 0.2) as dropout:
    ...     for step, batch in enumerate(dataloader):
    ...         dropout.start_step(step)
    ...         model(**batch).loss.backward()
    ```
    """
    dropout = LayerDropout(model, max_rate, **settings)
    try:
        yield dropout.attach()
    finally:
        dropout.remove()
