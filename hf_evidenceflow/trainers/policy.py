"""Loads the policy of [`HRPOTrainer`] from a path, and tells its reference model from it."""

import functools
import logging
from contextlib import contextmanager
from types import SimpleNamespace

from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, set_seed
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ..data.tokenizer_loading import load_tokenizer
from ..models.auto_thinking import load_thinking_model


def default_args(config_class, method: str, model):
    """The arguments of a trainer that got none; as in TRL, the output folder is named after model and method."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return config_class(f"{name.split('/')[-1]}-{method}")


def load_policy_tokenizer(path_or_id: str, args):
    """TRL's AutoProcessor would take a tokenizer of the model's family, whatever was saved."""
    return load_tokenizer(
        path_or_id,
        revision=(args.model_init_kwargs or {}).get("revision"),
        trust_remote_code=args.trust_remote_code,
        truncation_side="left",
        padding_side="left",
    )


def load_policy(path_or_id: str, args, quantization_config=None):
    """
    Load a thinking model as TRL loads the model of a path: its seed, its dtype and its devices.

    `model_init_kwargs` may hold fields of the thinking config too. Raises a `ValueError` if it has a quantization next
    to `quantization_config`.
    """
    set_seed(args.seed)  # thinking modules that the checkpoint lacks are drawn
    kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ValueError(
                "`quantization_config` is both an argument of the trainer and in `model_init_kwargs`. Leave one out."
            )
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    load = functools.partial(load_thinking_model, is_trainable=True)
    return create_model_from_path(path_or_id, SimpleNamespace(from_pretrained=load), **kwargs)


@contextmanager
def plain_init_kwargs(args, trainer: str = "grpo_trainer"):
    """
    Inside, `model_init_kwargs` has no fields of the thinking config: TRL loads reference and reward models with it.

    TRL's warning that it is not used, since the policy is loaded, would be wrong there, and is left out: that of its
    module `trainer`.
    """
    given, logger = args.model_init_kwargs, logging.getLogger(f"trl.trainer.{trainer}")
    if given is not None:
        args.model_init_kwargs = {name: value for name, value in given.items() if not name.startswith("thinking_")}
    logger.addFilter(_is_no_warning_of_init_kwargs)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_warning_of_init_kwargs)
        args.model_init_kwargs = given


def _is_no_warning_of_init_kwargs(record):
    return "`model_init_kwargs` will be ignored" not in record.getMessage()


def check_reference(args, model, has_adapter: bool) -> None:
    """Raises a `ValueError` for a KL penalty to a reference model that can't be loaded from anywhere."""
    if args.beta and not (isinstance(model, str) or model.config.name_or_path or has_adapter):
        raise ValueError(
            f"`beta={args.beta}` needs a reference model, which is loaded from the folder or Hub name that the model "
            "came from, and this model has none. Save it with `save_pretrained` and load it from there, or set "
            "`beta=0`."
        )


def is_reference(trainer, model) -> bool:
    """Whether a model of [`~trl.GRPOTrainer`] is the reference, be it the policy without its adapter."""
    if model is trainer.ref_model:
        return True
    model = trainer.accelerator.unwrap_model(model)
    if not is_peft_model(model):
        return False
    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return layer.disable_adapters or "ref" in layer.active_adapters


def reference_thinks(trainer, thinking_mode: str) -> bool:
    """
    Whether the reference is a checkpoint that thinks in the policy's mode: then it is what the training began with,
    and is told the thoughts. A plain checkpoint sees tokens, as in the paper.
    """
    if not trainer.beta:
        return False
    if trainer.ref_model is not None:
        config = trainer.accelerator.unwrap_model(trainer.ref_model).config
        return config.model_type.startswith("thinking_") and config.thinking_mode == thinking_mode
    path = trainer.accelerator.unwrap_model(trainer.model).get_base_model().config.name_or_path
    saved = PreTrainedConfig.get_config_dict(path)[0] if path else {}
    return saved.get("thinking_mode") == thinking_mode


class SyncReferenceCallback(SyncRefModelCallback):
    """Differs from SyncRefModelCallback in a reference of a plain checkpoint, which has no thinking modules."""

    @staticmethod
    def sync_target_model(model, target_model, alpha):
        parameters = dict(model.named_parameters())
        shared = [parameters[name] for name, _ in target_model.named_parameters()]
        SyncRefModelCallback.sync_target_model(SimpleNamespace(parameters=lambda: shared), target_model, alpha)
