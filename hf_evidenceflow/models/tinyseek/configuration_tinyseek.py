"""Configuration of TinySeek."""

import difflib
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .cache_argument import CACHE
from .number_checks import check_numbers


@strict
class TinySeekConfig(PreTrainedConfig):
    r"""
    Configuration of a [`TinySeekModel`]: a decoder whose few blocks are applied in a cycle. The defaults are the
    published model.

    Args:
        vocab_size (`int`, *optional*, defaults to `5000`):
            Vocabulary size, V.
        hidden_size (`int`, *optional*, defaults to `512`):
            Width of the states, H.
        num_hidden_layers (`int`, *optional*, defaults to `6`):
            Effective depth L: layer calls of a forward pass, and layers of the KV cache.
        num_unique_layers (`int`, *optional*, defaults to `1`):
            Blocks n with weights of their own; call i uses block i mod n. Divides `num_hidden_layers`. `1` is a looped
            block, `num_hidden_layers` an ordinary transformer.
        num_attention_heads (`int`, *optional*, defaults to `8`):
            Attention heads.
        q_lora_rank, kv_lora_rank (`int`, *optional*, default to `128`):
            Size d_c of the latent that queries, and keys and values, are made from.
        qk_nope_head_dim, v_head_dim (`int`, *optional*):
            Size of a head's query and key without rotary embedding, and of its value. If not given, `hidden_size /
            num_attention_heads`.
        qk_rope_head_dim (`int`, *optional*, defaults to `8`):
            Size d_r of the rotary query and key, which all heads share. Even.
        n_routed_experts (`int`, *optional*, defaults to `384`):
            Routed experts, E.
        n_shared_experts (`int`, *optional*, defaults to `24`):
            Experts that each token passes; `0` is none.
        num_experts_per_tok (`int`, *optional*, defaults to `8`):
            Routed experts of a token, k in [1, E].
        moe_intermediate_size (`int`, *optional*, defaults to `32`):
            Width of an expert.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation of the experts.
        max_position_embeddings (`int`, *optional*, defaults to `512`):
            Longest sequence in training. The rotary embedding has no table, so it is no limit of `generate`.
        rope_parameters (`dict`, *optional*):
            Rotary embedding. If not given, the default kind with `rope_theta` 10,000.
        hidden_dropout (`float`, *optional*, defaults to `0.1`):
            Dropout in [0, 1) on what attention and experts add to the states.
        router_init_std (`float`, *optional*, defaults to `0.02`):
            Standard deviation >= 0 of the router's initial weights.
        router_noise (`bool`, *optional*, defaults to `True`):
            Whether Gaussian noise of learned size is added to the router's logits in training.
        router_aux_loss_coef (`float`, *optional*, defaults to `0.01`):
            Weight >= 0 of the balance loss, which is summed over the layers.
        layer_norm_eps (`float`, *optional*, defaults to `1e-5`):
            Epsilon > 0 of the layer norms.
        norm_position (`str`, *optional*, defaults to `"post"`):
            `"post"` (published): the layer norm stands behind the residual sum, and there is no final norm. `"pre"`:
            before attention and experts, and one before the head. `"peri"` (MoEUT, arXiv 2405.16039): as `"pre"`, but
            values and experts read the states without norm; with `attention_experts`.
        router_type (`str`, *optional*, defaults to `"top_k"`):
            `"sigma"` (sigma-MoE, as in MoEUT): gates are sigmoids that do not sum to 1, experts have no biases, there
            is no noise, and the balance loss is about entropies of rows over all loops, see [`entropy_balance`].
        attention_experts, attention_experts_per_tok (`int`, *optional*, default to `0` and `2`):
            With experts, for `router_type="sigma"`: SwitchHead attention in the place of the latent one, with as many
            maps for values and for outputs of each head, of which a token uses some.
        lm_head_bias (`bool`, *optional*, defaults to `True`):
            Whether the head has a bias.
        initializer_range (`float`, *optional*, defaults to `0.02`):
            Standard deviation of the other initial weights; biases begin at 0. The published code has torch's
            defaults.

    Raises:
        `ValueError`: if a field is out of its range, or is a near miss of one of these.

    Example:

    ```python
    >>> from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM

    >>> model = TinySeekForCausalLM(TinySeekConfig(hidden_size=64, n_routed_experts=16, n_shared_experts=2))
    ```
    """

    model_type = "tinyseek"
    keys_to_ignore_at_inference = [CACHE]
    attribute_map = {
        "num_local_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        "head_dim": "qk_rope_head_dim",  # what the rotary embedding turns
    }

    vocab_size: int = 5000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_unique_layers: int = 1
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 128
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int = 8
    v_head_dim: int | None = None
    n_routed_experts: int = 384
    n_shared_experts: int = 24
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 32
    hidden_act: str = "relu"
    max_position_embeddings: int = 512
    rope_parameters: dict | None = None
    hidden_dropout: float | int = 0.1
    router_init_std: float | int = 0.02
    router_noise: bool = True
    router_aux_loss_coef: float | int = 0.01
    layer_norm_eps: float = 1e-5
    norm_position: str = "post"
    router_type: str = "top_k"
    attention_experts: int = 0
    attention_experts_per_tok: int = 2
    lm_head_bias: bool = True
    initializer_range: float | int = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs):
        known = [field.name for field in fields(TinySeekConfig)]
        for key in kwargs:
            if near := difflib.get_close_matches(key, known, n=1, cutoff=0.9):
                raise ValueError(f"`{key}` is no field of TinySeekConfig; did you mean `{near[0]}`?")
        head_size, rest = divmod(self.hidden_size, max(self.num_attention_heads, 1))
        for name in ("qk_nope_head_dim", "v_head_dim"):
            if getattr(self, name) is None:
                if rest:
                    raise ValueError(
                        f"`hidden_size` ({self.hidden_size}) is no multiple of `num_attention_heads` "
                        f"({self.num_attention_heads}): give `{name}`."
                    )
                setattr(self, name, head_size)
        # TRL reads it of each model outside transformers; remove when it does not
        self.auto_map = kwargs.pop("auto_map", {})
        super().__post_init__(**kwargs)
        self.check()

    @classmethod
    def moeut(cls, **fields) -> "TinySeekConfig":
        """
        The mixture-of-experts universal transformer (MoEUT, arXiv 2405.16039) in the smallest of its published sizes,
        44 M parameters with a vocabulary of 8,000; `fields` change it.
        """
        sizes = {"hidden_size": 412, "num_hidden_layers": 16, "num_unique_layers": 2, "num_attention_heads": 4}
        heads = {"qk_nope_head_dim": 42, "qk_rope_head_dim": 40, "v_head_dim": 82}
        experts = {"n_routed_experts": 155, "num_experts_per_tok": 12, "moe_intermediate_size": 128}
        kind = {"router_type": "sigma", "attention_experts": 8, "norm_position": "peri", "n_shared_experts": 0}
        return cls(**{**sizes, **heads, **experts, **kind, "router_noise": False, "hidden_dropout": 0.0, **fields})

    def to_dict(self):
        output = super().to_dict()
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

    def check(self) -> None:
        """
        Raises a `ValueError` for a field out of its range. The model calls it again, since fields can be assigned.
        """
        check_numbers(self)
        for name in (
            "num_unique_layers",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "n_routed_experts",
            "moe_intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_hidden_layers % self.num_unique_layers:
            raise ValueError(
                f"`num_unique_layers` must divide `num_hidden_layers`, got {self.num_unique_layers} and "
                f"{self.num_hidden_layers}."
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"`qk_rope_head_dim` must be even, got {self.qk_rope_head_dim}.")
        if not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            raise ValueError(
                f"`num_experts_per_tok` must be from 1 to `n_routed_experts` ({self.n_routed_experts}), got "
                f"{self.num_experts_per_tok}."
            )
        for name in ("n_shared_experts", "router_init_std", "router_aux_loss_coef", "initializer_range"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.norm_position not in ("post", "pre", "peri"):
            raise ValueError(f"`norm_position` must be 'post', 'pre' or 'peri', got {self.norm_position!r}.")
        if self.router_type not in ("top_k", "sigma"):
            raise ValueError(f"`router_type` must be 'top_k' or 'sigma', got {self.router_type!r}.")
        if self.router_type == "sigma" and self.router_noise:
            raise ValueError("`router_type='sigma'` has no noise: set `router_noise` to False.")
        if self.attention_experts and self.router_type != "sigma":
            raise ValueError(f"`attention_experts={self.attention_experts}` needs `router_type='sigma'`.")
        if self.attention_experts and not 1 <= self.attention_experts_per_tok <= self.attention_experts:
            raise ValueError(
                f"`attention_experts_per_tok` must be from 1 to `attention_experts` ({self.attention_experts}), got "
                f"{self.attention_experts_per_tok}."
            )
        if self.norm_position == "peri" and not self.attention_experts:
            raise ValueError("`norm_position='peri'` needs `attention_experts`: one latent makes keys and values.")
