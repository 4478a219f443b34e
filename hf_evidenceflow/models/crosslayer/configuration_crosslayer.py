"""Configuration of the cross-layer Llama: what a layer takes from earlier ones, and how it is combined."""

import difflib
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .number_checks import check_numbers


CROSSLAYER_LLAMA = "crosslayer_llama"
PART_DEFAULTS = {
    "cross_layer_stream": "none",
    "cross_layer_terms": "stored",
    "cross_layer_combination": "sum",
    "cross_layer_sources": "all",
    "score_scaling": "fixed",
    "score_head_exponent": 0.5,
    "score_depth_exponent": 0,
}

_PART_CHOICES = {
    "cross_layer_stream": ("none", "mlp", "attention", "scores", "values", "states", "updates", "streams", "blocks"),
    "cross_layer_terms": ("stored", "recomputed"),
    "cross_layer_combination": (
        *("sum", "mean", "softmax", "linear", "depth_attention", "normed_attention", "dynamic", "sinkhorn"),
    ),
    "cross_layer_sources": ("all", "first"),
    "score_scaling": ("fixed", "exponents", "source", "source_exponents"),
}


def _preset(stream, combination="sum", **parts):
    return {"cross_layer_stream": stream, "cross_layer_combination": combination, **parts}


def _scores(scaling="fixed", head=0.5, depth=0):
    return _preset("scores", score_scaling=scaling, score_head_exponent=head, score_depth_exponent=depth)


_AGAIN = {"cross_layer_terms": "recomputed"}
VARIANTS = {
    "base": {},
    "v2m1": _preset("mlp", "mean"),
    "v2m2": _preset("attention", "mean"),
    "v2m3": _preset("mlp", "softmax"),
    "v3m1": _preset("mlp", **_AGAIN),
    "v3m2": _preset("attention", **_AGAIN),
    "v3m3_1": _preset("mlp", "mean", **_AGAIN),
    "v3m3_2": _preset("mlp", "softmax", **_AGAIN),
    "v3m4_1": _preset("attention", "mean", **_AGAIN),
    "v3m4_2": _preset("attention", "softmax", **_AGAIN),
    "v4m1": _scores(),
    "v4m2": _scores(depth=0.5),
    "v4m3": _scores(depth=1),
    "v4m4": _scores("exponents", depth=1),
    "v4m5": _scores("source"),
    "v4m6": _scores("source_exponents"),
    "v4m7": _scores("source", head=0),
    "value_residual": _preset("values", "linear", cross_layer_sources="first"),
    "denseformer": _preset("states", "linear"),
    "depth_attention": _preset("updates", "depth_attention"),
    "hyper_connections": _preset("streams", "dynamic"),
    "mhc": _preset("streams", "sinkhorn"),
    "block_attention": _preset("blocks", "depth_attention"),
    "block_attention_normed": _preset("blocks", "normed_attention"),
}


