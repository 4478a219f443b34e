"""Hybrid generation through the stock `generate()`: the decoding loop stays transformers' own.

`_sample` is wrapped, not copied: one [`ThinkingSession`] a call rides along in the model's keyword arguments, sees the
processed scores as the last logits processor and the chosen tokens through the stopping criteria, and hands the states
of the next forward pass to `prepare_inputs_for_generation`. Nothing is stored on the model, so concurrent calls do not
meet. What a call leaves behind rides on its cache, so that a later call goes on with the same completion.

Shapes: B rows, P prompt tokens, C completion tokens, H hidden size, V vocabulary.
"""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    GenerationMode,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from .answer_marker import MarkerAutomaton
from .cache_argument import CACHE
from .continuation import ThinkingContinuation, find_continuation, leave_continuation
from .thinking_residual import soft_state


@dataclass
class ThinkingRollout:
    """
    What one call of `generate()` recorded for its completions.

    Args:
        states (`torch.Tensor` of shape `(B, C, H)`):
            State attached to each completion token, in the model's dtype: the last hidden state before the projection
            in mode `projection`, the weighted embedding in modes `embedding` and `soft`.
        mask (`torch.Tensor` of shape `(B, C)`):
            Boolean, `True` where the token's input is fused with its state.
        embeds_ratio (`torch.Tensor` of shape `(B, C)`):
            Mean over H of the weight `a` of the token embedding; 1 where a token was not fused or not fed (the last
            one).
        gate, hidden_ratio (`torch.Tensor` of shape `(B, C)`):
            Means over H of the gate `r` and of `sqrt(1 - a^2)`; 0 where a token was not fused or not fed.
        logps (`torch.Tensor` of shape `(B, C)`, *optional*):
            Log-probabilities of the chosen tokens at `logps_temperature`, before all other processors.
    """

    states: torch.Tensor
    mask: torch.Tensor
    embeds_ratio: torch.Tensor
    gate: torch.Tensor
    hidden_ratio: torch.Tensor
    logps: torch.Tensor | None = None


@dataclass
class GenerateThinkingOutput(GenerateDecoderOnlyOutput):
    """
    [`~transformers.generation.GenerateDecoderOnlyOutput`] with what the call recorded: see [`ThinkingRollout`]. A call
    with its `sequences` and `past_key_values` goes on as if the two were one.

    Args:
        thinking_states (`torch.Tensor` of shape `(B, C, H)`), thinking_mask (`(B, C)`), embeds_ratio (`(B, C)`)
    """

    thinking_states: torch.Tensor | None = None
    thinking_mask: torch.Tensor | None = None
    embeds_ratio: torch.Tensor | None = None


@dataclass
class ThinkingCollector:
    """What [`collect_thinking`] asks of the calls inside it."""

    tokenizer: object
    logps_temperature: float | None
    engine: Callable | None
    rollouts: list[ThinkingRollout]


_collector: ContextVar[ThinkingCollector | None] = ContextVar("thinking_collector", default=None)


def current_collector() -> ThinkingCollector | None:
    """The collector of the innermost [`collect_thinking`] block of this thread, if there is one."""
    return _collector.get()


def thinking_output(sequences: torch.Tensor, rollout: ThinkingRollout | None, returns_dict: bool, **recorded):
    """
    What a call of `generate` returns for its sequences; hands the rollout to the collector, if there is one.

    Args:
        sequences (`torch.Tensor` of shape `(B, P + C)`): prompts and completions.
        rollout ([`ThinkingRollout`], *optional*): recorded by a thinking model.
        returns_dict (`bool`): `generation_config.return_dict_in_generate`.
        recorded: other fields of [`~transformers.generation.GenerateDecoderOnlyOutput`].
    """
    collector = _collector.get()
    if rollout is not None and collector is not None:
        collector.rollouts.append(rollout)
    if not returns_dict:
        return sequences
    if rollout is None:
        return GenerateDecoderOnlyOutput(sequences=sequences, **recorded)
    return GenerateThinkingOutput(
        **recorded,
        sequences=sequences,
        thinking_states=rollout.states,
        thinking_mask=rollout.mask,
        embeds_ratio=rollout.embeds_ratio,
    )


@contextmanager
def collect_thinking(tokenizer=None, logps_temperature: float | None = None, engine: Callable | None = None):
    """
    Collect the [`ThinkingRollout`] of every `generate()` call of a thinking model in this thread, whoever makes the
    call.

    For callers that cannot pass `tokenizer=` and `return_dict_in_generate=True` themselves, such as a trainer's
    rollout.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Used by calls that bring no tokenizer.
        logps_temperature (`float`, *optional*):
            If given, log-probabilities of the chosen tokens are recorded at this temperature.
        engine ([`RolloutEngine`], *optional*):
            Decoding loop of the calls that it accepts, in the place of the stock one.

    Yields:
        `list[ThinkingRollout]`: one item a call, in the order of the calls.
    """
    collector = ThinkingCollector(tokenizer, logps_temperature, engine, [])
    token = _collector.set(collector)
    try:
        yield collector.rollouts
    finally:
        _collector.reset(token)


