"""Rollouts of groups: each distinct prompt is computed once, rows that end leave the batch, waiting ones enter.

A decoding loop for transformers' own `generate`, which prepares processors, criteria and configuration and hands them
over (`custom_generate`). Works for thinking models in all modes and for any causal LM whose attention goes through
transformers' interface over all positions.

Shapes: R rows of the call, n rows at hand, P prompt tokens, C completion tokens, H hidden size, V vocabulary.
"""

import weakref
from collections import deque
from dataclasses import dataclass

import torch
from transformers.generation import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MaxLengthCriteria,
    MinPLogitsWarper,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import logging

from ..models.thinking.cache_argument import CACHE
from ..models.thinking.generation_thinking import ThinkingGenerationMixin
from ..models.thinking.prompt_thinking import PromptThinking
from ..models.thinking.thinking_rollout import current_collector, thinking_output
from ..models.thinking.thinking_state import token_logps
from .draws import MultinomialDraws, TableDraws
from .prefill import prefill
from .progress import RolloutProgress
from .records import RolloutRecords, thinking_fill, thinking_rollout
from .row_pool import RowPool
from .shared_prompt_attention import shared_prompt_passes
from .shared_prompt_cache import SharedPromptCache
from .support import attention_reason, reason_against


logger = logging.get_logger(__name__)

# They look at one row's scores, at no earlier token
_POINTWISE = {
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
}
_DRAWS: dict[str, type] = {"table": TableDraws, "multinomial": MultinomialDraws}


@dataclass
class WaitingPrompt:
    """A prompt (`ids`, without padding) and the rows that begin with it."""

    ids: list[int]
    rows: list[int]


class RolloutEngine:
    """
    Decoding loop for rollouts of groups, given to `generate` as `custom_generate`.

    What the rows of the output hold does not change with `max_rows`, up to rounding: greedy tokens are those of the
    stock loop, and draws belong to a row and step. With processors or stopping criteria that look at earlier tokens
    all rows run at the same step, in waves of `max_rows`.

    Args:
        max_rows (`int`, *optional*):
            Rows decoded at the same time; the others wait until rows end. By default all.
        draws (`str`, *optional*, defaults to `"table"`):
            `"table"`: one uniform number for each row and step, and the inverse of the cumulative distribution.
            `"multinomial"`: the draws of the stock loop, so that a seed gives its tokens; needs all rows at the same
            step, and is slower.
        prefill_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens, padding included, of one pass over prompts.
        progress (`bool`, *optional*, defaults to `False`):
            Whether a rollout of more than seconds shows rows that have ended and tokens so far: a bar in a terminal, a
            line every half minute elsewhere.

    Raises:
        `ValueError`: when called for what it cannot do; the message names the reason.

    Example:

    ```python
    >>> from hf_evidenceflow import RolloutEngine

    >>> model.generate(**inputs, do_sample=True, num_return_sequences=8, custom_generate=RolloutEngine(max_rows=64))
    ```
    """

    def __init__(
        self, max_rows: int | None = None, draws: str = "table", prefill_tokens: int = 16384, progress: bool = False
    ):
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1 or None, got {max_rows}.")
        if draws not in _DRAWS:
            raise ValueError(f"`draws` must be one of {', '.join(map(repr, _DRAWS))}, got {draws!r}.")
        if prefill_tokens < 1:
            raise ValueError(f"`prefill_tokens` must be at least 1, got {prefill_tokens}.")
        self.max_rows = max_rows
        self.draws = draws
        self.prefill_tokens = prefill_tokens
        self.progress = progress
        self._attention_reasons = weakref.WeakKeyDictionary()

    def _reason_against(self, model, generation_config, model_kwargs):
        if reason := reason_against(model, generation_config, model_kwargs):
            return reason
        if model not in self._attention_reasons:
            self._attention_reasons[model] = attention_reason(model)
        return self._attention_reasons[model]

    @torch.no_grad()
    def accepts(self, model, generation_config, model_kwargs) -> bool:
        """Whether the engine can run a call of `generate`; if not, the reason is logged once."""
        reason = self._reason_against(model, generation_config, model_kwargs)
        if reason:
            logger.warning_once(f"The stock decoding loop runs, not the rollout engine: {reason}.")
        return not reason

    def __call__(
        self,
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        tokenizer=None,
        thinking_states=None,
        thinking_mask=None,
        **model_kwargs,
    ):
        """The loop, called by `generate`; returns what `generate` returns."""
        if reason := self._reason_against(model, generation_config, model_kwargs):
            raise ValueError(f"RolloutEngine cannot run this call: {reason}. Leave `custom_generate` out.")
        rollout = _Rollout(self, model, input_ids, logits_processor, stopping_criteria, generation_config, tokenizer)
        if rollout.thinking is not None:
            rollout.prompt_thinking = PromptThinking.of(input_ids, thinking_states, thinking_mask)
        prompts = rollout.prompts(model_kwargs.get("attention_mask"))
        sequences = rollout.run(prompts)
        recorded = thinking_rollout(rollout.records) if rollout.thinking is not None else None
        return thinking_output(sequences, recorded, generation_config.return_dict_in_generate)


