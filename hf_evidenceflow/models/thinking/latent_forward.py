"""The forward pass in which a model thinks by itself, with gradients through its states.

A latent position gets its state from the position before it, so that thoughts are computed one after the other: the
text before them is one pass, each thought is one, the text after them is one. Gradients flow through states and cache.

Source: Hao et al. 2024, Coconut (arXiv 2412.06769); the parallel pass over target states is that of CoT2 (arXiv
2505.23648).

Shapes: B rows, T positions, C columns from the first latent position of any row to behind the last, M tokens of a
target, H hidden size, V vocabulary.
"""

import functools
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache_argument import CACHE
from .intervention import current_intervention
from .thinking_sources import average_embeddings


@dataclass
class LatentOutput(CausalLMOutputWithPast):
    """
    [`~transformers.modeling_outputs.CausalLMOutputWithPast`] with `states` `(B, C, H)`, those that
    [`ThinkingModelMixin`] takes as `thinking_states`, and `tokens` `(B, C)`, the ids that were fed.
    """

    states: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


@dataclass(frozen=True)
class LatentOptions:
    """
    How thoughts are computed.

    Args:
        backprop (`int`, *optional*):
            Thoughts through which a gradient flows back: every so many, counted from the last, states and cache are
            cut off. `None`: all.
        iterations (`int`, *optional*):
            Jacobi iteration: all thoughts at once, so many times, each from the states of the time before. As many as
            there are thoughts give the exact result. `None`: one thought after the other.
    """

    backprop: int | None = None
    iterations: int | None = None

    def __post_init__(self):
        for name in ("backprop", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or None, got {value}.")
        if self.backprop is not None and self.iterations is not None:
            raise ValueError(
                f"`backprop={self.backprop}` cuts thoughts that are computed one after the other, and "
                f"`iterations={self.iterations}` computes them all at once. Leave one of them out."
            )


def latent_columns(latent_mask: torch.Tensor) -> tuple[int, int]:
    """First latent column of any row, and the one behind the last, of a mask `(B, T)`; `(0, 0)` if there is none."""
    columns = latent_mask.any(0).nonzero().flatten().tolist()
    return (columns[0], columns[-1] + 1) if columns else (0, 0)


def _latent_cache(config):
    """A cache that gradients flow through: transformers overwrites the state of a linear attention in place."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            layer.update_recurrent_state = functools.partial(_set_recurrent_state, layer)
    return cache


def _set_recurrent_state(layer, recurrent_states, state_idx=0, **kwargs):
    layer.recurrent_states[state_idx] = recurrent_states
    layer.is_recurrent_states_initialized[state_idx] = True
    return recurrent_states


def _detach(cache):
    def cut(value):
        return value.detach() if isinstance(value, torch.Tensor) else value

    for layer in cache.layers:
        for name, value in vars(layer).items():
            is_states = isinstance(value, dict)
            setattr(layer, name, {key: cut(item) for key, item in value.items()} if is_states else cut(value))


class _Thinker:
    """One call: the model's parts, and the batch in columns."""

    def __init__(self, model, input_ids, attention_mask, latent_mask, options, kwargs):
        self.base, self.read_out, self.config = model.base_model, model.read_out, model.config
        self.method, self.source = model.config.thinking_method, model.thinking_source()
        self.embedding = model.get_input_embeddings().weight
        self.ids, self.latent = input_ids, latent_mask.bool()
        self.attention = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.positions = (self.attention.long().cumsum(1) - 1).clamp(min=0)
        self.start, self.stop = latent_columns(self.latent)
        self.options, self.kwargs = options, kwargs
        self.cache = _latent_cache(model.config)
        self.hidden, self.layers = [], []

    def run(self, first: int, last: int, ids, states=None, use_cache=True):
        """Pass over columns `first` to `last` with ids `(B, n)`; states `(B, c, H)` of the first c columns."""
        fused = {}
        if states is not None and self.method.fuses:
            mask = self.latent[:, first : first + states.shape[1]]
            rest = last - first - states.shape[1]
            fused = {
                "thinking_states": torch.nn.functional.pad(states, (0, 0, 0, rest)),
                "thinking_mask": torch.nn.functional.pad(mask, (0, rest)),
            }
        output = self.base(
            input_ids=ids,
            attention_mask=self.attention[:, :last],
            position_ids=self.positions[:, first:last],
            use_cache=use_cache,
            **({CACHE: self.cache} if use_cache else {}),
            **fused,
            **self.kwargs,
        )
        return output

    def keep(self, output):
        self.hidden.append(output.last_hidden_state)
        if output.hidden_states is not None:
            self.layers.append(output.hidden_states)

    def next_states(self, hidden):
        """States `(..., H)` and tokens `(...)` that follow last hidden states `(..., H)`; tokens None: as they are."""
        chooses = self.config.token_matters
        if not (chooses or self.source.reads_scores):
            return self.source(None, hidden), None
        logits = self.read_out(hidden.flatten(0, -2)[None])[0].unflatten(0, hidden.shape[:-1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        tokens = _draw(logits.detach().softmax(-1), self.config.token_policy) if chooses else None
        return self.source(logits, hidden), tokens

    def sequential(self):
        """One thought after the other; returns states `(B, C, H)` and tokens `(B, C)`."""
        states, tokens = [], []
        output = self.run(0, self.start, self.ids[:, : self.start])
        self.keep(output)
        for column in range(self.start, self.stop):
            state, token = self.next_states(output.last_hidden_state[:, -1])
            if self._is_cut(column):
                state = state.detach()
                _detach(self.cache)
            ids = self.ids[:, column]
            ids = ids if token is None else torch.where(self.latent[:, column], token, ids)
            output = self.run(column, column + 1, ids[:, None], state[:, None])
            self.keep(output)
            states.append(state)
            tokens.append(ids)
        if self.stop < self.ids.shape[1]:
            self.keep(self.run(self.stop, self.ids.shape[1], self.ids[:, self.stop :]))
        return torch.stack(states, 1), torch.stack(tokens, 1)

    def _is_cut(self, column):
        k = self.options.backprop
        return k is not None and column > self.start and (self.stop - column) % k == 0

    def parallel(self, states, tokens):
        """All columns in one pass over given states `(B, C, H)`, or None, and tokens `(B, C)`; returns both."""
        ids = torch.cat([self.ids[:, : self.start], tokens, self.ids[:, self.stop :]], 1)
        if states is not None:
            states = torch.nn.functional.pad(states, (0, 0, self.start, 0))
        output = self.run(0, ids.shape[1], ids, states, use_cache=False)
        self.hidden, self.layers = [], []
        self.keep(output)
        return output.last_hidden_state

    def jacobi(self):
        """All thoughts at once, as often as asked; returns states and tokens."""
        tokens = self.ids[:, self.start : self.stop]
        states = self.embedding.new_zeros(*tokens.shape, self.embedding.shape[1])
        for _ in range(self.options.iterations):
            hidden = self.parallel(states, tokens)
            states, drawn = self.next_states(hidden[:, self.start - 1 : self.stop - 1])
            if drawn is not None:
                tokens = torch.where(self.latent[:, self.start : self.stop], drawn, tokens)
        self.parallel(states, tokens)
        return states, tokens

    def taught(self, ids, weights):
        """One pass over the states of target distributions, ids and weights `(B, C, M)`; returns states and tokens."""
        tokens = self.ids[:, self.start : self.stop]
        if self.config.token_matters:
            flat = weights.flatten(0, 1)
            flat = torch.where(flat.sum(-1, keepdim=True) > 0, flat, torch.ones_like(flat))
            drawn = _draw(flat, self.config.token_policy).view(*tokens.shape, 1)
            tokens = torch.where(self.latent[:, self.start : self.stop], ids.gather(-1, drawn).squeeze(-1), tokens)
        states = None
        if self.method.fuses:
            states = average_embeddings(ids, weights, self.embedding, self.source.unit)
        self.parallel(states, tokens)
        return states, tokens


def _draw(probs, policy):
    """Tokens `(...)` of distributions `(..., V)`."""
    if policy == "argmax":
        return probs.argmax(-1)
    return torch.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])


def latent_forward(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    latent_mask: torch.Tensor,
    targets: tuple[torch.Tensor, torch.Tensor] | None = None,
    options: LatentOptions | None = None,
    logits_to_keep: int = 0,
    **kwargs,
) -> LatentOutput:
    """
    The pass of a causal LM that thinks at the latent positions, in its `thinking_mode`.

    Rows may be padded on both sides and differ in their number of thoughts. A call takes C + 2 passes, or one with
    `targets` or without states to wait for (mode `pause`).

    Args:
        model ([`ThinkingCausalLMMixin`]):
            A thinking model. A static cache and gradient checkpointing are not supported.
        input_ids (`torch.Tensor` of shape `(B, T)`):
            Ids; what stands at a latent position is used where the thought has no token of its own.
        attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
            0 at padding.
        latent_mask (`torch.Tensor` of shape `(B, T)`):
            `True` at the positions that think; a row's first one follows a token.
        targets (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Ids and weights `(B, C, M)`: distributions whose states are fed in the place of the model's own (teacher
            forcing), for modes whose state is a mean of embeddings or that have none.
        options ([`LatentOptions`], *optional*):
            How thoughts are computed.
        logits_to_keep (`int`, *optional*, defaults to `0`):
            Last columns whose logits are computed; 0: all.

    Raises:
        `ValueError`: if no position thinks, a thought follows no token, or mode and settings do not go together.
    """
    options = options or LatentOptions()
    model.config.check_thinking()
    thinker = _Thinker(model, input_ids, attention_mask, latent_mask, options, kwargs)
    method = thinker.method
    _check(thinker, model, targets)
    waits = method.fuses or model.config.token_matters
    if targets is not None:
        states, tokens = thinker.taught(*targets)
    elif not waits:
        states, tokens = None, input_ids[:, thinker.start : thinker.stop]
        thinker.parallel(None, tokens)
    elif options.iterations is not None:
        states, tokens = thinker.jacobi()
    else:
        states, tokens = thinker.sequential()
    hidden = torch.cat(thinker.hidden, 1)
    layers = tuple(torch.cat(parts, 1) for parts in zip(*thinker.layers)) if thinker.layers else None
    # A part of the columns is copied: under a frozen head `linear` would copy the head itself for each row
    logits = model.read_out(hidden[:, -logits_to_keep:].contiguous())
    return LatentOutput(logits=logits, states=states, tokens=tokens, hidden_states=layers)


def _check(thinker, model, targets):
    if current_intervention() is not None:
        raise ValueError(
            f"ThinkingIntervention({current_intervention()!r}) changes what `generate` feeds, not this pass. Call it "
            "outside of the block."
        )
    if thinker.stop == 0:
        raise ValueError("`latent_mask` has no latent position. Leave it out for the plain forward pass.")
    before = thinker.attention.bool() & (thinker.latent.long().cumsum(1) == 0)
    if (thinker.latent.any(1) & ~before.any(1)).any():
        raise ValueError("Each row needs a token before its first latent position: the first state comes from it.")
    if model.base_model.gradient_checkpointing and model.training:
        raise ValueError(
            "Gradient checkpointing recomputes single layers, which thoughts that wait for each other do not allow. "
            "Set `gradient_checkpointing=False`, call `model.gradient_checkpointing_disable()` where it was switched "
            "on by hand, and bound memory with smaller batches."
        )
    method = thinker.method
    if targets is not None and method.fuses and not method.reads_distribution:
        raise ValueError(
            f"`thinking_mode={model.config.thinking_mode!r}` has states that no target distribution gives; teacher "
            "forcing works in the modes `soft` and `embedding`. Leave the targets out, in training by "
            "`teacher_forcing_steps=0`."
        )
    if thinker.options.iterations is not None and model.config.token_matters and model.config.token_policy == "sample":
        raise ValueError(
            "Jacobi iteration needs thoughts whose tokens are not drawn at random. Set "
            "`thinking_token_policy='argmax'`, or leave `latent_iterations` out."
        )
