"""QLoRA: a base model in 4 bits that stays as it is, and LoRA matrices in floating point that are trained.

Source: Dettmers et al. 2023, arXiv 2305.14314.
"""

import os

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_evidenceflow.recipes.course.shared.recipe import require_course_package


_BLOCK = 64


def load_4bit(
    model_name_or_path: str | os.PathLike,
    quant_type: str = "nf4",
    double_quant: bool = True,
    dtype: torch.dtype = torch.float32,
):
    """
    A causal LM with the weights of its linear layers, apart from the readout, in 4 bits.

    Args:
        model_name_or_path (`str` or `os.PathLike`):
            Folder or Hub name.
        quant_type (`str`, *optional*, defaults to `"nf4"`):
            `nf4` or `fp4`.
        double_quant (`bool`, *optional*, defaults to `True`):
            Whether the scales of the blocks are quantised, too.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Type that the weights are multiplied in, and of all other parameters.

    Returns:
        [`~transformers.PreTrainedModel`]: the model in eval mode, on CPU without a GPU. On a CPU with AVX512-BF16,
        bitsandbytes repacks the weights in the first pass and multiplies in bfloat16 whatever `dtype` is.

    Raises:
        `ValueError`: if `quant_type` is not known, or, on CPU, a layer's inputs are no multiple of 64: there
            bitsandbytes 0.50 dequantises blocks that go over the end of a row wrongly.
        `ImportError`: if bitsandbytes is not installed.
    """
    if quant_type not in ("nf4", "fp4"):
        raise ValueError(f"`quant_type` must be 'nf4' or 'fp4', got {quant_type!r}.")
    require_course_package("bitsandbytes", "Loading in 4 bits")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    device = 0 if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        model_name_or_path, quantization_config=config, dtype=dtype, device_map={"": device}
    )
    for name, module in model.named_modules():
        if device == "cpu" and hasattr(module, "quant_state") and module.in_features % _BLOCK:
            raise ValueError(
                f"`{name}` has {module.in_features} inputs. On CPU bitsandbytes gives wrong weights where they are no "
                f"multiple of {_BLOCK}, the weights of a block. Take another model, or a GPU."
            )
    return model


def add_lora(model: nn.Module, rank: int = 8):
    """
    Freeze a model and add LoRA matrices to all its linear layers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model, quantised or not; it is changed in place.
        rank (`int`, *optional*, defaults to `8`):
            Rank of the matrices; alpha is twice the rank.

    Returns:
        [`~peft.PeftModel`]: the model, which starts as it was.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def frozen_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    Copies of all that is not trained, with the scales of quantised weights.

    Args:
        model (`nn.Module`):
            The model, before or after training; take both in training mode, in which nothing is repacked.

    Returns:
        `dict[str, torch.Tensor]`: by name.
    """
    copies = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        copies[name] = parameter.detach().clone()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            copies[f"{name}.absmax"] = state.absmax.clone()
    return copies
