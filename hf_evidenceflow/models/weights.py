"""Tells whole model folders from damaged ones, and names the folder and what to do in every error of loading one."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..files import read_json, read_tensors, read_text, refuse_non_finite as refuse_nan
from .crosslayer.extra_parameters import EXTRA_PARAMETER_NAMES
from .thinking.number_checks import check_numbers, refuse_non_finite
from .thinking.thinking_residual import THINKING_MODULES


_PACKAGE = Path(__file__).resolve().parents[1]

_AGAIN = "Copy or download it again, or take an earlier checkpoint."
_JSON_FILES = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
_JSON_FILES += ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def broken_weights(folder: str | os.PathLike) -> str | None:
    """
    Say what is wrong with the safetensors files of a folder, from their headers alone: the first file that is cut
    short, unreadable or missing from a sharded set, with the reason, or `None`. Checkpoints in the folder are left
    out.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    names: dict[str, Collection[str]] = {}
    config = folder / "config.json"
    quantized = not config.is_file() or b"quantization_config" in config.read_bytes()
    for weights in sorted(folder.rglob("*.safetensors")):
        name = str(weights.relative_to(folder))
        if name.startswith("checkpoint-"):
            continue
        try:
            with safe_open(weights, framework="np") as file:
                names[name] = set(file.keys())
                whole = [key for key in names[name] if _is_whole(key, file.get_slice(key).get_dtype())]
        except (SafetensorError, OSError) as error:
            return f"{name} cannot be opened, it may be cut short ({error})"
        if whole and not quantized:
            return f"{name} holds whole numbers for `{min(whole)}`, and config.json has no `quantization_config`"
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            listed = read_json(index).get("weight_map")
        except (ValueError, OSError) as error:
            return str(error)
        if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
            return f"{index.name} has no `weight_map` of names to files"
        for weight, shard in sorted(listed.items(), key=lambda item: item[1]):
            if shard not in names:
                return f"{shard} is missing, which {index.name} lists"
            if weight not in names[shard]:
                return f"{shard} lacks the weight `{weight}`, which {index.name} says it holds"
    return None


def _is_whole(name: str, dtype: str) -> bool:
    return name.endswith("weight") and not dtype.startswith(("F", "BF"))


def check_model_folder(folder: str | os.PathLike) -> None:
    """
    Read the small files of a model, adapter or tokenizer folder, and the headers of its weights, before any is used.

    Args:
        folder (`str` or `os.PathLike`):
            Local folder; a name that may be one of the Hub passes.

    Raises:
        `OSError`: if there is no such folder, weights are cut short or missing, or a file cannot be read.
        `ValueError`: if a JSON file is none.
    """
    name, folder = str(folder), Path(folder)
    if not folder.is_dir():
        # Not left to the Hub, which without a network is asked for minutes
        if not folder.exists() and (name.startswith((*"/.~", f"outputs{os.sep}")) or name.count("/") > 1):
            raise FileNotFoundError(f"There is no folder {folder}. Check the path; it is relative to {Path.cwd()}.")
        if not folder.exists():
            _check_hub(name)
        return
    for name in _JSON_FILES:
        if (folder / name).exists() or (folder / name).is_symlink():
            # Some stock configs hold infinity
            refuse_nan(read_json(folder / name, allow_nan=True), str(folder / name), infinite=False)
    for template in folder.glob("*.jinja"):
        read_text(template)
    if problem := broken_weights(folder):
        raise OSError(f"The weights in `{folder}` are damaged: {problem}. {_AGAIN}")


def _check_hub(name: str) -> None:
    """One question for a name of which nothing is cached: a Hub that is silent is asked six times for each file."""
    try:
        if not any(isinstance(try_to_load_from_cache(name, file), str) for file in _JSON_FILES):
            HfApi().model_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return  # an answer, which loading puts into words
    except Exception as error:  # of the library below, which is another one in each version
        raise OSError(
            f"`{name}` is no local folder, and the Hub did not answer ({type(error).__name__}: {error}). Check the "
            "name and the network, or give the path of a local copy."
        ) from error