@strict
class CrossLayerLlamaConfig(LlamaConfig):
    r"""
    Configuration of a [`CrossLayerLlamaModel`]. A variant is a preset of seven independent parts, which can also be
    given one by one. Without any of them the model is Llama. Below, l is the 0-based layer, m = l + 1, d_k a head's
    size.

    Args:
        variant (`str`, *optional*):
            Name of a preset (`base`, `v2m1`, ..., `v4m7`, `value_residual`, `denseformer`, `depth_attention`,
            `hyper_connections`, `mhc`, `block_attention`, `block_attention_normed`), or `"custom"`: the parts below
            decide. If not given, `"custom"` where a part is given, else `"base"`.
        cross_layer_stream (`str`, *optional*, defaults to `"none"`):
            What a layer takes from earlier ones as well: `"mlp"` or `"attention"`, the output of that sublayer;
            `"scores"`, attention scores before the mask; `"values"`, attention's values; `"states"`, what layers
            return (and the embedding); `"updates"`, what layers add to the states (and the embedding); `"streams"`,
            several residual streams; `"blocks"`, sums of what blocks of layers add (and the embedding), which each
            sublayer reads.
        cross_layer_terms (`str`, *optional*, defaults to `"stored"`):
            `"stored"`: as the earlier layers computed them; `"recomputed"` (for `"mlp"` and `"attention"`): earlier
            layers run again on the input of this layer, with their own attention probabilities.
        cross_layer_combination (`str`, *optional*, defaults to `"sum"`):
            How the n terms t_i, own one last, are combined: `"sum"`; `"mean"`; `"softmax"` of learned weights;
            `"linear"`, free learned weights; `"depth_attention"`, for each token n softmax_i(q . RMSNorm(t_i)) with a
            learned q; `"normed_attention"`, softmax_i(q . RMSNorm(t_i) / sqrt(H)) with RMSNorm(t_i) as values (neither
            for `"values"`). For `"streams"`: free learned weights, `"linear"`; with a part that depends on the token,
            `"dynamic"`; such weights under constraints, `"sinkhorn"`.
        cross_layer_sources (`str`, *optional*, defaults to `"all"`):
            `"all"` earlier terms, or the `"first"` only (stored ones).
        score_scaling (`str`, *optional*, defaults to `"fixed"`):
            The scores are sum_i Q_i K_i^T / (a_i d_k^p m^q) with a = 1 and p, q below. What is learned: `"fixed"`,
            nothing; `"exponents"`, p and q of each layer; `"source"`, log a_i of each pair of layers;
            `"source_exponents"`, log a_i and p_i.
        score_head_exponent (`float`, *optional*, defaults to `0.5`):
            p, or its initial value. A learned a starts at d_k^(1/2 - p).
        score_depth_exponent (`float`, *optional*, defaults to `0`):
            q, or its initial value.
        cross_layer_gate (`bool`, *optional*, defaults to `False`):
            Whether each layer but the first has a scalar gate g, 0 at init: Llama's value + g (variant's - Llama's).
        identity_init (`bool`, *optional*, defaults to `False`):
            Whether a fresh model computes what Llama does, up to about 1e-3, so that a pretrained Llama can be tuned.
            Turns `cross_layer_gate` on where the parameters of the variant cannot do it; see the table in
            `modeling_crosslayer.py`.
        num_residual_streams (`int`, *optional*, defaults to `4`):
            Number of `"streams"`, at least 2.
        layers_per_block (`int`, *optional*, defaults to `4`):
            Layers of one of the `"blocks"`.
        **kwargs:
            Fields of [`~transformers.LlamaConfig`].

    Raises:
        `ValueError`: if a variant or part does not exist, a part differs from the variant's, or has no effect with the
            stream.

    Example:

    ```python
    >>> from hf_evidenceflow import CrossLayerLlamaConfig

    >>> config = CrossLayerLlamaConfig(variant="v2m3")
    >>> config.cross_layer_stream, config.cross_layer_combination
    ('mlp', 'softmax')
    >>> config = CrossLayerLlamaConfig(cross_layer_stream="attention", cross_layer_combination="linear")
    ```
    """

    model_type = CROSSLAYER_LLAMA

    variant: str | None = None
    cross_layer_stream: str | None = None
    cross_layer_terms: str | None = None
    cross_layer_combination: str | None = None
    cross_layer_sources: str | None = None
    score_scaling: str | None = None
    score_head_exponent: float | int | None = None
    score_depth_exponent: float | int | None = None
    cross_layer_gate: bool = False
    identity_init: bool = False
    num_residual_streams: int = 4
    layers_per_block: int = 4

    def __post_init__(self, **kwargs):
        own = _own_fields()
        for key in kwargs:
            near = difflib.get_close_matches(key, own, n=1, cutoff=0.85)
            if near or key.startswith("cross_layer_"):
                hint = (near or difflib.get_close_matches(key, own, n=1, cutoff=0.0))[0]
                raise ValueError(f"`{key}` is no field of CrossLayerLlamaConfig; did you mean `{hint}`?")
        if self.variant is None:
            self.variant = "base" if all(getattr(self, name) is None for name in PART_DEFAULTS) else "custom"
        preset = PART_DEFAULTS | self._preset_parts()
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        # TRL reads it of each model outside transformers; remove when it does not
        self.auto_map = kwargs.pop("auto_map", vars(self).get("auto_map", {}))  # a thinking config has taken it
        super().__post_init__(**kwargs)
        self.check_cross_layer()
        if self.identity_init and not self.has_identity_weights:
            self.cross_layer_gate = self.cross_layer_stream != "none"

    def to_dict(self):
        output = super().to_dict()
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        if config_dict.get("model_type", cls.model_type) not in ("llama", CROSSLAYER_LLAMA, cls.model_type):
            raise ValueError(
                f"{cls.__name__} reads checkpoints of type `llama` or `{CROSSLAYER_LLAMA}`, got one of type "
                f"`{config_dict['model_type']}`."
            )
        # Parts follow from the variant, so ours are set before the construction and not assigned after it
        own = {name: kwargs.pop(name) for name in _own_fields() if name in kwargs}
        if "cross_layer_variant" in kwargs:  # the model's `from_pretrained` had to rename it
            own["variant"] = kwargs.pop("cross_layer_variant")
        if own.get("variant") not in (None, "custom", config_dict.get("variant")):
            config_dict = {name: value for name, value in config_dict.items() if name not in _own_fields()}
        elif own.keys() & PART_DEFAULTS.keys() and "variant" not in own and "variant" in config_dict:
            own["variant"] = None  # another part: no longer the checkpoint's variant
        return super().from_dict({**config_dict, **own, "model_type": cls.model_type}, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in ("llama", CROSSLAYER_LLAMA):
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    @property
    def has_identity_weights(self) -> bool:
        """Whether the variant's own parameters have a value at which it is Llama (nearly, if a softmax holds it)."""
        if self.cross_layer_stream == "scores":
            return self.score_scaling in ("source", "source_exponents")
        if self.cross_layer_stream == "streams":
            return True
        if self.cross_layer_stream in ("updates", "blocks"):
            return self.cross_layer_combination in ("sum", "linear", "depth_attention")
        return self.cross_layer_combination in ("softmax", "linear")

    @property
    def scale_per_layer(self) -> bool:
        """Whether all scores summed in a layer have one scale, so that a running sum of raw scores is enough."""
        return self.score_scaling in ("fixed", "exponents") and not self.cross_layer_gate

    @property
    def memory_rule(self) -> str:
        """How the model keeps what layers hand to later ones: `"append"`, `"first"` or `"replace"` (they hand all)."""
        if self.cross_layer_sources == "first":
            return "first"
        return "replace" if self.keeps_sums or self.cross_layer_stream in ("streams", "blocks") else "append"

    @property
    def keeps_sums(self) -> bool:
        """Whether layers hand the sum of the terms so far to later ones."""
        running = self.cross_layer_combination in ("sum", "mean") and self.cross_layer_terms == "stored"
        return running and self.cross_layer_sources == "all" and self.cross_layer_stream not in ("scores", "blocks")

    def _preset_parts(self):
        if self.variant == "custom":
            return {}
        if self.variant not in VARIANTS:
            near = difflib.get_close_matches(self.variant, VARIANTS, n=1)
            raise ValueError(
                f"`variant` must be one of {', '.join(VARIANTS)} or custom, got {self.variant!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        return VARIANTS[self.variant]

    def check_cross_layer(self) -> None:
        """
        Raises a `ValueError` for parts that do not exist or contradict each other. The model calls it again, since
        fields can be assigned.
        """
        check_numbers(self)
        for name, choices in _PART_CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )
        if self.variant != "custom":
            for name, value in (PART_DEFAULTS | self._preset_parts()).items():
                if getattr(self, name) != value:
                    raise ValueError(
                        f"`{name}` is {value!r} in variant {self.variant!r}, got {getattr(self, name)!r}. Give the "
                        "variant or the parts; with all parts given, set `variant` to 'custom'."
                    )
        stream = self.cross_layer_stream
        takes = {
            "cross_layer_terms": stream in ("mlp", "attention"),
            "cross_layer_combination": stream not in ("none", "scores"),
            "cross_layer_sources": stream not in ("none", "scores", "streams", "blocks")
            and self.cross_layer_terms == "stored",
            "score_scaling": stream == "scores",
            "score_head_exponent": stream == "scores",
            "score_depth_exponent": stream == "scores",
        }
        for name, has_effect in takes.items():
            if not has_effect and getattr(self, name) != PART_DEFAULTS[name]:
                raise ValueError(
                    f"`{name}`={getattr(self, name)!r} has no effect with `cross_layer_stream`={stream!r} and "
                    f"`cross_layer_terms`={self.cross_layer_terms!r}: leave it at {PART_DEFAULTS[name]!r}."
                )
        self._check_combination()
        if self.cross_layer_gate and stream in ("none", "streams"):
            raise ValueError(f"`cross_layer_gate` needs a `cross_layer_stream` of terms, got {stream!r}.")

    def _check_combination(self):
        stream, combination = self.cross_layer_stream, self.cross_layer_combination
        if stream == "values" and combination in ("depth_attention", "normed_attention"):
            raise ValueError(f"`cross_layer_combination`={combination!r} does not go with 'values': take 'linear'.")
        if (combination in ("dynamic", "sinkhorn") and stream != "streams") or (
            stream == "streams" and combination not in ("linear", "dynamic", "sinkhorn")
        ):
            raise ValueError(
                f"`cross_layer_combination`={combination!r} does not go with `cross_layer_stream`={stream!r}: "
                "'streams' take 'linear', 'dynamic' or 'sinkhorn', and only they take the last two."
            )
        for name, owner, least in (("num_residual_streams", "streams", 2), ("layers_per_block", "blocks", 1)):
            value, default = getattr(self, name), getattr(type(self), name)
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
            if stream != owner and value != default:
                raise ValueError(f"`{name}`={value} has no effect with `cross_layer_stream`={stream!r}: leave it out.")


def _own_fields() -> list[str]:
    inherited = {field.name for field in fields(LlamaConfig)}
    return [field.name for field in fields(CrossLayerLlamaConfig) if field.name not in inherited]
