"""Config of a Llama whose norms, positions and MLP can be exchanged, one switch each."""

import difflib

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .number_checks import check_numbers


SWITCHES = {
    "norm_position": ("pre", "post"),
    "norm_type": ("rmsnorm", "layernorm", "none"),
    "position_embedding": ("rope", "nope", "sinusoidal", "learned"),
    "mlp_type": ("swiglu", "silu", "gelu", "relu"),
}


@strict
class AblationLlamaConfig(LlamaConfig):
    r"""
    Configuration of an [`AblationLlamaModel`]. Without any switch the model is Llama, to the bit.

    Args:
        norm_position (`str`, *optional*, defaults to `"pre"`):
            `"pre"`: x + f(norm(x)), with a norm behind the last layer. `"post"`: norm(x + f(x)), as in Vaswani et al.
            2017 (arXiv 1706.03762); each layer ends with a norm, so that there is none behind the last.
        norm_type (`str`, *optional*, defaults to `"rmsnorm"`):
            `"rmsnorm"`, `"layernorm"` (with bias) or `"none"`.
        position_embedding (`str`, *optional*, defaults to `"rope"`):
            `"rope"`; `"nope"`, none at all; `"sinusoidal"` or `"learned"`, added to the token embeddings. With
            `"sinusoidal"` these are first multiplied by sqrt(hidden_size), as in Vaswani et al. (section 3.4); at
            Llama's initialisation the table would drown them otherwise.
        mlp_type (`str`, *optional*, defaults to `"swiglu"`):
            `"swiglu"`, gated; `"silu"`, `"gelu"` or `"relu"`, without a gate.
        ungated_intermediate_size (`int`, *optional*):
            Width of an MLP without gate. By default 3/2 of `intermediate_size`, rounded: the parameters of the gated
            one.
        **kwargs:
            Fields of [`~transformers.LlamaConfig`].

    Raises:
        `ValueError`: if a switch has no such position.

    Example:

    ```python
    >>> from hf_evidenceflow import AblationLlamaConfig

    >>> AblationLlamaConfig.vanilla(hidden_size=256, num_hidden_layers=4).position_embedding
    'sinusoidal'
    ```
    """

    model_type = "ablation_llama"

    norm_position: str = "pre"
    norm_type: str = "rmsnorm"
    position_embedding: str = "rope"
    mlp_type: str = "swiglu"
    ungated_intermediate_size: int | None = None

    def __post_init__(self, **kwargs):
        own = (*SWITCHES, "ungated_intermediate_size")
        for key in kwargs:
            if near := difflib.get_close_matches(key, own, n=1, cutoff=0.85):
                raise ValueError(f"`{key}` is no field of AblationLlamaConfig; did you mean `{near[0]}`?")
        # TRL reads it of each model outside transformers; remove when it does not
        self.auto_map = kwargs.pop("auto_map", {})
        super().__post_init__(**kwargs)
        self.check_switches()

    def to_dict(self):
        output = super().to_dict()
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

    @classmethod
    def vanilla(cls, **kwargs):
        """The transformer of 2017: post-norm, LayerNorm, ReLU, sinusoidal positions; `kwargs` are further fields."""
        switches = {"norm_position": "post", "norm_type": "layernorm", "position_embedding": "sinusoidal"}
        return cls(**{**switches, "mlp_type": "relu", **kwargs})

    def check_switches(self) -> None:
        """Raise a `ValueError` for a switch without such a position; the model calls it too."""
        check_numbers(self)
        for name, choices in SWITCHES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )
        if self.position_embedding == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"Sinusoidal positions need an even `hidden_size`, got {self.hidden_size}.")
        if self.ungated_intermediate_size is not None and self.ungated_intermediate_size < 1:
            raise ValueError(
                f"`ungated_intermediate_size` must be at least 1 or None, got {self.ungated_intermediate_size}."
            )

    @property
    def mlp_width(self) -> int:
        """Width of the MLP."""
        if self.mlp_type == "swiglu":
            return self.intermediate_size
        return self.ungated_intermediate_size or round(1.5 * self.intermediate_size)
