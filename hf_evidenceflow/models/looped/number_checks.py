"""Refuses numbers that nothing can be computed with, in a config and in the weights of a checkpoint.

Each model folder has this file, since the code of a model on the Hub imports from its own folder only; a test holds
the copies together.
"""

import math

import torch


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta", "factor")
_UNLIMITED = "time_step_limit."  # infinity stands for no limit
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def check_numbers(config) -> None:
    """
    Raises a `ValueError` for NaN and infinity in any field of a config, for a size below 1, an epsilon or rotary base
    that is not above 0, a dropout outside [0, 1), and for a special token beyond the vocabulary.
    """
    for key, value in _numbers(vars(config)):
        name = key.rpartition(".")[2]
        if math.isnan(value) or (math.isinf(value) and not key.startswith(_UNLIMITED)):
            raise ValueError(f"`{key}` must be a finite number, got {value}. Correct the config.")
        if name in _SIZES and value < 1:
            raise ValueError(f"`{key}` must be at least 1, got {value}. Correct the config.")
        if name in _POSITIVE and not value > 0:
            raise ValueError(f"`{key}` must be above 0, got {value}. Correct the config.")
        if name.endswith("dropout") and not 0 <= value < 1:
            raise ValueError(f"`{key}` must be in [0, 1), got {value}. Correct the config.")
        if key.partition(".")[0] in _TOKENS and value >= config.vocab_size:
            raise ValueError(
                f"`{key}` must be below `vocab_size` ({config.vocab_size}), got {value}. Correct the config."
            )


def _numbers(fields, prefix=""):
    for name, value in fields.items():
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def refuse_non_finite(model, source) -> None:
    """Raises a `ValueError` for the first weight of a model, loaded from `source`, that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        # Sharded and quantized weights are of types of their own
        if type(values) is not torch.Tensor or values.is_meta or not values.numel() or not values.is_floating_point():
            continue
        # One pass through memory, unlike `isfinite`; it does not know the 8-bit types
        low, high = torch.aminmax(values if values.element_size() > 1 else values.float())
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~torch.isfinite(values.float())).sum())
            raise ValueError(
                f"The weight `{name}` of {source} holds {count} of {values.numel()} values that are NaN or infinite. "
                "Take an earlier checkpoint, or copy or download it again."
            )


class FiniteWeightsMixin:
    """Lets `from_pretrained` refuse weights that hold NaN or infinity; put before a model's other bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        refuse_non_finite(model, f"`{pretrained_model_name_or_path}`")
        return loaded
