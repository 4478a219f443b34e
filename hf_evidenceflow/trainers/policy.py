"""Loads the policy of [`HRPOTrainer`] from a path, and keeps its reference model in step with it."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

from transformers import set_seed
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import create_model_from_path

from ..models.auto_thinking import load_thinking_model


def load_policy(path_or_id: str, args, quantization_config=None):
    """
    Load a thinking model as TRL loads the model of a path: its seed, its dtype and its devices.

    Args:
        path_or_id (`str`):
            Hub name or local folder.
        args ([`HRPOConfig`]):
            Arguments; `model_init_kwargs` may hold fields of the thinking config too.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            How to quantize the base model.

    Raises:
        `ValueError`: if the quantization is in `model_init_kwargs` too.
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
    return create_model_from_path(path_or_id, SimpleNamespace(from_pretrained=load_thinking_model), **kwargs)


@contextmanager
def plain_init_kwargs(args):
    """
    Inside, `model_init_kwargs` has no fields of the thinking config: TRL loads reference and reward models with it.

    TRL's warning that it is not used, since the policy is loaded, would be wrong there, and is left out.
    """
    given, logger = args.model_init_kwargs, logging.getLogger("trl.trainer.grpo_trainer")
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


class SyncReferenceCallback(SyncRefModelCallback):
    """Differs from SyncRefModelCallback in a reference of a plain checkpoint, which has no thinking modules."""

    @staticmethod
    def sync_target_model(model, target_model, alpha):
        parameters = dict(model.named_parameters())
        shared = [parameters[name] for name, _ in target_model.named_parameters()]
        SyncRefModelCallback.sync_target_model(SimpleNamespace(parameters=lambda: shared), target_model, alpha)
