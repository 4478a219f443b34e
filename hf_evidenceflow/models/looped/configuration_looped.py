"""Config of a Llama whose layers, or blocks of them, run several times."""

import difflib
from dataclasses import fields
from typing import NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .checkpoint_fields import LOOPED_LLAMA, looped_fields
from .number_checks import check_numbers


EXIT_MODES = ("freeze", "select")


class LayerCall(NamedTuple):
    """One call of a layer in a forward pass: its number, the loop that it belongs to, and its place in the loop."""

    layer: int
    loop: int = 0
    begins: bool = False
    ends: bool = False


@strict
class LoopedLlamaConfig(LlamaConfig):
    r"""
    Configuration of a [`LoopedLlamaModel`]. With one loop and without further switches the model is Llama, to the bit.

    `num_hidden_layers` counts the calls of layers in a forward pass, of which each has a slot of its own in the cache,
    and follows from the fields below. Given without `num_unique_layers`, it is the number of layers with weights of
    their own.

    Args:
        num_unique_layers (`int`, *optional*):
            Layers with weights of their own, U.
        num_loops (`int`, *optional*, defaults to `1`):
            How often each block runs, R. Change it in a model by [`LoopedLlamaForCausalLM.set_num_loops`].
        loop_blocks (`list[list[int]]`, *optional*):
            Blocks that run R times where they stand, as pairs of a first layer and the one behind the last: `[[4,
            8]]`. What is before the first and behind the last runs once. `None`: one block of all layers.
        loop_damping (`bool`, *optional*, defaults to `False`):
            A loop moves the state x by a part of what the block F says, x + (F(x) - x) / R (training-free looping,
            arXiv 2605.23872).
        loop_norm (`bool`, *optional*, defaults to `False`):
            The final norm stands between loops, too (Ouro, Nanbeige).
        loop_injection (`bool`, *optional*, defaults to `False`):
            What the block read first is added to the state before each further loop. With `loop_norm` and one block of
            all layers, these are the token embeddings and the last hidden state, as in LOTUS (arXiv 2606.31779).
        loop_token_id (`int`, *optional*):
            With `loop_injection`, only tokens of this id take the state of the loop before along; others begin each
            loop with what the block read first, so that around one run of such tokens (LOTUS's latent positions) they
            have the states of a single pass.
        loop_adapter (`bool`, *optional*, defaults to `False`):
            Each loop begins with a learned map of two states, what the block read first and what the loop before
            says, from which the first loop has zeros (Huginn, arXiv 2502.05171). A fresh one passes the first on as
            it is, so that a pretrained model says the same with any number of loops.
        loop_start_noise (`float`, *optional*, defaults to `0.0`):
            With `loop_adapter`, in training: standard deviation of normal noise in the place of the zeros.
        loop_lora_r (`int`, *optional*, defaults to `0`):
            Rank of what each loop changes in the linear layers of its block (Relaxed Recursive Transformers, arXiv
            2410.20672); its norms and biases change in full. Fresh changes are 0. The number of loops is then fixed.
        loop_lora_alpha (`float`, *optional*):
            The change is scaled by `loop_lora_alpha / loop_lora_r`; if not given, by 1.
        exit_gate (`bool`, *optional*, defaults to `False`):
            After each loop a gate gives the probability to stop there (Ouro, arXiv 2510.25741). For one block that
            ends the model.
        early_exit_threshold (`float`, *optional*, defaults to `1.0`):
            A token leaves after the first loop at which its cumulative probability to stop is at least this. At 1,
            never.
        early_exit_mode (`str`, *optional*, defaults to `"freeze"`):
            `"freeze"`: the state of a token that left stays, further loops get its keys and values from it, and are
            not run where all tokens of a pass have left. `"select"`: all loops run, and each token's logits are those
            of the loop that it left after, as in Ouro's published code; nothing is saved.
        exit_entropy_coef (`float`, *optional*, defaults to `0.05`):
            In training with a gate: weight of the entropy of where to stop, see [`expected_exit_loss`].
        sandwich_norm (`bool`, *optional*, defaults to `False`):
            A norm behind attention and MLP, too (Ouro).
        qk_norm, qkv_bias (`bool`, *optional*, default to `False`):
            Norms of the heads' queries and keys (Qwen3); biases of queries, keys and values alone (Qwen2).
        **kwargs:
            Fields of [`~transformers.LlamaConfig`].

    Raises:
        `ValueError`: if a field is out of its range.

    Example:

    ```python
    >>> from hf_evidenceflow import LoopedLlamaConfig

    >>> LoopedLlamaConfig(num_unique_layers=8, loop_blocks=[[2, 6]], num_loops=3).num_hidden_layers
    16
    ```
    """

    model_type = LOOPED_LLAMA
    # Stages of a pipeline hold whole ranges of calls; ours come back to earlier layers
    base_model_pp_plan = None

    num_unique_layers: int | None = None
    num_loops: int = 1
    loop_blocks: list | tuple | None = None
    loop_damping: bool = False
    loop_norm: bool = False
    loop_injection: bool = False
    loop_token_id: int | None = None
    loop_adapter: bool = False
    loop_start_noise: float | int = 0.0
    loop_lora_r: int = 0
    loop_lora_alpha: float | int | None = None
    exit_gate: bool = False
    early_exit_threshold: float | int = 1.0
    early_exit_mode: str = "freeze"
    exit_entropy_coef: float | int = 0.05
    sandwich_norm: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False

    def __post_init__(self, **kwargs):
        for key in kwargs:
            if near := difflib.get_close_matches(key, _own_fields(), n=1, cutoff=0.85):
                raise ValueError(f"`{key}` is no field of LoopedLlamaConfig; did you mean `{near[0]}`?")
        if self.num_unique_layers is None:
            self.num_unique_layers = self.num_hidden_layers
        if self.loop_blocks is None:
            self.loop_blocks = [[0, self.num_unique_layers]]
        self.loop_blocks = [[*block] if isinstance(block, (list, tuple)) else block for block in self.loop_blocks]
        # TRL reads it of each model outside transformers; remove when it does not
        self.auto_map = kwargs.pop("auto_map", vars(self).get("auto_map", {}))  # a thinking config has taken it
        super().__post_init__(**kwargs)
        if self.loop_lora_r:
            self.base_model_tp_plan = None  # Llama's would split the weights and not what a loop changes in them
        self.check_loops()
        self.set_num_loops(self.num_loops)

    def to_dict(self):
        output = super().to_dict()
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        # The number of calls follows from ours, so they are set before the construction and not assigned after it
        own = {name: kwargs.pop(name) for name in _own_fields() if name in kwargs}
        return super().from_dict({**looped_fields(config_dict, cls.model_type), **own}, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return looped_fields(config_dict, cls.model_type), kwargs

    def set_num_loops(self, num_loops: int) -> None:
        """Another number of loops, for a model that is not built yet; `num_hidden_layers` follows."""
        before, self.num_loops = self.num_loops, num_loops
        try:
            self.check_loops()
        except ValueError:
            self.num_loops = before
            raise
        self.num_hidden_layers = len(self.layer_calls())

    def layer_calls(self) -> list[LayerCall]:
        """The calls of layers in a forward pass, in their order; the n-th has slot n of the cache."""
        calls, behind = [], 0
        for start, end in self.loop_blocks:
            calls += [LayerCall(layer) for layer in range(behind, start)]
            for loop in range(self.num_loops):
                calls += [
                    LayerCall(layer, loop, begins=layer == start, ends=layer == end - 1) for layer in range(start, end)
                ]
            behind = end
        return calls + [LayerCall(layer) for layer in range(behind, self.num_unique_layers)]

    def check_loops(self) -> None:
        """Raises a `ValueError` for a field out of its range; called again by the model, as fields can be assigned."""
        check_numbers(self)
        for name in ("num_unique_layers", "num_loops"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        behind = 0
        for block in self.loop_blocks:
            pair = block if isinstance(block, (list, tuple)) and len(block) == 2 else (0, 0)
            if not all(type(layer) is int for layer in pair) or not behind <= pair[0] < pair[1]:
                raise ValueError(
                    "`loop_blocks` must be pairs [first layer, the one behind the last] in rising order, such as "
                    f"[[2, 6]], got {self.loop_blocks}."
                )
            behind = pair[1]
        if behind > self.num_unique_layers:
            raise ValueError(
                f"`loop_blocks` {self.loop_blocks} end behind the last of the {self.num_unique_layers} layers."
            )
        if self.exit_gate and (len(self.loop_blocks) != 1 or behind != self.num_unique_layers):
            raise ValueError(
                "`exit_gate` needs one looped block that ends the model, since a loop's state is read out where a "
                f"token leaves; got `loop_blocks` {self.loop_blocks} of {self.num_unique_layers} layers."
            )
        if self.loop_damping and self.loop_injection:
            raise ValueError("`loop_damping` refines one pass, to which `loop_injection` would add. Leave one out.")
        if self.loop_token_id is not None and (not self.loop_injection or self.exit_gate):
            raise ValueError(
                f"`loop_token_id={self.loop_token_id}` chooses what `loop_injection` adds the state to: set that, and "
                "leave `exit_gate` out."
            )
        if self.loop_adapter and (self.loop_damping or self.loop_injection or self.exit_gate):
            raise ValueError(
                "`loop_adapter` brings what a block reads into each loop itself: leave out `loop_damping`, "
                "`loop_injection` and `exit_gate`."
            )
        if self.loop_start_noise < 0 or (self.loop_start_noise and not self.loop_adapter):
            raise ValueError(
                f"`loop_start_noise` must be at least 0, and needs `loop_adapter=True`, got {self.loop_start_noise}."
            )
        if self.loop_lora_r < 0:
            raise ValueError(f"`loop_lora_r` must be at least 0, got {self.loop_lora_r}.")
        if self.loop_lora_r and vars(self).get("quantization_config"):
            raise ValueError(
                f"A model with `loop_lora_r={self.loop_lora_r}` cannot be quantized: layers that lack what loops "
                "change would take the place of its own. Load it without quantization."
            )
        if self.loop_lora_alpha is not None and not (self.loop_lora_r and self.loop_lora_alpha > 0):
            raise ValueError(
                f"`loop_lora_alpha` must be above 0, and needs `loop_lora_r`, got {self.loop_lora_alpha}."
            )
        if self.early_exit_mode not in EXIT_MODES:
            raise ValueError(
                f"`early_exit_mode` must be one of {', '.join(map(repr, EXIT_MODES))}, got {self.early_exit_mode!r}."
            )
        if self.early_exit_threshold < 0 or self.exit_entropy_coef < 0:
            raise ValueError(
                "`early_exit_threshold` and `exit_entropy_coef` must be at least 0, got "
                f"{self.early_exit_threshold} and {self.exit_entropy_coef}."
            )
        if self.early_exit_threshold < 1 and not self.exit_gate:
            raise ValueError(
                f"`early_exit_threshold={self.early_exit_threshold}` needs `exit_gate=True`: without a gate nothing "
                "says where to stop."
            )


def _own_fields() -> list[str]:
    inherited = {field.name for field in fields(LlamaConfig)}
    return [field.name for field in fields(LoopedLlamaConfig) if field.name not in inherited]
