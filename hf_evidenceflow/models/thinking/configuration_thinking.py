"""The fields that turn the config of a causal LM into that of its thinking variant."""

import difflib
from dataclasses import dataclass, fields

from .configuration_methods import ThinkingMethodFields
from .number_checks import check_numbers
from .thinking_methods import THINKING_METHODS


_CHOICES = {
    "thinking_mode": tuple(THINKING_METHODS),
    "thinking_projection_layers": (1, 2),
    "thinking_projection_norm": ("l2", "layernorm", "embedding_rms"),
}
# Fields that a checkpoint of text and images has once
_OF_THE_WHOLE = ("dtype", "torch_dtype", "quantization_config")
# Written where the code of the model is not saved with it. What stands before `--` is where transformers would load
# the code from, and it names that place in its error. No repository can have this name.
_REMEDY = "hf_evidenceflow.load_thinking_model (pip install hf-evidenceflow)--configuration.Config"


@dataclass
class ThinkingConfigMixin(ThinkingMethodFields):
    r"""
    Fields of hybrid latent reasoning (arXiv 2505.18454), to be put before a transformers config in the list of bases;
    those that change parts of a mode are in [`ThinkingMethodFields`].

    Args:
        thinking_mode (`str`, *optional*, defaults to `"projection"`):
            A row of [`THINKING_METHODS`]. The state of a completion token is, in `"projection"`, a learned projection
            of the last hidden state at the position before; in `"embedding"` (the paper), the embedding averaged by
            the distribution the token was drawn from; in `"soft"`, soft thinking (arXiv 2505.15778), that mean
            embedding `sum_v p_v E[v]` is the input itself, without gates, so that nothing needs training; `"none"`: no
            state, the model is exactly its base model. A runtime switch: no mode drops or re-initializes weights.
        thinking_residual_r_min, thinking_residual_r_max (`float`, *optional*, default to `0.99` and `0.999`):
            Range in (0, 1) that the weight of the token embedding at an open gate is drawn from at initialization. The
            closer to 1, the closer a fresh model is to its base.
        thinking_residual_c (`float`, *optional*, defaults to `8`):
            The constant `c > 0` of `a = exp(-c * softplus(-Lambda) * r)`.
        thinking_projection_layers (`int`, *optional*, defaults to `1`):
            Linear layers of the projection, 1 or 2 (with SiLU between them).
        thinking_projection_norm (`str`, *optional*, defaults to `"l2"`):
            Normalisation of the projected state: `"l2"`, `"layernorm"` or `"embedding_rms"`.
        thinking_projection_dropout (`float`, *optional*, defaults to `0`):
            Dropout in [0, 1) on the normalized state, active in training where gradients flow, never in a rollout.
        thinking_projection_init_std (`float`, *optional*):
            Standard deviation > 0 of the projection's initial weights; `None` is `1 / sqrt(hidden_size)`. It does not
            change the forward pass under `"l2"`, but the projection's gradient grows as 1/std: at 0.001 it is 2 to 20
            times that of the rest.
        thinking_answer_start (`str`, *optional*, defaults to `"####"`):
            Text that ends the thinking phase of a completion; `None`: the whole completion thinks.
        thinking_count (`int`, *optional*):
            Number of thoughts, at least 0: the first so many tokens of a completion think, whatever they are. `None`:
            until the answer marker. The modes `later`, `coconut`, `codi` and `pause` need it. Schedules that choose
            among tokens choose among these.
        thinking_token_policy (`str`, *optional*):
            Token that a thought has: `"sample"`, as decoding chooses; `"argmax"`, the likeliest; `"placeholder"`,
            always `thinking_placeholder_id`, which needs a `thinking_count`; `"drawn"`, that of the largest weight
            drawn by the noise `"gumbel"`. `None`: the mode's own.
        thinking_placeholder_id (`int`, *optional*):
            Id of the token that stands for a thought without one.
        thinking_state_approximation (`bool`, *optional*, defaults to `False`):
            On a CPU, average the embeddings of tokens with a probability of at least 1e-4 only, where they hold .9 of
            it, with the mean embedding in place of each other one: cheaper, but a CPU and an accelerator differ then.
    """

    thinking_mode: str = "projection"
    thinking_residual_r_min: float = 0.99
    thinking_residual_r_max: float = 0.999
    thinking_residual_c: float | int = 8
    thinking_projection_layers: int = 1
    thinking_projection_norm: str = "l2"
    thinking_projection_dropout: float | int = 0.0
    thinking_projection_init_std: float | None = None
    thinking_answer_start: str | None = "####"
    thinking_count: int | None = None
    thinking_token_policy: str | None = None
    thinking_placeholder_id: int | None = None
    thinking_state_approximation: bool = False

    def __post_init__(self, **kwargs):
        names = [field.name for field in fields(ThinkingConfigMixin)]
        for key in kwargs:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
            if near or key.startswith("thinking_"):
                hint = (near or difflib.get_close_matches(key, names, n=1, cutoff=0.0))[0]
                raise ValueError(f"`{key}` is no field of {type(self).__name__}; did you mean `{hint}`?")
        # TRL reads it of each model outside transformers; remove when it does not
        self.auto_map = kwargs.pop("auto_map", {})
        if self.auto_map.get("AutoConfig") == _REMEDY:
            del self.auto_map["AutoConfig"]
        super().__post_init__(**kwargs)
        self.check_thinking()
        check_numbers(self)

    def to_dict(self):
        output = super().to_dict()
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

    def to_diff_dict(self):
        """Differs from PreTrainedConfig in what a process that does not know the model type shows."""
        output = super().to_diff_dict()
        output.setdefault("auto_map", {"AutoConfig": _REMEDY})
        return output

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        plain = cls.model_type.removeprefix("thinking_")
        if model_type not in (plain, cls.model_type):
            raise ValueError(
                f"{cls.__name__} reads checkpoints of type `{plain}` or `{cls.model_type}`, got one of type "
                f"`{model_type}`."
            )
        result = super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)
        # Fields in `kwargs` are assigned after the construction
        config = result[0] if isinstance(result, tuple) else result
        config.check_thinking()
        check_numbers(config)
        return result

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        plain, text = cls.model_type.removeprefix("thinking_"), config_dict.get("text_config")
        if isinstance(text, dict) and text.get("model_type") == plain:  # a checkpoint of text and images
            shared = {name: config_dict[name] for name in _OF_THE_WHOLE if name in config_dict}
            config_dict = {**shared, **text}
        # A plain checkpoint of the family becomes one of the thinking type
        if config_dict.get("model_type") == plain:
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    def check_thinking(self):
        """
        Raise a `ValueError` for a thinking field out of its range; called again by the model, since fields can be
        assigned.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )
        r_min, r_max = self.thinking_residual_r_min, self.thinking_residual_r_max
        if not 0 < r_min < r_max < 1:
            raise ValueError(
                "`thinking_residual_r_min` and `thinking_residual_r_max` must satisfy 0 < r_min < r_max < 1, "
                f"got {r_min} and {r_max}."
            )
        if not self.thinking_residual_c > 0:
            raise ValueError(f"`thinking_residual_c` must be positive, got {self.thinking_residual_c}.")
        if not 0 <= self.thinking_projection_dropout < 1:
            raise ValueError(
                f"`thinking_projection_dropout` must be in [0, 1), got {self.thinking_projection_dropout}."
            )
        if self.thinking_projection_init_std is not None and not self.thinking_projection_init_std > 0:
            raise ValueError(
                f"`thinking_projection_init_std` must be positive or None, got {self.thinking_projection_init_std}."
            )
        count = self.thinking_count
        if count is not None and (not isinstance(count, int) or count < 0):
            raise ValueError(f"`thinking_count` must be an integer of at least 0 or None, got {count!r}.")
        if self.thinking_answer_start == "":
            raise ValueError("`thinking_answer_start` must not be empty; use None to think over the whole completion.")
        self.check_method()
