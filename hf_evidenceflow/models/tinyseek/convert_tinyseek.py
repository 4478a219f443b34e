"""
Converts a checkpoint of the published TinySeek, with its configuration and vocabulary, for `from_pretrained`.

```bash
python -m hf_evidenceflow.models.tinyseek.convert_tinyseek --checkpoint Shared_TinySeek_Pre_final.pkl \
    --config shared_model_config.json --vocab vocab.json --output outputs/tinyseek
```

The converted model computes what the published code computes without noise on its router, up to rounding. The
published code draws that noise in evaluation too; here it stays out.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ...files import read_json, readable_file
from .configuration_tinyseek import TinySeekConfig
from .modeling_tinyseek import TinySeekForCausalLM


# Key of the published JSON -> field of TinySeekConfig
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "d_r": "qk_rope_head_dim",
    "hidden": "moe_intermediate_size",
    "other_experts": "n_routed_experts",
    "shared_experts": "n_shared_experts",
    "keep": "num_experts_per_tok",
    "dropout": "hidden_dropout",
    "scale": "router_init_std",
    "alpha": "router_aux_loss_coef",
    "pad_idx": "pad_token_id",
}
_OTHER_KEYS = ("d_c", "ro_theta", "device")
# Words, digits and signs one by one, and Chinese characters; the rest of a text is dropped. The class of signs is
# Python's [^\w\s], which the tokenizer's regular expressions take otherwise
PATTERN = r"<\|\s*im_end\s*\|>|[a-zA-Z]+|\d|[^\p{L}\p{N}_\s\x{1c}-\x{1f}]|[\x{4e00}-\x{9fff}]"
_SPECIAL_TOKENS = {"pad_token": "[PAD]", "eos_token": "<|im_end|>", "mask_token": "[MASK]", "unk_token": "[UNK]"}


def convert_original_config(original: Mapping[str, Any]) -> TinySeekConfig:
    """
    The [`TinySeekConfig`] of a published model, from the content of its JSON file.

    Raises:
        `ValueError`: if a key is missing or unknown, or a value is out of its range.
    """
    known = {*CONFIG_KEYS, *_OTHER_KEYS}
    missing, unknown = sorted(known - {"device"} - set(original)), sorted(set(original) - known)
    if missing or unknown:
        raise ValueError(
            f"The configuration is not that of a published TinySeek: missing keys {missing}, unknown keys {unknown}."
        )
    for key in known & set(original) - {"device"}:
        if isinstance(original[key], bool) or not isinstance(original[key], (int, float)):
            raise ValueError(f"`{key}` must be a number, got {original[key]!r}.")
    size = original["d_model"]
    if size < 2:
        raise ValueError(f"`d_model` must be at least 2, got {size}.")
    fields = {field: original[key] for key, field in CONFIG_KEYS.items()}
    return TinySeekConfig(
        **fields,
        q_lora_rank=original["d_c"],
        kv_lora_rank=original["d_c"],
        rope_parameters={"rope_type": "default", "rope_theta": float(original["ro_theta"])},
        # The published norm divides by the unbiased deviation, whose square has 1e-13 added
        layer_norm_eps=1e-13 * (size - 1) / size,
    )


def convert_original_checkpoint(
    state_dict: Mapping[str, torch.Tensor], config: TinySeekConfig | Mapping[str, Any]
) -> TinySeekForCausalLM:
    """
    The [`TinySeekForCausalLM`] of a published checkpoint, in eval mode and fp32.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Its weights, under the published names.
        config ([`TinySeekConfig`] or `Mapping[str, Any]`):
            Its configuration, converted or as published.

    Raises:
        `ValueError`: if a weight is missing, unknown or of another shape than the configuration says.

    Example:

    ```python
    >>> state_dict = torch.load("Shared_TinySeek_Pre_final.pkl", map_location="cpu", weights_only=True)
    >>> model = convert_original_checkpoint(state_dict, json.load(open("shared_model_config.json")))
    ```
    """
    if not isinstance(config, TinySeekConfig):
        config = convert_original_config(config)
    expected = original_shapes(config)
    missing, unknown = sorted(expected.keys() - state_dict.keys()), sorted(state_dict.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            "The checkpoint does not fit the configuration (is `other_experts`, `shared_experts` or the kind of model "
            f"another?): {len(missing)} weights missing {missing[:4]}, {len(unknown)} unknown {unknown[:4]}."
        )
    for name, shape in expected.items():
        if tuple(state_dict[name].shape) != shape:
            raise ValueError(
                f"`{name}` has shape {tuple(state_dict[name].shape)}, the configuration asks for {shape}."
            )
    model = TinySeekForCausalLM(config)
    converted = _converted({name: tensor.float() for name, tensor in state_dict.items()}, config)
    model.load_state_dict(converted)
    return model.eval()


def original_shapes(config: TinySeekConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a published checkpoint."""
    size, latent, rotary = config.hidden_size, config.kv_lora_rank, config.qk_rope_head_dim
    linear = {
        "synonymous_layer.mla.w_dq": (latent, size),
        "synonymous_layer.mla.w_dkv": (latent, size),
        "synonymous_layer.mla.w_qr": (rotary, latent),
        "synonymous_layer.mla.w_kr": (rotary, size),
        "synonymous_layer.mla.w_uq": (size, latent),
        "synonymous_layer.mla.w_uk": (size, latent),
        "synonymous_layer.mla.w_uv": (size, latent),
        "synonymous_layer.mla.w_o": (size, size),
        "fc": (config.vocab_size, size),
    }
    for kind, count in (("experts", config.n_routed_experts), ("shared_experts", config.n_shared_experts)):
        for expert in range(count):
            prefix = f"synonymous_layer.moe_ffn.{kind}.{expert}"
            linear[f"{prefix}.fc1"] = (config.moe_intermediate_size, size)
            linear[f"{prefix}.fc2"] = (size, config.moe_intermediate_size)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    for norm in ("norm1", "norm2"):
        shapes |= {f"synonymous_layer.{norm}.{part}": (size,) for part in ("gamma", "beta")}
    for router in ("w_g", "w_n"):
        shapes[f"synonymous_layer.moe_ffn.{router}"] = (size, config.n_routed_experts)
    shapes["tokenEmbedding.tokenEmbedding.weight"] = (config.vocab_size, size)
    return shapes


