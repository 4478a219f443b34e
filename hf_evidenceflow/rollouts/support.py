"""What can run over shared prompts, and a check of a model's attention before the first rollout and update."""

from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from ..models.thinking.cache_argument import CACHE
from .packed_prompts import pack_prompts
from .prefill import prefill
from .shared_prompt_attention import allow_packed_prompts, shared_prompt_passes
from .shared_prompt_cache import SHARED_LAYERS, SharedPromptCache, SharedPromptLayer


# Settings, with their neutral values, whose logits processors remember the rows that they began with
_ROW_BOUND = {
    "guidance_scale": 1,
    "watermarking_config": None,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
}
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2  # of the largest logit
_CHECKED_TOKENS = 8


def model_reason(model) -> str | None:
    """Why the rows of a model cannot share prompts, whatever its layers keep, or `None`."""
    config = model.config.get_text_config()
    # transformers does not set the flag of models with linear attention
    stateful = LinearAttentionLayer in cache_layer_kinds(model)
    if model.config.is_encoder_decoder or not (model._supports_attention_backend or stateful):
        return f"the attention of {type(model).__name__} does not go through transformers' attention interface"
    if rotary := _length_dependent_rotary(config):
        return f"the frequencies of its rotary embedding (`rope_type={rotary!r}`) depend on the longest row of a pass"
    if isinstance(next(model.parameters()), DTensor):
        return "its weights are sharded, so that processes whose rows end at different steps would wait for each other"
    if model.training and getattr(config, "attention_dropout", 0):
        return f"`attention_dropout={config.attention_dropout}` is active in training mode"
    return None


def layers_reason(model) -> str | None:
    """Why the rows of a model cannot share prompts while they are decoded, or `None`."""
    others = sorted(kind.__name__ for kind in cache_layer_kinds(model) - set(SHARED_LAYERS))
    return f"the model has cache layers of the kinds {others}" if others else model_reason(model)


def cache_layer_kinds(model) -> set[type]:
    """Classes of the layers of a model's own cache."""
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def reason_against(model, generation_config, model_kwargs) -> str | None:
    """
    Why the engine cannot run a call of `generate` with this prepared configuration and these inputs, or `None`.
    """
    if reason := layers_reason(model):
        return reason
    if generation_config.num_beams not in (None, 1):
        return f"`num_beams={generation_config.num_beams}`"
    if generation_config.use_cache is False:
        return "`use_cache=False`"
    if generation_config.cache_implementation not in (None, "dynamic"):
        return f"`cache_implementation={generation_config.cache_implementation!r}`; it brings a cache of its own"
    if generation_config.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if getattr(generation_config, name):
                return f"`{name}=True` is not recorded"
    for name, neutral in _ROW_BOUND.items():
        if (value := getattr(generation_config, name)) not in (None, neutral):
            return f"`{name}={value!r}` keeps something for each row, and rows come and go"
    past = model_kwargs.get(CACHE)
    if past is not None and (past.get_seq_length() or getattr(past, "_is_user_defined", False)):
        return "`past_key_values` is given, and rows that share a prompt have a cache of their own"
    for name in ("streamer", "synced_gpus", "assistant_model", "inputs_embeds"):
        given = model_kwargs.get(name)
        if given is not None and given is not False:
            return f"`{name}` is not supported"
    return None


def _length_dependent_rotary(config) -> str | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    # Of all layers, or by their type
    each = [parameters] if "rope_type" in parameters else parameters.values()
    types = [item["rope_type"] for item in each if isinstance(item, dict) and "rope_type" in item]
    return next((kind for kind in types if "dynamic" in kind or kind == "longrope"), None)


def attention_reason(model) -> str | None:
    """
    Why a model's attention cannot run over a shared prompt, or `None`: one decoding step is compared with one over the
    stock cache, without dropout and gradient checkpointing, which would leave out the cache. Any weights will do.
    """
    with without_training(model):
        try:
            return _attention_reason(model)
        except (AttributeError, TypeError, ValueError) as error:
            return f"{type(model).__name__} does more with cached keys and values than attend ({error})"


