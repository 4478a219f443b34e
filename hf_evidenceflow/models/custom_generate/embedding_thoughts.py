"""Thoughts of a stock model in stock `generate`: in the place of a token's embedding, the mean of all tokens' ones.

Shapes: B rows, T tokens of a pass, H hidden size.
"""

import threading

import torch
from transformers.generation import GenerationMixin, LogitsProcessorList, StoppingCriteriaList

from ..thinking.answer_marker import MarkerAutomaton
from ..thinking.thinking_methods import THINKING_METHODS
from ..thinking.thinking_sources import StateSource
from ..thinking.thinking_state import ThinkingState


class EmbeddingThoughts:
    """
    A decoding method for `generate(custom_generate=...)`: the stock loop, greedy or sampling, in which the inputs of
    thoughts are states that `mode` `"soft"` or `"swi"` of [`THINKING_METHODS`] says.

    Args:
        mode (`str`): way of thinking.
        rule ([`EntropyRule`], *optional*): chooses which tokens think.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): finds the marker.
        marker (`str`, *optional*): text that ends the thinking; `None`: all tokens think.
        top_k (`int`, *optional*), temperature (`float`, *optional*, defaults to `1`): of the mean.
        streamer ([`~transformers.generation.BaseStreamer`], *optional*): which `generate` would not hand on.
    """

    def __init__(self, mode, rule=None, tokenizer=None, marker=None, top_k=None, temperature=1.0, streamer=None):
        if marker is not None and tokenizer is None:
            raise ValueError(
                f"`thinking_answer_start={marker!r}` needs a tokenizer to be found in the generated tokens. Pass "
                "`tokenizer=`, or `thinking_answer_start=None` to think over the whole completion."
            )
        if marker is not None and (not isinstance(marker, str) or not marker):
            raise ValueError(f"`thinking_answer_start` must be a text or None, got {marker!r}.")
        if not temperature > 0 or (top_k is not None and top_k < 1):
            raise ValueError(
                "`thinking_temperature` must be above 0, and `thinking_top_k` at least 1 or None, got "
                f"{temperature} and {top_k}."
            )
        self.mode, self.rule, self.tokenizer, self.marker = mode, rule, tokenizer, marker
        self.top_k, self.temperature, self.streamer = top_k, temperature, streamer

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        """Called by `generate` with prepared inputs; returns what its own loop returns."""
        if generation_config.num_beams > 1:
            raise ValueError(
                f"Beams have no place for the thoughts of a row, got `num_beams={generation_config.num_beams}`."
            )
        embeddings, automaton = model.get_input_embeddings(), None
        if self.marker is not None:
            automaton = MarkerAutomaton.for_tokenizer(self.tokenizer, self.marker, input_ids.device)
        source = StateSource(
            THINKING_METHODS[self.mode], embeddings.weight, top_k=self.top_k, temperature=self.temperature
        )
        last = input_ids[:, -1] if input_ids.shape[1] else None
        thinking = ThinkingState(
            self.mode, source, automaton, len(input_ids), input_ids.device, rule=self.rule, last_tokens=last
        )
        fed = _FedThoughts(thinking, getattr(embeddings, "scalar_embed_scale", 1.0))
        handle = embeddings.register_forward_hook(fed.replace)
        try:
            return GenerationMixin._sample(
                model,
                input_ids,
                logits_processor=LogitsProcessorList([*logits_processor, fed.observe_scores]),
                stopping_criteria=_Watched(stopping_criteria, fed),
                generation_config=generation_config,
                streamer=self.streamer,
                **model_kwargs,
            )
        finally:
            handle.remove()


class _FedThoughts:
    """Shows scores and tokens to a [`ThinkingState`], and puts its states into the next pass of this thread."""

    def __init__(self, thinking, scale):
        self.thinking, self.scale, self.thread = thinking, scale, threading.get_ident()
        self.states, self.masks = [], []

    def observe_scores(self, input_ids, scores):
        self.states.append(self.thinking.next_states(scores, None))
        return scores

    def observe_tokens(self, input_ids, done):
        self.masks.append(self.thinking.observe(input_ids[:, -1]))
        self.thinking.finish(done)

    def replace(self, module, args, embeds):
        if not self.masks or threading.get_ident() != self.thread:
            return embeds
        count = min(embeds.shape[1], len(self.masks))  # of a pass without a cache some are the prompt's
        states = torch.stack(self.states[-count:], dim=1).float() * self.scale
        mask = torch.stack(self.masks[-count:], dim=1)[..., None]
        thoughts = torch.where(mask.to(embeds.device), states.to(embeds), embeds[:, -count:])
        return torch.cat([embeds[:, :-count], thoughts], dim=1)


class _Watched(StoppingCriteriaList):
    """Stopping criteria that show each new token to [`_FedThoughts`]."""

    def __init__(self, criteria, fed):
        super().__init__(criteria)
        self.fed = fed

    def __call__(self, input_ids, scores, **kwargs):
        done = super().__call__(input_ids, scores, **kwargs)
        self.fed.observe_tokens(input_ids, done)
        return done