@contextlib.contextmanager
def naming_folder(path: str | os.PathLike) -> Iterator[None]:
    """
    Give errors of other libraries in the `with` block the folder or Hub name and what to do; errors of ours pass.

    Any other error becomes the cause of an `OSError`, `ImportError` or `ValueError`.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if raised_here(error):
            raise
        kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if not Path(path).exists():
            reason = f"it is no local folder; {reason}"
        raise kind(
            f"`{path}` cannot be loaded ({reason if len(reason) <= 600 else reason[:600] + ' ...'}). Check that its "
            "files belong together; correct what is named here, or copy or download it again."
        ) from error


def raised_here(error: Exception) -> bool:
    """Whether the error was raised by a line of this package, rather than below one."""
    at = error.__traceback__
    while at.tb_next is not None:
        at = at.tb_next
    return Path(at.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)


def load_checked(model_class, path: str | os.PathLike, **kwargs):
    """
    `model_class.from_pretrained(path, **kwargs)`, but what is not wholly the checkpoint's is an error that names it:
    see [`check_model_folder`], [`naming_folder`] and [`check_loaded`].

    Returns the model, with the loading info if `output_loading_info=True`.
    """
    with_info = kwargs.pop("output_loading_info", False)
    check_dtype(kwargs.get("dtype"))
    check_model_folder(path)
    with naming_folder(path):
        model, info = model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    check_loaded(model, info, path)
    return (model, info) if with_info else model


def check_dtype(dtype: str | torch.dtype | None) -> None:
    """Raises a `ValueError` for a text that is neither `"auto"` nor the name of one of torch's types of floats."""
    if not isinstance(dtype, str) or dtype == "auto":
        return
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be a type such as 'float32' or 'bfloat16', or 'auto', got {dtype!r}.")


def check_loaded(model: torch.nn.Module, info: Mapping[str, Any], path: str | os.PathLike) -> None:
    """
    Refuse a model that is not wholly what its checkpoint holds, by the `info` that `from_pretrained` gave with it.
    Weights of our own that a plain checkpoint cannot have, of thinking and of cross-layer variants, may be missing.

    Raises:
        `ValueError`: if weights are missing, the checkpoint has more layers than the model, or a weight is NaN or
        infinite.
    """
    ours = (*THINKING_MODULES, *EXTRA_PARAMETER_NAMES)
    if missing := sorted(name for name in info["missing_keys"] if not any(part in name for part in ours)):
        raise ValueError(
            f"`{path}` lacks weights of {type(model).__name__}, such as `{missing[0]}`: they would be random. Check "
            f"that it is a whole checkpoint of such a model and that its config.json is its own. {_AGAIN}"
        )
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    own = {_LAYER.sub("", name) for name in model.state_dict()}  # not those of a vision tower
    beyond = [
        name
        for name in info["unexpected_keys"]
        if any(int(n) >= layers for n in _LAYER.findall(name)) and _LAYER.sub("", name) in own
    ]
    if beyond:
        raise ValueError(
            f"`{path}` holds weights such as `{min(beyond)}`, but `num_hidden_layers` is {layers}: the model would be "
            "cut. Correct config.json."
        )
    if model.config.model_type in ("llama", "qwen2", "qwen3"):  # ours check themselves
        check_numbers(model.config)
    refuse_non_finite(model, f"`{path}`")


def check_adapter(model: torch.nn.Module, folder: str | os.PathLike) -> None:
    """
    Refuse an adapter, named `"default"`, that is not wholly what its file holds, as PEFT only warns. Of anything but a
    local folder, such as a Hub name, only the numbers are checked.

    Raises:
        `ValueError`: if weights are missing or left over, or one is NaN or infinite.
    """
    from peft import get_peft_model_state_dict

    path = Path(folder) / "adapter_model.safetensors"
    if path.is_file():
        found, expected = set(read_tensors(path)), set(get_peft_model_state_dict(model, save_embedding_layers=False))
        if differing := sorted(found ^ expected):
            lacking = [name for name in differing if name in expected]
            raise ValueError(
                f"`{path}` {'lacks' if lacking else 'holds'} the weight `{(lacking or differing)[0]}`, which "
                f"{'the adapter of adapter_config.json has' if lacking else 'adapter_config.json has no place for'}. "
                f"Correct adapter_config.json. {_AGAIN}"
            )
    refuse_non_finite(model, f"the adapter `{folder}`")