@torch.no_grad()
def packing_reason(model) -> str | None:
    """
    Why a model cannot run over [`PackedPrompts`], or `None`: a packed row is compared with the rows in it.
    """
    if reason := model_reason(model):
        return reason
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    kinds = {kind.__name__ for kind in cache_layer_kinds(model) - {DynamicLayer}}  # windows stand in no other field
    if others := sorted(kinds | layer_types - {"full_attention"}):
        return f"the model has layers of the types {others}, and only full attention is supported"
    with without_training(model):
        return _packing_reason(model)


@contextmanager
def without_training(model):
    """Within it, a model is in evaluation mode, but for its linear layers."""
    # Not linear layers: bitsandbytes repacks 4-bit weights in evaluation mode, on CPUs with AVX512-BF16
    training = [module for module in model.modules() if module.training and not isinstance(module, torch.nn.Linear)]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def checked_tokens(model) -> torch.Tensor:
    """
    Ids of the tokens that a check runs on, from the lower half of the vocabulary: the first ones are special tokens,
    on whose states in half precision a trained model is chaotic.
    """
    return (torch.arange(1, _CHECKED_TOKENS + 1) * model.config.get_text_config().vocab_size) // (2 * _CHECKED_TOKENS)


def _packing_reason(model):
    device = model.get_input_embeddings().weight.device
    tokens = checked_tokens(model).to(device)
    rows = torch.stack([tokens, tokens.roll(1), tokens])
    rows[1:, :4] = rows[0, :4]  # two of one prompt
    rows[2, 0] = rows[0, 1]
    (pack,) = pack_prompts(rows, torch.ones_like(rows), rows.shape[1] - 4)
    allow_packed_prompts()
    body = model.base_model  # outside what accelerate wraps: half precision would hide and show gaps
    with torch.autocast(device.type, enabled=False):
        expected = body(input_ids=rows, use_cache=False).last_hidden_state[:, 4:].flatten(0, 1)[pack.sources]
        try:
            found = body(
                input_ids=pack.ids,
                position_ids=pack.positions,
                attention_mask=pack.mask(model.dtype),
                packed_prompts=pack,
                use_cache=False,
            ).last_hidden_state[0, pack.places]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            return f"{type(model).__name__} cannot be given a packed row ({error})"
    gap = ((found - expected).abs().max() / expected.abs().max()).item()
    if gap <= (_HALF_TOLERANCE if torch.finfo(found.dtype).bits < 32 else _TOLERANCE):  # NaN is not
        return None
    return f"a packed row does not give the states of {type(model).__name__}'s rows (off by {gap:.2g} of the largest)"


def _attention_reason(model):
    device = model.get_input_embeddings().weight.device
    tokens = checked_tokens(model).tolist()
    logits, prompt_cache, mask = prefill(model, [tokens], device)
    shared = SharedPromptCache(2, 1, len(tokens), 1, device, model.dtype)
    shared.put_prompts(0, prompt_cache, mask)
    shared.set_rows([0, 0], 1)
    shared.set_steps([0, 0])
    token = logits.argmax(-1)
    inputs = {"use_cache": True, "logits_to_keep": 1}
    position = torch.full((2, 1), len(tokens), device=device)
    with shared_prompt_passes():
        found = model(input_ids=token.expand(2, 1), position_ids=position, **{CACHE: shared}, **inputs).logits
    expected = model(input_ids=token[None], position_ids=position[:1], **{CACHE: prompt_cache}, **inputs).logits
    gap = ((found - expected).abs().max() / expected.abs().max()).item()
    values = next((layer.values for layer in shared.layers if isinstance(layer, SharedPromptLayer)), found)
    half = torch.finfo(values.dtype).bits < 32  # in the pass, autocast or not
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    if gap <= tolerance:
        return None
    return (
        f"the attention of {type(model).__name__} over a shared prompt does not give the logits of its own cache (off "
        f"by {gap:.2g} of the largest logit, tolerance {tolerance:.2g})"
    )
