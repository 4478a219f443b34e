"""
The bottleneck adapter as a method of PEFT, once [`register_houlsby`] was called.

Source: Houlsby et al. 2019 (1902.00751), section 2.1. An adapter stands after the projection that ends the attention
and after the one that ends the feed-forward part, each before the residual connection is added.

Deviations: the second projection starts at 0, not at nearly 0, so that the tuned model starts as the base model
exactly (`up_init_std=0.01` is the paper's); the layer norms stay frozen unless `modules_to_save` names them.
"""

import difflib

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from .houlsby_config import HoulsbyConfig
from .houlsby_layer import HoulsbyLayer, refuse_merge
from .registration import OurPeftType, PeftRegistration, register_method


# The two linear layers of a block whose outputs go into the residual stream
_LLAMA_LIKE = ("gemma", "gemma2", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
TARGET_MODULES = {
    **{model_type: ["o_proj", "down_proj"] for model_type in _LLAMA_LIKE},
    # attention.output.dense ends in it too
    **{model_type: ["output.dense"] for model_type in ("bert", "roberta")},
    "gpt_neox": ["attention.dense", "dense_4h_to_h"],
    "opt": ["out_proj", "fc2"],
    "phi": ["self_attn.dense", "fc2"],
}


class HoulsbyModel(BaseTuner):
    """
    A model with bottleneck adapters, as `peft.get_peft_model` makes it from a [`HoulsbyConfig`].

    The trainable parameters are `2 L (2 d m + m + d)`, for L blocks of width d and a bottleneck of m.

    Raises:
        ValueError: If a target is not in the model, or is not a plain linear layer.
    """

    prefix: str = "houlsby_"
    tuner_layer_cls = HoulsbyLayer
    target_module_mapping = TARGET_MODULES

    def _prepare_adapter_config(self, peft_config: HoulsbyConfig, model_config: dict) -> HoulsbyConfig:
        model_type = model_config.get("model_type")
        if peft_config.target_modules is None and model_type not in TARGET_MODULES:
            raise ValueError(
                f"No default `target_modules` for the model type {model_type!r}; there are some for "
                f"{sorted(TARGET_MODULES)}. Name the linear layers that end the attention and the feed-forward part."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: HoulsbyConfig, model: nn.Module) -> None:
        # peft itself is content if one of the names is found
        if isinstance(peft_config.target_modules, str):
            return
        names = [name for name, _ in model.named_modules()]
        for target in sorted(peft_config.target_modules):
            if not any(name == target or name.endswith(f".{target}") for name in names):
                known = sorted(
                    {name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)}
                )
                near = difflib.get_close_matches(target, known, n=1)
                raise ValueError(
                    f"The target module {target!r} is not in the model. "
                    + (f"Did you mean {near[0]!r}? " if near else "")
                    + f"Its linear layers are {known}."
                )

    def _create_and_replace(
        self,
        peft_config: HoulsbyConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, HoulsbyLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear):
            raise ValueError(
                f"The target module {current_key!r} is a {type(target).__module__}.{type(target).__qualname__}. "
                "A bottleneck adapter comes after `torch.nn.Linear` only; name other `target_modules`."
            )
        self._replace_module(parent, target_name, HoulsbyLayer(target, adapter_name, peft_config), target)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter. Several are refused: one after the other is not what was trained."""
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(f"One bottleneck adapter can be active at a time, got {list(adapter_name)}. Name one.")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_merge_allowed(self) -> None:
        # The base class asks before it touches the first layer
        refuse_merge()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, HoulsbyLayer))


def register_houlsby() -> PeftRegistration:
    """
    Make PEFT build, save and load bottleneck adapters; needed before [`HoulsbyConfig`] and before loading one.

    Returns:
        [`~peft.registration.PeftRegistration`]: The handle, with `undo()`, usable in `with`.

    Example:

    ```python
    >>> from peft import PeftModel, get_peft_model
    >>> from hf_evidenceflow.peft.houlsby import HoulsbyConfig, register_houlsby

    >>> register_houlsby()
    >>> tuned = get_peft_model(model, HoulsbyConfig(bottleneck_size=64, task_type="CAUSAL_LM"))
    >>> tuned.save_pretrained("adapter")
    >>> tuned = PeftModel.from_pretrained(base, "adapter")
    ```
    """
    return register_method(OurPeftType.HOULSBY, HoulsbyConfig, HoulsbyModel, HoulsbyModel.prefix)
