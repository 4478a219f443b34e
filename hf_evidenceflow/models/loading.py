"""Loads what the recipes measure: a checkpoint, or an adapter on its base, with its tokenizer, whole or not at all."""

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import cached_file

from ..data.tokenizer_loading import load_tokenizer
from ..peft.adapter_file import read_adapter
from .weights import check_adapter, check_model_folder, load_checked, naming_folder


def load_model(
    path_or_id: str,
    base_model: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    thinking_mode: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs,
):
    """
    Load a causal LM, thinking or not, for evaluation.

    Args:
        path_or_id (`str`):
            Hub name or local folder of a checkpoint, or of an adapter, which is put on its base.
        base_model (`str`, *optional*):
            Base of an adapter; if not given, the one named in it.
        tokenizer (`str`, *optional*):
            Folder or Hub name of the tokenizer; if not given, the model's, or the base's.
        device (`str`, *optional*):
            If not given, the GPU where there is one.
        thinking_mode (`str`, *optional*):
            Mode of a thinking model; if not given, the checkpoint's.
        kwargs:
            Further arguments of `from_pretrained`, such as `dtype`; those that are `None` are left out.

    Returns:
        `tuple`: the model, or the [`~peft.PeftModel`] around it, in eval mode; and its tokenizer.

    Raises:
        `OSError`: if there is no such folder. `ValueError`: if weights are damaged or missing, the folder is no
        checkpoint, there is no tokenizer, or this machine has no such device.
    """
    path, place = _existing(path_or_id), _usable_device(device)
    settings = {name: value for name, value in kwargs.items() if value is not None}
    trusted = {"trust_remote_code": True} if trust_remote_code else {}
    check_model_folder(path)
    adapter = read_adapter(path, revision=revision)
    if adapter is None and base_model is not None:
        raise ValueError(
            f"`base_model` was given, but `{path_or_id}` has no `adapter_config.json`. Leave `base_model` out."
        )
    base, base_revision = path, revision
    if adapter is not None:
        base = base_model or adapter["base_model_name_or_path"]
        base_revision = None if base_model else adapter.get("revision")
    try:
        model = load_checkpoint(base, revision=base_revision, **trusted, **settings)
    except FileNotFoundError as error:
        if adapter is None:
            raise
        raise FileNotFoundError(f"{error} It is the base of the adapter `{path_or_id}`: give `base_model`.") from error
    source, source_revision = _tokenizer_source(tokenizer, path, revision, base, base_revision)
    loaded = load_tokenizer(source, revision=source_revision, **trusted)
    if adapter is not None:
        from peft import PeftModel

        if len(loaded) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(loaded))  # tokens were added before the adapter was trained
        with naming_folder(path):
            model = PeftModel.from_pretrained(model, path, revision=revision)
        check_adapter(model, path)
    if thinking_mode is not None:
        _set_mode(model.config, thinking_mode, path_or_id)
    return model.to(place).eval(), loaded


def _usable_device(name):
    """The device of that name, if this machine has it; without a name the GPU where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        others = [f"{torch.accelerator.current_accelerator()}:{i}" for i in range(torch.accelerator.device_count())]
        raise ValueError(
            f"`device` must be one that this machine has ({', '.join(['cpu', *others])}), got {name!r}."
        ) from error


def _existing(path_or_id):
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return str(folder)
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1:
        raise FileNotFoundError(f"There is no folder `{path_or_id}`. Check the path of the model.")
    return path_or_id


def load_checkpoint(path_or_id, **settings):
    """
    A checkpoint of a causal LM, no adapter, with all of its weights; `settings` go to `from_pretrained`, errors are
    those of [`load_model`].
    """
    path = _existing(path_or_id)
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        found = sorted(inside.parent.name for inside in Path(path).glob("*/config.json"))
        raise ValueError(
            f"`{path}` has no `config.json`, so it is no checkpoint. "
            + (f"Did you mean one of its folders, {', '.join(found)}?" if found else "Check the path of the model.")
        )
    return load_checked(AutoModelForCausalLM, path, **settings)


def _tokenizer_source(tokenizer, path, revision, base, base_revision):
    """Where the tokenizer is, and its revision."""
    if tokenizer is not None:
        source, revision = tokenizer, None
    elif cached_file(path, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False):
        source = path
    else:
        source, revision = base, base_revision
    folder = Path(source).expanduser()
    if folder.is_dir() and not [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("*.model")]:
        raise ValueError(f"There is no tokenizer in `{source}`. Copy its files there: tokenizer.json and the others.")
    return str(folder) if folder.is_dir() else source, revision


def _set_mode(config, thinking_mode, path_or_id):
    if not config.model_type.startswith("thinking_"):
        raise ValueError(
            f"`thinking_mode={thinking_mode!r}` was given, but `{path_or_id}` is a `{config.model_type}` model, which "
            "does not think. Leave `thinking_mode` out, or first make a thinking model of it: "
            f"`load_thinking_model({path_or_id!r}, thinking_mode={thinking_mode!r}).save_pretrained(folder)`."
        )
    config.thinking_mode = thinking_mode
    config.check_thinking()