class _Rollout:
    """One call of the engine."""

    prompt_thinking: PromptThinking | None = None

    def __init__(self, engine, model, input_ids, processors, criteria, config, tokenizer):
        self.engine, self.model, self.input_ids = engine, model, input_ids
        self.device = input_ids.device
        self.processors = processors
        self.criteria = StoppingCriteriaList(
            criterion for criterion in criteria if type(criterion) not in (EosTokenCriteria, MaxLengthCriteria)
        )
        self.needs_history = any(type(processor) not in _POINTWISE for processor in processors)
        self.in_step = bool(self.criteria or self.needs_history or engine.draws == "multinomial")
        self.do_sample = config.do_sample
        self.drawn = 0  # tokens so far
        self.max_new_tokens = config.max_length - input_ids.shape[1]
        count = len(input_ids)
        eos = config._eos_token_tensor
        self.eos = torch.tensor([], dtype=torch.long, device=self.device) if eos is None else eos.to(self.device)
        pad = config._pad_token_tensor
        fill: dict[str, tuple] = {"tokens": ((), torch.long, 0 if pad is None else int(pad))}
        self.thinking = None
        if isinstance(model, ThinkingGenerationMixin) and model.config.thinking_mode != "none":
            self.thinking = model.begin_thinking(input_ids, tokenizer, config.do_sample)
            fill |= thinking_fill(model, self.thinking)
        collector = current_collector()
        self.logps_temperature = None if collector is None else collector.logps_temperature
        if self.logps_temperature is not None and self.thinking is not None:
            fill["logps"] = ((), torch.float32, 0.0)
        else:
            self.logps_temperature = None
        self.records = RolloutRecords(count, fill, self.max_new_tokens, self.device)
        self.draws = _DRAWS[engine.draws](count, self.device) if self.do_sample else None

    def prompts(self, attention_mask) -> list[WaitingPrompt]:
        """Distinct prompts, short ones first, in pieces of at most `max_rows` rows."""
        rows_of: dict[tuple, list[int]] = {}
        thinks = [False] * len(self.input_ids)  # a prompt that holds thoughts is a row's own
        if self.prompt_thinking is not None:
            thinks = self.prompt_thinking.mask.any(1).tolist()
        masks = None if attention_mask is None else attention_mask.tolist()
        for row, ids in enumerate(self.input_ids.tolist()):
            if masks is not None:
                ids = [token for token, seen in zip(ids, masks[row]) if seen]
            if not ids:
                raise ValueError(f"Row {row} has an empty prompt. Give each at least one token, such as BOS.")
            rows_of.setdefault((tuple(ids), row if thinks[row] else None), []).append(row)
        most = self.engine.max_rows or len(self.input_ids)
        return [
            WaitingPrompt(list(ids), rows[start : start + most])
            for (ids, _), rows in sorted(rows_of.items(), key=lambda item: len(item[0][0]))
            for start in range(0, len(rows), most)
        ]

    def run(self, prompts: list[WaitingPrompt]) -> torch.Tensor:
        """Run all rows to their end; returns `[R, P + C]`."""
        count = len(self.input_ids)
        max_rows = min(self.engine.max_rows or count, count)
        self.lengths = torch.empty(count, dtype=torch.long, device=self.device)
        for prompt in prompts:
            self.lengths[prompt.rows] = len(prompt.ids)
        self.cache = SharedPromptCache(
            max_rows,
            min(len(prompts), max_rows),
            max(len(prompt.ids) for prompt in prompts),
            self.max_new_tokens,
            self.device,
            self.model.dtype,
        )
        self.pool = RowPool(self.cache)
        waiting = deque(prompts)
        with RolloutProgress(count, self.engine.progress) as progress:
            while waiting or self.pool.rows:
                if waiting and not (self.in_step and self.pool.rows):
                    self._admit(waiting, max_rows)
                if self.pool.rows:
                    self._step()
                ended = count - sum(len(prompt.rows) for prompt in waiting) - len(self.pool.rows)
                progress.update(ended, self.drawn)
        return torch.cat([self.input_ids, self.records["tokens"]], dim=1)

    def _admit(self, waiting, max_rows):
        """Compute the prompts that fit and draw the first token of their rows."""
        new, logits, hidden = [], [], []
        free, first = max_rows - len(self.pool.rows), self.pool.num_prompts
        recorder = None if self.thinking is None else self.thinking.recorder
        while waiting and len(waiting[0].rows) <= free:
            batch = []
            while waiting and len(waiting[0].rows) <= free:
                if batch and (len(batch) + 1) * len(waiting[0].ids) > self.engine.prefill_tokens:
                    break
                batch.append(waiting.popleft())
                free -= len(batch[-1].rows)
            inputs = self._prompt_inputs(batch)
            scores, cache, mask = prefill(self.model, [prompt.ids for prompt in batch], self.device, inputs)
            self.cache.put_prompts(first + len(new), cache, mask)
            new += [prompt.rows for prompt in batch]
            logits.append(scores)
            hidden.append(recorder and recorder.hidden)
        if not new:
            return
        repeats = torch.tensor([len(rows) for rows in new], device=self.device)
        rows = torch.tensor([row for rows in new for row in rows], device=self.device)
        hidden = None if recorder is None else torch.cat(hidden).repeat_interleave(repeats, dim=0)
        logits = torch.cat(logits).repeat_interleave(repeats, dim=0)
        self.pool.add(new, self._choose(rows, torch.zeros_like(rows), 0, logits, hidden))

    def _prompt_inputs(self, batch: list[WaitingPrompt]) -> dict:
        """Keyword arguments, for thinking, of the pass over prompts."""
        if self.thinking is None:
            return {}
        if self.prompt_thinking is None:
            return {"thinking_recorder": self.thinking.recorder}
        rows, longest = [prompt.rows[0] for prompt in batch], max(len(prompt.ids) for prompt in batch)
        states, mask = self.prompt_thinking.states[rows], self.prompt_thinking.mask[rows]
        return self.thinking.inputs(states[:, -longest:], mask[:, -longest:])

    def _step(self):
        """Feed each row's last token and draw the next."""
        pool, records = self.pool, self.records
        rows, steps, last_step = pool.tensors()
        self.cache.set_steps(pool.steps)
        inputs = {}
        if self.thinking is not None:
            states, mask = (records.tensors[name][rows, steps][:, None] for name in ("states", "mask"))
            inputs = self.thinking.inputs(states, mask)
        with shared_prompt_passes():
            outputs = self.model(
                input_ids=records.tensors["tokens"][rows, steps][:, None],
                position_ids=(self.lengths[rows] + steps)[:, None],
                **{CACHE: self.cache},
                use_cache=True,
                logits_to_keep=1,
                **inputs,
            )
        hidden = None
        if self.thinking is not None:
            hidden, stats = self.thinking.recorder.hidden, self.thinking.recorder.stats
            if stats is not None:
                records.write(rows, steps, last_step, stats=stats)
        pool.steps = [step + 1 for step in pool.steps]
        ended = self._choose(rows, steps + 1, last_step + 1, outputs.logits[:, -1].float(), hidden)
        pool.remove(ended)

    def _choose(self, rows, steps, last_step, logits, hidden) -> list[bool]:
        """Draw and record the token of each row at its step; returns whether the row ends with it."""
        self.drawn += len(rows)
        scores = self._process(rows, last_step, logits)
        items = {}
        probs = None if self.draws is None else scores.softmax(-1)
        if self.thinking is not None:
            items["states"] = self.thinking.next_states(scores, hidden, probs, rows)
            restricted = self.thinking.restrict(scores, rows)
            if restricted is not scores:
                scores, probs = restricted, None if self.draws is None else restricted.softmax(-1)
        tokens = scores.argmax(-1) if self.draws is None else self.draws.draw(probs, rows, steps, last_step)
        if self.thinking is not None:
            items["mask"] = self.thinking.observe(tokens, rows)
            items |= self.thinking.drawn
        if self.logps_temperature is not None:
            items["logps"] = token_logps(logits, tokens, self.logps_temperature)
        self.records.write(rows, steps, last_step, tokens=tokens, **items)
        ended = torch.isin(tokens, self.eos) | (steps + 1 >= self.max_new_tokens)
        if self.criteria:  # the stock loop has no scores for them either
            ended |= self.criteria(self._history(last_step + 1), None)[rows]
        return ended.tolist()

    def _history(self, count):
        return torch.cat([self.input_ids, self.records.tensors["tokens"][:, :count]], dim=1)

    def _process(self, rows, last_step, logits):
        if not self.needs_history:
            # Some warpers write in place
            return self.processors(self.input_ids[rows], logits.clone() if self.logps_temperature else logits)
        # Processors may hold a tensor for each row of the call
        everything = logits.new_zeros(len(self.input_ids), logits.shape[1])
        everything[rows] = logits
        return self.processors(self._history(last_step), everything)[rows]
