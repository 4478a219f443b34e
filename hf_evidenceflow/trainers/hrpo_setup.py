"""What [`HRPOTrainer`] checks and prepares before it trains: the thinking mode, the settings, the thinking modules."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from peft import LoraConfig
from torch.distributed.fsdp import fully_shard

from ..models.auto_thinking import thinking_class
from ..models.thinking.generation_thinking import ThinkingGenerationMixin
from ..models.thinking.thinking_methods import ThinkingMethod
from ..models.thinking.thinking_residual import THINKING_MODULES, Float32Module, thinking_modules_in_use
from ..peft.thinking_adapters import METHODS, ThinkingAdapterConfig
from .policy import check_reference


logger = get_logger(__name__)

_OTHER_ENGINES = {
    "use_transformers_continuous_batching": "continuous batching",
    "use_transformers_paged": "continuous batching",
}


def thinking_config(model, model_init_kwargs: Mapping[str, Any] | None):
    """
    Config of the thinking model, a checkpoint with `model_init_kwargs` or a model, that is going to be trained; a
    `ValueError` for a model that does not think.
    """
    if isinstance(model, str):
        kwargs = {k: v for k, v in (model_init_kwargs or {}).items() if k not in ("dtype", "device_map")}
        return thinking_class(model, **kwargs).config_class.from_pretrained(model, **kwargs)
    base = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(base, ThinkingGenerationMixin):
        raise ValueError(
            f"This trainer needs a thinking model, got {type(base).__name__}. Load the checkpoint with "
            "`hf_evidenceflow.load_thinking_model(path_or_id)`, or pass its path as a string."
        )
    return base.config


def refuse_unsupported(args, config, model, has_adapter: bool, trainer_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse, with a `ValueError` that says what to do, what the trainer could not do right. `config` is that of
    [`thinking_config`], `trainer_kwargs` holds further arguments of the trainer.
    """
    check_reference(args, model, has_adapter)
    if args.cast_lm_head_to_fp32 and config.tie_word_embeddings and has_adapter:
        raise ValueError(
            "`cast_lm_head_to_fp32=True` with an adapter over tied embeddings is not supported by TRL, which "
            "looks for the embeddings in the wrong place. Set it to False, or untie the embeddings."
        )
    if config.thinking_mode == "none":
        return
    count, most = config.thinking_count, args.max_completion_length
    if count is not None and most is not None and count >= most:
        raise ValueError(
            f"`max_completion_length={most}` leaves no token of text behind `thinking_count={count}` thoughts, which "
            "are part of the completion. Raise it."
        )
    for name, engine in _OTHER_ENGINES.items():
        if getattr(args, name):
            raise ValueError(
                f"`{name}=True` with `thinking_mode={config.thinking_mode!r}`: {engine} has no place for thinking "
                f"states. Leave `{name}` at False, or set the model's `thinking_mode` to 'none'."
            )
    if trainer_kwargs.get("rollout_func"):
        raise ValueError(
            f"`rollout_func` with `thinking_mode={config.thinking_mode!r}` is not supported: what it generates around "
            "the trainer leaves no thinking states. Give the model `tools` or an `environment_factory`, or set the "
            "model's `thinking_mode` to 'none'."
        )
    for name in ("tools", "environment_factory"):
        if args.use_vllm and trainer_kwargs.get(name):
            raise ValueError(
                f"`{name}` with `use_vllm=True` and `thinking_mode={config.thinking_mode!r}`: vLLM takes no thinking "
                "states of an earlier turn. Set `use_vllm=False`, or the model's `thinking_mode` to 'none'."
            )
    if args.parity_check_steps and getattr(config, "attention_dropout", 0):
        raise ValueError(
            f"`attention_dropout={config.attention_dropout}` is random in rollouts too, so that no parity check "
            "can hold. Load the model with `attention_dropout=0.0`, or set `parity_check_steps=0`."
        )


def warn_of_settings(trainer) -> None:
    """Say what trains right in HRPO, but may be a mistake."""
    tokenizer = trainer._tokenizer
    if tokenizer.pad_token_id in trainer.eos_token_ids:
        # Usual in published checkpoints, so that a warning would be noise
        logger.info(
            f"The padding token is the end of sequence ({tokenizer.pad_token!r}). Rollouts are cut at the first one, "
            "so training here is right, but losses that leave out padding would never teach the model to end."
        )
    if (trainer.args.generation_kwargs or {}).get("use_cache") is False:
        logger.warning(
            "`use_cache=False` in `generation_kwargs`: each token of a rollout computes the whole text again. Leave "
            "it out."
        )