class ThinkingRecorder:
    """
    Carries tensors out of a forward pass: `hidden` `[B, H]` at the last position and `stats` `[B, 3]` (a, r, sqrt(1 -
    a^2)) or `None`.
    """

    hidden: torch.Tensor | None = None
    stats: torch.Tensor | None = None


# A token below this probability is cut from the weighted embedding; a row that would lose more than this is not cut
TOKEN_CUT = 1e-4
MAX_TAIL = 0.1


def sparse_soft_state(probs: torch.Tensor, embedding: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """
    [`soft_state`] from the likely tokens, with the mean embedding in place of each unlikely one (p < 1e-4).

    Rows whose unlikely tokens hold more than 0.1 of the probability are computed exactly. In the others the sum is off
    by at most that tail times the largest distance of an embedding from the mean; with embeddings drawn independently
    of the distribution the measured error of the state is below 0.5 %. What is recorded is the state that was used, so
    training is exact in any case. For CPUs: the choice reads values on the host, and on an accelerator the product is
    cheap.

    Args:
        probs (`torch.Tensor` of shape `(B, V)`), embedding (`torch.Tensor` of shape `(V, H)`): as in [`soft_state`].
        mean (`torch.Tensor` of shape `(H,)`): mean of the embeddings.
    """
    likely = probs >= TOKEN_CUT
    tail = 1 - (probs * likely).sum(-1)
    flat = tail > MAX_TAIL
    if flat.all():
        return soft_state(probs, embedding)
    if flat.any():
        likely &= ~flat[:, None]
    rows, tokens = likely.nonzero(as_tuple=True)
    weighted = F.embedding_bag(
        tokens,
        embedding,
        torch.searchsorted(rows, torch.arange(len(probs))),
        mode="sum",
        per_sample_weights=probs[rows, tokens].to(embedding.dtype),
    )
    state = weighted + tail[:, None].to(mean.dtype) * mean
    if flat.any():
        state[flat] = soft_state(probs[flat], embedding)
    return state


def weighted_states(
    mode: str,
    scores: torch.Tensor,
    needed: torch.Tensor,
    embedding: torch.Tensor,
    mean: torch.Tensor | None,
    probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    States that are weighted embeddings; on a CPU only where they are needed.

    Args:
        mode (`str`): `"embedding"` for [`embedding_state`], `"soft"` for [`soft_state`].
        scores (`torch.Tensor` of shape `(B, V)`): processed scores.
        needed (`torch.Tensor` of shape `(B,)`): `False` in rows whose state is not used; on a CPU it is 0 there.
        embedding (`torch.Tensor` of shape `(V, H)`): input embedding matrix.
        mean (`torch.Tensor` of shape `(H,)`, *optional*): mean of the embeddings, on a CPU.
        probs (`torch.Tensor` of shape `(B, V)`, *optional*): the softmax of the scores, if it is there.
    """
    on_host = scores.device.type == "cpu"
    rows = needed.nonzero().squeeze(1) if on_host else slice(None)
    states = embedding.new_zeros(len(scores), embedding.shape[1])
    if on_host and not len(rows):
        return states
    weights = scores[rows].softmax(-1) if probs is None else probs[rows]
    found = sparse_soft_state(weights, embedding, mean) if on_host else soft_state(weights, embedding)
    if mode == "embedding":
        found = found / weights.norm(dim=-1, keepdim=True).to(found.dtype)
    states[rows] = found
    return states


class ThinkingSession:
    """
    The state of one `generate()` call: the phase of each row, the state of the next token and what is recorded.

    Args:
        mode (`str`): `"projection"`, `"embedding"` or `"soft"`.
        embedding (`torch.Tensor` of shape `(V, H)`): input embedding matrix.
        automaton ([`MarkerAutomaton`], *optional*): finds the end of the thinking phase; `None`: all of it thinks.
        batch_size (`int`): rows.
        device (`torch.device`): device of the token ids.
        keep (`bool`): whether all states are kept, or only the last.
        logps_temperature (`float`, *optional*): if given, log-probabilities are recorded.
        continuation ([`ThinkingContinuation`], *optional*): of the completion that the cache ends with.
        waiting (`int`): tokens that the cache does not hold; a single one goes on with that completion.
    """

    def __init__(
        self,
        mode,
        embedding,
        automaton,
        batch_size,
        device,
        keep,
        logps_temperature=None,
        continuation=None,
        waiting=0,
    ):
        self.mode = mode
        self.embedding = embedding
        self.automaton = automaton
        self.keep = keep
        self.logps_temperature = logps_temperature
        self.recorder = ThinkingRecorder()
        self.continuation = continuation
        self.marker_state = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.thinking = torch.ones(batch_size, dtype=torch.bool, device=device)
        if continuation is not None and waiting == 1 and automaton is not None:
            self.marker_state = continuation.marker_state
            self.thinking = self.marker_state != automaton.found
        self.unfinished = torch.ones(batch_size, dtype=torch.bool, device=device)
        self.states, self.masks, self.stats, self.logps, self.marker_states = [], [], [], [], []
        self.raw_scores = None
        self.mean = embedding.mean(0) if mode != "projection" and device.type == "cpu" else None

    def observe_logits(self, input_ids, scores):
        """First logits processor: keeps the raw scores for the log-probability of the token."""
        self.raw_scores = scores.clone()  # a processor may write in place
        return scores

    def observe_scores(self, input_ids, scores):
        """Last logits processor: what it sees is the distribution the next token is drawn from."""
        if self.masks:
            self._push(self.stats, self.recorder.stats)
        if self.mode == "projection":
            self._push(self.states, self.recorder.hidden)
            return scores
        needed = self.unfinished & self.thinking
        self._push(self.states, weighted_states(self.mode, scores, needed, self.embedding, self.mean))
        return scores

    def observe_tokens(self, input_ids, done):
        """
        Called by the stopping criteria with the new token appended, [B, P + t], and the rows that it finishes, [B].
        """
        tokens = input_ids[:, -1]
        if self.automaton is not None:
            self.marker_state = self.automaton.step(self.marker_state, tokens)
            self.thinking = self.marker_state != self.automaton.found
        self._push(self.marker_states, self.marker_state)
        self._push(self.masks, self.unfinished & self.thinking)
        if self.logps_temperature is not None:
            logps = (self.raw_scores / self.logps_temperature).log_softmax(-1)
            self.logps.append(logps.gather(1, tokens[:, None]).squeeze(1))
        self.unfinished = self.unfinished & ~done

    def _push(self, items, item):
        if not self.keep:
            items.clear()
        items.append(item)

    def model_inputs(self, length: int) -> dict:
        """Keyword arguments of the next forward pass over the last `length` tokens."""
        inputs = {"thinking_recorder": self.recorder}
        if self.masks:
            inputs["thinking_states"] = torch.stack(self.states[-length:], dim=1)
            inputs["thinking_mask"] = torch.stack(self.masks[-length:], dim=1)
        elif self.continuation is not None:
            inputs |= self.continuation.inputs(length)
            self.continuation = None  # the prompt may come in pieces
        return inputs

    def end(self, completions: torch.Tensor, prompt_length: int | None, length: int) -> ThinkingContinuation:
        """What a later call needs to go on: completions `(B, C)`; lengths as in [`ThinkingContinuation`]."""
        count = completions.shape[1]
        last = count - 1 if self.keep else -1  # where stopping is seen late, a token too many was observed
        if prompt_length is None:
            prompt_length = length - (count - 1)
        return ThinkingContinuation(
            self.mode,
            prompt_length,
            length,
            completions[:, -1].clone(),
            self.states[last],
            self.masks[last],
            self.marker_states[last],
        )

    def rollout(self, length: int) -> ThinkingRollout:
        """What was recorded for the first `length` completion tokens."""
        if length == 0:
            raise ValueError(
                "Nothing was generated, so there are no thinking states to return. Raise `max_new_tokens`."
            )
        mask = torch.stack(self.masks[:length], dim=1)
        states = torch.stack(self.states[:length], dim=1)
        # The last token was never fed
        unfused = torch.tensor([1.0, 0.0, 0.0], device=mask.device)
        stats = torch.stack([*self.stats[: length - 1], unfused.expand(len(mask), 3)], dim=1)  # [B, C, 3]
        stats = torch.where(mask[..., None], stats, unfused)
        logps = torch.stack(self.logps[:length], dim=1) if self.logps else None
        a, gate, hidden_ratio = stats.unbind(-1)
        return ThinkingRollout(states, mask, a, gate, hidden_ratio, logps)


class _ObservedStoppingCriteria(StoppingCriteriaList):
    def __init__(self, criteria, session):
        super().__init__(criteria)
        self.session = session

    def __call__(self, input_ids, scores, **kwargs):
        done = super().__call__(input_ids, scores, **kwargs)
        self.session.observe_tokens(input_ids, done)
        return done


@functools.lru_cache(maxsize=8)
def _saved_tokenizer(path):
    return AutoTokenizer.from_pretrained(path)


class ThinkingGenerationMixin:
    """
    Hybrid generation for a causal LM whose base model is a [`ThinkingModelMixin`]; put before the transformers class.
    """

    @property
    def _supported_generation_modes(self):
        if self.config.thinking_mode == "none":
            return None
        return [GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE]

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        supported = self._supported_generation_modes
        if supported is not None and generation_mode not in supported:
            raise ValueError(
                f"`thinking_mode={self.config.thinking_mode!r}` does not support the generation mode "
                f"`{generation_mode.value}`: beams and drafts have no place for the thinking states of a row. It "
                "decodes by greedy search and by sampling. Leave `num_beams` and the assistant out, or set "
                "`config.thinking_mode = 'none'`."
            )
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _refuse_paged(self):
        if self.config.thinking_mode != "none":
            raise ValueError(
                "Continuous batching (`generate_batch`) does not support "
                f"`thinking_mode={self.config.thinking_mode!r}`: its paged "
                "engine has no place for thinking states. Use `generate`, or set `config.thinking_mode = 'none'`."
            )

    def init_continuous_batching(self, *args, **kwargs):
        self._refuse_paged()
        return super().init_continuous_batching(*args, **kwargs)

    def generate_batch(self, *args, **kwargs):
        self._refuse_paged()
        return super().generate_batch(*args, **kwargs)

    def _automaton(self, tokenizer, device):
        marker = self.config.thinking_answer_start
        if marker is None:
            return None
        collector = _collector.get()
        if tokenizer is None and collector is not None:
            tokenizer = collector.tokenizer
        if tokenizer is None:
            path = self.config.name_or_path
            try:
                if not path:
                    raise OSError("the model was not loaded from a folder or the Hub")
                tokenizer = _saved_tokenizer(path)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"`thinking_answer_start={marker!r}` needs a tokenizer to be found in the generated tokens, and "
                    f"none could be loaded from beside the model ({path!r}: {error}). Pass `tokenizer=` to "
                    "`generate`, or set `config.thinking_answer_start = None` to think over the whole completion."
                ) from error
        # A processor holds its tokenizer
        return MarkerAutomaton.for_tokenizer(getattr(tokenizer, "tokenizer", tokenizer), marker, device)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, thinking_session=None, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if thinking_session is not None:
            tokens = model_inputs["input_ids"]
            model_inputs.update(thinking_session.model_inputs(1 if tokens is None else tokens.shape[1]))
        return model_inputs

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        tokenizer=None,
        **model_kwargs,
    ):
        """
        Differs from GenerationMixin._sample in the observers that it adds, and in giving way to the collector's
        engine.
        """
        collector = _collector.get()
        if collector is not None and collector.engine is not None:
            others = {"synced_gpus": synced_gpus, "streamer": streamer, **model_kwargs}
            if collector.engine.accepts(self, generation_config, others):
                return collector.engine(
                    self, input_ids, logits_processor, stopping_criteria, generation_config, tokenizer, **others
                )
        embedding = self.get_input_embeddings().weight
        if isinstance(embedding, DTensor):
            # FSDP2: a process whose rows have ended must go on with the others' passes, and read whole embeddings
            synced_gpus, embedding = True, embedding.full_tensor()
        call = functools.partial(
            super()._sample, input_ids, generation_config=generation_config, synced_gpus=synced_gpus, streamer=streamer
        )
        self.config.check_thinking()
        if self.config.thinking_mode == "none":
            return call(logits_processor=logits_processor, stopping_criteria=stopping_criteria, **model_kwargs)

        returned = generation_config.return_dict_in_generate
        cache, text_length = model_kwargs.get(CACHE), model_kwargs["position_ids"].shape[-1]
        continuation, waiting = find_continuation(cache, self.config.thinking_mode, input_ids, text_length)
        session = ThinkingSession(
            self.config.thinking_mode,
            embedding,
            self._automaton(tokenizer, input_ids.device),
            batch_size=input_ids.shape[0],
            device=input_ids.device,
            keep=returned or collector is not None or not generation_config.use_cache,
            logps_temperature=None if collector is None else collector.logps_temperature,
            continuation=continuation,
            waiting=waiting,
        )
        processors = [*logits_processor, session.observe_scores]
        if session.logps_temperature is not None:
            processors = [session.observe_logits, *processors]
        output = call(
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=_ObservedStoppingCriteria(stopping_criteria, session),
            thinking_session=session,
            **model_kwargs,
        )
        recorded = dict(output) if returned else {"sequences": output}
        sequences = recorded.pop("sequences")
        if cache is not None and sequences.shape[1] > input_ids.shape[1]:
            start = None if continuation is None else continuation.prompt_length
            length = int(cache.get_seq_length())
            leave_continuation(cache, session.end(sequences[:, input_ids.shape[1] :], start, length))
        if not returned and collector is None:
            return output
        rollout = session.rollout(sequences.shape[1] - input_ids.shape[1])
        return thinking_output(sequences, rollout, returned, **recorded)
