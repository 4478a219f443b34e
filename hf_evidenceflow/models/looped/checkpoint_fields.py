"""Reads the configs of other model types as fields of a looped Llama; the names of the weights are the same.

Names and meanings of Ouro's and Nanbeige's fields are those of their published configuration files.
"""

from typing import Any


LOOPED_LLAMA = "looped_llama"

_DROPPED = (
    "architectures",
    "auto_map",
    "model_type",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)
_OURO = ("total_ut_steps", "early_exit_threshold", "early_exit_step", "chunk_size")
# What Nanbeige's code can do and a looped Llama can't; the published checkpoints have all of it off
_NANBEIGE_OFF = (
    "qk_layernorm",
    "emb_neighbor_num",
    "insert_ngram_layer_idx",
    "ngram_insert_all_layers",
    "enable_hyper_connection",
    "enable_depth_attention",
    "loop_share_kv",
)
_NANBEIGE = (
    "num_loops",
    "loop_loss_weights",
    "skip_loop_final_norm",
    "enable_double_loop_split",
    "loop_middle_layers",
)


def looped_fields(saved: dict[str, Any], model_type: str) -> dict[str, Any]:
    """
    Fields of [`LoopedLlamaConfig`], of type `model_type`, from those of a checkpoint's `config.json`.

    Raises:
        `ValueError`: if the checkpoint is of a type that cannot be looped, or has a feature that would be lost.
    """
    source = saved.get("model_type", model_type)
    if source in (model_type, LOOPED_LLAMA):
        return saved
    if source not in _READERS:
        raise ValueError(
            f"A checkpoint of type `{source}` cannot be loaded as a looped Llama. Take one of type "
            f"{', '.join(f'`{name}`' for name in (*_READERS, LOOPED_LLAMA))}."
        )
    if _slides(saved):
        raise ValueError(
            "The checkpoint has layers with a sliding window, which loops do not support. Take one without, or set "
            "`use_sliding_window` to false in its config.json if its texts are short."
        )
    fields = {name: value for name, value in saved.items() if name not in _DROPPED}
    return _READERS[source](fields) | {"model_type": model_type}


def _slides(saved):
    if saved.get("model_type") == "mistral":
        return saved.get("sliding_window") is not None
    windows = [kind for kind in saved.get("layer_types") or () if kind != "full_attention"]
    last_layers = saved.get("max_window_layers", 28) < saved.get("num_hidden_layers", 32)
    given = saved.get("layer_types") is not None
    return bool(saved.get("use_sliding_window")) and (bool(windows) if given else last_layers)


def _read_qwen2(fields):
    return fields | {"qkv_bias": True}


def _read_qwen3(fields):
    return fields | {"qk_norm": True}


def _read_ouro(fields):
    loops, threshold = fields.get("total_ut_steps", 4), fields.get("early_exit_threshold")
    own = {"num_loops": loops, "loop_norm": True, "exit_gate": True, "sandwich_norm": True}
    own["early_exit_threshold"] = 1.0 if threshold is None else threshold
    return {name: value for name, value in fields.items() if name not in _OURO} | own


def _read_nanbeige(fields):
    if found := [name for name in _NANBEIGE_OFF if fields.get(name)]:
        raise ValueError(
            f"The checkpoint uses {', '.join(f'`{name}`' for name in found)} of Nanbeige's code, which a looped Llama "
            "does not have. The published Nanbeige4.2 checkpoints have all of these off."
        )
    layers, weights = fields["num_hidden_layers"], fields.get("loop_loss_weights") or ()
    if fields.get("enable_double_loop_split"):
        middle = fields.get("loop_middle_layers") or layers // 2
        start = (layers - middle) // 2
        blocks, loops, norm = [[start, start + middle]], (layers + middle) // middle, False
    else:
        blocks, loops = None, len(weights) + 1 if weights else fields.get("num_loops", 1)
        norm = not fields.get("skip_loop_final_norm", False)
    dropped = (*_NANBEIGE, *_NANBEIGE_OFF)
    kept = {name: value for name, value in fields.items() if name not in dropped and not _is_idle(name)}
    return kept | {"num_loops": loops, "loop_blocks": blocks, "loop_norm": norm}


def _is_idle(name):
    """Settings of Nanbeige's features that are off."""
    return name.startswith(("ngram_", "emb_", "mhc_", "depth_attention_", "enable_", "skip_ngram", "num_residual"))


_READERS = {
    "llama": dict,
    "mistral": dict,
    "qwen2": _read_qwen2,
    "qwen3": _read_qwen3,
    "ouro": _read_ouro,
    "nanbeige": _read_nanbeige,
}