def _converted(old, config):
    heads, size = config.num_attention_heads, config.hidden_size
    mla, moe = "synonymous_layer.mla.", "synonymous_layer.moe_ffn."
    block = "model.layers.0."

    def per_head(name):  # [A, D, ...]
        return old[mla + name].unflatten(0, (heads, -1))

    def stacked(kind, count, part):
        return [old[f"{moe}{kind}.{expert}.{part}"] for expert in range(count)]

    new = {
        "model.embed_tokens.weight": old["tokenEmbedding.tokenEmbedding.weight"],
        "lm_head.weight": old["fc.weight"],
        "lm_head.bias": old["fc.bias"],
        f"{block}mlp.gate.weight": old[f"{moe}w_g"].T.contiguous(),
        f"{block}mlp.gate.noise_weight": old[f"{moe}w_n"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        attention = {
            "q_a_proj": old[f"{mla}w_dq.{kind}"],
            "q_b_proj": old[f"{mla}w_uq.{kind}"],
            "q_rope_proj": old[f"{mla}w_qr.{kind}"],
            "kv_a_proj_with_mqa": torch.cat([old[f"{mla}w_dkv.{kind}"], old[f"{mla}w_kr.{kind}"]]),
            "kv_b_proj": torch.cat([per_head(f"w_uk.{kind}"), per_head(f"w_uv.{kind}")], dim=1).flatten(0, 1),
            "o_proj": old[f"{mla}w_o.{kind}"],
        }
        new |= {f"{block}self_attn.{name}.{kind}": tensor for name, tensor in attention.items()}
        suffix = "" if kind == "weight" else "_bias"
        for old_part, part in (("fc1", "up_proj"), ("fc2", "down_proj")):
            experts = stacked("experts", config.n_routed_experts, f"{old_part}.{kind}")
            new[f"{block}mlp.experts.{part}{suffix}"] = torch.stack(experts)
    if count := config.n_shared_experts:
        shared = f"{block}mlp.shared_experts."
        new[f"{shared}up_proj.weight"] = torch.cat(stacked("shared_experts", count, "fc1.weight"))
        new[f"{shared}up_proj.bias"] = torch.cat(stacked("shared_experts", count, "fc1.bias"))
        new[f"{shared}down_proj.weight"] = torch.cat(stacked("shared_experts", count, "fc2.weight"), dim=1)
        new[f"{shared}down_proj.bias"] = torch.stack(stacked("shared_experts", count, "fc2.bias")).sum(0)
    for old_norm, norm in (("norm1", "attention_layernorm"), ("norm2", "mlp_layernorm")):
        # nn.LayerNorm divides by the biased deviation
        new[f"{block}{norm}.weight"] = old[f"synonymous_layer.{old_norm}.gamma"] * ((size - 1) / size) ** 0.5
        new[f"{block}{norm}.bias"] = old[f"synonymous_layer.{old_norm}.beta"]
    return new


def convert_original_vocabulary(vocabulary: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """
    The tokenizer of a published vocabulary, ids by token; it gives the published ids. Names of special tokens in a
    text are split like any other text, as in the published code.

    Raises:
        `ValueError`: if it is no such vocabulary.
    """
    if lacking := [token for token in _SPECIAL_TOKENS.values() if token not in vocabulary]:
        raise ValueError(f"The vocabulary lacks {', '.join(lacking)}: is it a published TinySeek's `vocab.json`?")
    ids = list(vocabulary.values())
    if not all(type(index) is int and index >= 0 for index in ids) or len(set(ids)) != len(ids):
        raise ValueError("The ids of the vocabulary must be different whole numbers from 0.")
    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=_SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True, **_SPECIAL_TOKENS)


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """
    Weights of a published checkpoint, without running code from the file; a `ValueError` if it is no plain state dict.
    """
    path = readable_file(path)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is no checkpoint that can be loaded safely ({type(error).__name__}). It must be a state dict "
            "(`torch.save(model.state_dict(), ...)`), whole, and not a pickled model."
        ) from error
    if not isinstance(state_dict, dict) or not all(torch.is_tensor(tensor) for tensor in state_dict.values()):
        raise ValueError(
            f"{path} holds no plain state dict (names and tensors), got "
            f"{type(state_dict).__name__}. Give the file of `torch.save(model.state_dict(), ...)`."
        )
    return state_dict


def _convert_file(path: Path, convert):
    content = read_json(path)
    with _naming(path):
        return convert(content)


@contextlib.contextmanager
def _naming(path: Path):
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be converted: {reason} Correct it, or give the published file.") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="published weights, a state dict")
    parser.add_argument("--config", type=Path, required=True, help="published configuration, JSON")
    parser.add_argument("--vocab", type=Path, help="published vocabulary, JSON; without it no tokenizer is written")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        config = _convert_file(args.config, convert_original_config)
        tokenizer = None if args.vocab is None else _convert_file(args.vocab, convert_original_vocabulary)
        if tokenizer is not None and len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{args.vocab} has {len(tokenizer)} tokens, the model {config.vocab_size}. Give files of one model."
            )
        state_dict = load_checkpoint(args.checkpoint)
        with _naming(args.checkpoint):
            model = convert_original_checkpoint(state_dict, config)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    model.save_pretrained(args.output)
    if tokenizer is not None:
        tokenizer.save_pretrained(args.output)
    print(f"{args.output}: {model.num_parameters():,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