def prepare_thinking_parameters(model: torch.nn.Module, method: ThinkingMethod) -> None:
    """
    Freeze, in place, the thinking modules that the method or the active adapter does not use, and keep the others in
    fp32. A module that the method uses and nothing trains is a `ValueError`.
    """
    in_use = thinking_modules_in_use(method)
    adapters = model.active_adapters if is_peft_model(model) else []
    trained = set()
    for name, parameter in model.named_parameters():
        module = next((module for module in THINKING_MODULES if module in name), None)
        if module is None:
            continue
        adapter = name.partition(".modules_to_save.")[2].partition(".")[0]
        if module not in in_use or (adapter and adapter not in adapters):
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            trained.add(module)
            parameter.data = parameter.data.float()  # TRL casts what a quantized base trains to bf16
    if missing := [module for module in in_use if module not in trained]:
        raise ValueError(
            f"The thinking modules {missing} are not trained{f' by the active adapter {adapters}' * bool(adapters)}. "
            "With a PEFT model of your own, name them in `modules_to_save`, or pass `peft_config` to HRPOTrainer, "
            "which does so."
        )


def shard_thinking_modules(model: torch.nn.Module, accelerator) -> None:
    """
    Make trained thinking modules, which are fp32, fit weights that are going to be sharded in half precision; in
    place.

    FSDP2 gathers weights in half precision: each thinking module gets a unit of its own, which gathers them as they
    are. ZeRO-3 holds trained weights of one dtype: it gets half-precision ones, and keeps fp32 weights in its
    optimizer.

    Raises:
        `ValueError`: if FSDP2 loads the weights on one process only, which does not go with units of our own.
    """
    if accelerator.mixed_precision == "no":
        return
    modules = [
        module
        for module in model.modules()
        if isinstance(module, Float32Module) and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    deepspeed = accelerator.state.deepspeed_plugin
    if deepspeed is not None and deepspeed.zero_stage == 3:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
        for parameter in (parameter for module in modules for parameter in module.parameters(recurse=False)):
            if not hasattr(parameter, "ds_tensor"):  # else it has been taken already, in that dtype
                parameter.data = parameter.data.to(dtype)
    if not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            f"`fsdp_cpu_ram_efficient_loading=True` with `mixed_precision={accelerator.mixed_precision!r}` is not "
            "supported for thinking models, whose modules stay in fp32. Set it to false in the FSDP config, as "
            "`recipes/accelerate/fsdp2.yaml` does."
        )
    mesh = accelerator.torch_device_mesh
    mesh = None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    for module in modules:
        fully_shard(module, mesh=mesh, offload_policy=plugin.cpu_offload)


def with_thinking_modules(peft_config, method: ThinkingMethod):
    """
    A copy of a PEFT config that also trains the thinking modules that the method uses, in full: they are in
    `modules_to_save`, and kept out of `target_modules`.

    Raises:
        `ValueError`: if the method cannot train modules of the model in full.
    """
    name = str(getattr(peft_config.peft_type, "value", peft_config.peft_type))
    if name not in METHODS and not isinstance(peft_config, ThinkingAdapterConfig):
        reason = "it trains virtual tokens" if peft_config.is_prompt_learning else "it cannot train modules in full"
        raise ValueError(
            f"`peft_config` of type {name} ({type(peft_config).__name__}) cannot train the thinking modules: "
            f"{reason}. Use `LoraConfig` or the config of another method of {', '.join(METHODS)}; or no adapter."
        )
    peft_config = copy.deepcopy(peft_config)
    in_use = thinking_modules_in_use(method)
    saved = list(peft_config.modules_to_save or [])
    peft_config.modules_to_save = [*saved, *(module for module in in_use if module not in saved)] or None
    if isinstance(peft_config, LoraConfig) and peft_config.target_modules is None:
        peft_config.target_modules = "all-linear"  # the paper's seven, in a Qwen2
    if "exclude_modules" in vars(peft_config) and not isinstance(peft_config.exclude_modules, str):
        peft_config.exclude_modules = sorted({*(peft_config.exclude_modules or []), *THINKING_MODULES})
    return peft_config
