"""The tuning methods that are compared: what each one trains, and its learning rate."""

import copy
from collections.abc import Callable
from typing import NamedTuple

from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from hf_evidenceflow.peft.houlsby import HoulsbyConfig, register_houlsby


class Method(NamedTuple):
    """
    A way of tuning.

    Args:
        learning_rate (`float`):
            Its highest learning rate for the tiny model of the recipe.
        prepare (`Callable[[PreTrainedModel], nn.Module]`):
            Takes the base model and gives the one to tune, in which exactly what is tuned is trainable.
    """

    learning_rate: float
    prepare: Callable[[PreTrainedModel], nn.Module]


# For the tiny model of the recipe. Chosen among three or four rates each, a factor of 3 apart, by the accuracy on new
# texts after 150 steps, and where that was equal by the loss, on a seed that the table has not.
# The fewer parameters stand between the loss and the model, the farther each has to go: full tuning moves all weights
# a little, a prefix a few vectors far from where they start (Lester et al. take 0.3 for a soft prompt). A
# reparametrised prompt or prefix moves through its network, whose weights take a usual rate.
LEARNING_RATES = {
    "full": 1e-3,
    "head": 3e-2,
    "lora": 3e-3,
    "houlsby": 1e-2,
    "prefix_mlp": 1e-2,
    "p_tuning_v2": 3e-1,
    "prompt": 3e-2,
    "p_tuning": 1e-2,
}


def tuning_methods(
    prompt_text: str,
    tokenizer: str,
    virtual_tokens: int = 8,
    lora_ranks: tuple[int, ...] = (1, 8),
    bottleneck: int = 8,
    scale: float = 1.0,
) -> dict[str, Method]:
    """
    The methods of the table, in its order.

    Args:
        prompt_text (`str`):
            Text that a soft prompt starts from.
        tokenizer (`str`):
            Folder or name of the tokenizer for it.
        virtual_tokens (`int`, *optional*, defaults to `8`):
            Length of the prompts and prefixes.
        lora_ranks (`tuple[int, ...]`, *optional*, defaults to `(1, 8)`):
            Ranks of LoRA; alpha is twice the rank.
        bottleneck (`int`, *optional*, defaults to `8`):
            Width of the adapters' bottleneck.
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of all learning rates, for models that are not tiny.

    Returns:
        `dict[str, Method]`: the methods by name.
    """
    register_houlsby()
    common = {"task_type": "CAUSAL_LM"}
    prompt = common | {"num_virtual_tokens": virtual_tokens}
    text = {"prompt_tuning_init_text": prompt_text, "tokenizer_name_or_path": tokenizer}
    configs = {
        f"Houlsby adapter, {bottleneck}": ("houlsby", HoulsbyConfig(bottleneck_size=bottleneck, **common)),
        "prefix tuning, MLP": ("prefix_mlp", PrefixTuningConfig(prefix_projection=True, **prompt)),
        "P-tuning v2": ("p_tuning_v2", PrefixTuningConfig(prefix_projection=False, **prompt)),
        "soft prompt, random": ("prompt", PromptTuningConfig(prompt_tuning_init="RANDOM", **prompt)),
        "soft prompt, vocabulary": ("prompt", PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **prompt)),
        "soft prompt, text": ("prompt", PromptTuningConfig(prompt_tuning_init="TEXT", **text, **prompt)),
        "P-tuning, MLP": ("p_tuning", PromptEncoderConfig(encoder_reparameterization_type="MLP", **prompt)),
        "P-tuning, LSTM": ("p_tuning", PromptEncoderConfig(encoder_reparameterization_type="LSTM", **prompt)),
    }
    rates = {family: rate * scale for family, rate in LEARNING_RATES.items()}
    return {
        "not tuned": Method(0.0, _freeze),
        "head only": Method(rates["head"], _head_only),
        "full": Method(rates["full"], _full),
        **{f"LoRA, rank {rank}": lora_method(rank, 2 * rank, scale) for rank in lora_ranks},
        **{name: Method(rates[family], _adapter(config)) for name, (family, config) in configs.items()},
    }


def lora_method(rank: int, alpha: float, scale: float = 1.0) -> Method:
    """
    LoRA on all linear layers of the blocks, as the QLoRA paper advises (2305.14314, section 4).

    Args:
        rank (`int`):
            Rank of the products that are added to the weights.
        alpha (`float`):
            They are multiplied with alpha over rank.
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the learning rate.

    Returns:
        [`Method`]: the method.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return Method(scale * LEARNING_RATES["lora"], _adapter(config))


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """
    Parameters of a model.

    Args:
        model (`nn.Module`):
            The model.

    Returns:
        `tuple[int, int]`: those that are trained, and those of the base model: what an adapter adds is not among the
        latter, so that their ratio compares methods on one scale.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    added = trained if hasattr(model, "peft_config") else 0
    return trained, everything - added


def _adapter(config: PeftConfig) -> Callable[[PreTrainedModel], nn.Module]:
    # A copy: peft writes the model's sizes into the config
    return lambda model: get_peft_model(model, copy.deepcopy(config))


def _full(model: PreTrainedModel) -> nn.Module:
    return model.requires_grad_(True)


def _freeze(model: PreTrainedModel) -> nn.Module:
    return model.requires_grad_(False)


def _head_only(model: PreTrainedModel) -> nn.Module:
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        # Tied: training the head would train the embeddings as well
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    head.requires_grad_(True)
    return model
