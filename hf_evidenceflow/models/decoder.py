"""What a causal LM is made of: its decoder layers, the states after them, and the readout of a state as logits.

Works on any Hugging Face causal LM, bare or inside a PEFT model, without a list of families: the layers are the
modules that the model class keeps whole on one device (`_no_split_modules`), or as many as the config counts.

Shapes: B rows, T positions, H hidden size, V vocabulary, L layers; a looped block counts each of its loops as a layer.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate.utils import is_peft_model
from torch import nn


_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")


@dataclass(frozen=True)
class DecoderParts:
    """
    The parts of a causal LM that layer-wise tools need. Made by [`decoder_parts`].

    Attributes:
        model (`PreTrainedModel`):
            The causal LM itself, without a PEFT wrapper.
        layers, layers_name (`list[nn.Module]`, `str`):
            Decoder layers, first to last (a looped block stands here once), and the name of their `ModuleList` in
            `model`.
        embeddings, head (`nn.Module`):
            Input and output embeddings.
        final_norm (`nn.Module` or `None`):
            Norm between the last layer and the head; `None` in a post-norm model.
    """

    model: nn.Module
    layers: list[nn.Module]
    layers_name: str
    embeddings: nn.Module
    final_norm: nn.Module | None
    head: nn.Module

    def normalize(self, states: torch.Tensor) -> torch.Tensor:
        """States through the final norm, shape and dtype kept; the states themselves in a model without one."""
        return states if self.final_norm is None else self.final_norm(states)

    def readout(self, states: torch.Tensor) -> torch.Tensor:
        """
        The logits `(..., V)`, in the dtype of the head, that the model would give if `states` `(..., H)`, before the
        final norm, were those of its last layer (the logit lens).
        """
        logits = self.head(self.normalize(states).to(self.head.weight.dtype))
        config = self.model.config.get_text_config()
        if scaling := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2 and later
            logits = cap * torch.tanh(logits / cap)
        return logits

    def check_width(self) -> None:
        """
        Raises a `ValueError` if embeddings and layers differ in width, as in OPT-350m: states can then neither be
        compared with embeddings nor read out.
        """
        own, width = self.model.config.get_text_config(decoder=True).hidden_size, self.embeddings.embedding_dim
        if width != own:
            raise ValueError(
                f"{type(self.model).__name__} has layers of width {own} and embeddings of width {width}: its states "
                "can neither be compared with embeddings nor read out by the head. Take a model of one width."
            )

    def check_readout(self, last_states: torch.Tensor, logits: torch.Tensor) -> None:
        """
        Compares the readout of the last layer's states `(B, T, H)` with the model's logits `(B, T', V)` at the last
        position.

        Raises:
            ValueError: if they differ, because the model does more to its states or logits than is known here, or has
                embeddings of another width.
        """
        self.check_width()
        with torch.no_grad():
            own = logits[-1, -1].float()
            read = self.readout(last_states[-1, -1].detach()).float()
        # One row rounds otherwise than a batch; bf16 carries three digits
        tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
        if own.shape != read.shape or not torch.allclose(own, read, rtol=tolerance, atol=tolerance):
            gap = (own - read).abs().max().item() if own.shape == read.shape else float("nan")
            raise ValueError(
                f"{type(self.model).__name__} does more between its last layer and its logits than its final norm "
                f"({'none' if self.final_norm is None else type(self.final_norm).__name__}) and head: the logits "
                f"differ by {gap:.3g}. Objectives and tools that read layers out through the head cannot be used with "
                "it; `mse`, `normalized_mse`, `zero` and `shuffled` can."
            )


def base_causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


def decoder_parts(model: nn.Module, layers: str | None = None) -> DecoderParts:
    """
    Find the parts of a causal LM.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal LM.
        layers (`str`, *optional*):
            Name of the `ModuleList` of decoder layers, such as `"model.layers"`. If `None`, it is looked for.

    Raises:
        ValueError: if the layers, the embeddings or the head cannot be found.

    Example:

    ```python
    >>> parts = decoder_parts(AutoModelForCausalLM.from_pretrained("gpt2"))
    >>> parts.layers_name, len(parts.layers)
    ('transformer.h', 12)
    ```
    """
    base = base_causal_lm(model)
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList) and module}
    name = _find_layers(base, lists) if layers is None else layers
    if name not in lists:
        raise ValueError(
            f"The decoder layers of {type(base).__name__} could not be found"
            + ("" if layers is None else f" under {layers!r}")
            + f". Name their ModuleList with `layer_modules`; the model has: {', '.join(lists) or 'none'}."
        )
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if embeddings is None or head is None:
        missing = "input embeddings" if embeddings is None else "output head"
        raise ValueError(
            f"{type(base).__name__} has no {missing}: layer-wise supervision needs a causal LM, loaded with "
            "`AutoModelForCausalLM`."
        )
    owner = base.get_submodule(name.rpartition(".")[0])
    norms = [child for child_name, child in owner.named_children() if child_name in _FINAL_NORMS]
    unique = list(dict.fromkeys(lists[name]))
    return DecoderParts(base, unique, name, embeddings, norms[0] if norms else None, head)


def _find_layers(base, lists):
    whole = set(base._no_split_modules or ())
    text_config = base.config.get_text_config(decoder=True)
    tests = (
        lambda modules: all(type(module).__name__ in whole for module in modules),
        lambda modules: len(modules) == text_config.num_hidden_layers,
    )
    for test in tests:
        found = [name for name, modules in lists.items() if test(modules)]
        outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        if len(outer) == 1:
            return outer[0]
    return None


@contextlib.contextmanager
def record_layer_states(parts: DecoderParts) -> Iterator[list[torch.Tensor]]:
    """
    Record the states after each decoder layer in the forward passes inside the `with` block.

    Yields:
        `list[torch.Tensor]`: one tensor `(B, T, H)` per layer and forward pass, in the order of the calls, before the
        final norm; clear it between passes.

    Example:

    ```python
    >>> parts = decoder_parts(model)
    >>> with torch.no_grad(), record_layer_states(parts) as states:
    ...     logits = model(input_ids).logits
    >>> torch.equal(parts.readout(states[-1]), logits)
    True
    ```
    """
    states = []
    handles = [
        layer.register_forward_hook(lambda *call: states.append(layer_output(call[-1]))) for layer in parts.layers
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def layer_output(output) -> torch.Tensor:
    """The states in what a decoder layer returned: the output itself, or its first part."""
    return output if torch.is_tensor(output) else output[0]
