"""Hybrid generation through the stock `generate()`: the decoding loop stays transformers' own.

`_sample` is wrapped, not copied: one [`ThinkingObserver`] per call rides along in the model's keyword arguments, sees
the processed scores as the last logits processor and the chosen tokens through the stopping criteria, and hands the
states of the next forward pass to `prepare_inputs_for_generation`. Nothing is stored on the model, so concurrent calls
do not meet. What a call leaves behind rides on its cache, so that a later call goes on with the same completion.

Shapes: B rows, P prompt tokens, C completion tokens, H hidden size.
"""

import functools

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer
from transformers.generation import GenerationMode, LogitsProcessorList, StoppingCriteriaList

from .answer_marker import MarkerAutomaton
from .cache_argument import CACHE
from .continuation import find_continuation, leave_continuation
from .count_automaton import CountAutomaton
from .intervention import current_intervention
from .prompt_thinking import PromptThinking
from .row_draws import RowDraws
from .thinking_noise import StateNoise
from .thinking_observer import ObservedStoppingCriteria, ThinkingObserver
from .thinking_rollout import current_collector, thinking_output
from .thinking_schedules import thinking_rule
from .thinking_state import ThinkingState


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

    def begin_thinking(self, input_ids: torch.Tensor, tokenizer=None, do_sample: bool = False) -> ThinkingState:
        """
        The [`ThinkingState`] of a call's rows, for a decoding loop; obeys a [`ThinkingIntervention`].

        Args:
            input_ids (`torch.Tensor` of shape `(R, P)`): prompts.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): by default the collector's, else the one
                saved next to the model.
            do_sample (`bool`, *optional*, defaults to `False`):
                Whether tokens are drawn; only then are states and choices.

        Raises:
            `ValueError`: if the answer marker needs a tokenizer and there is none, or if none of its tokens spell it;
                if the model lacks a module that the schedule needs.
        """
        config, kind, device = self.config, current_intervention(), input_ids.device
        source = self.thinking_source(config.thinking_state_approximation and device.type == "cpu")
        method, draws, noise = config.thinking_method, None, None
        is_noisy = method.noise != "none" and not (method.noise == "gaussian" and config.thinking_sigma == 0)
        if do_sample and (is_noisy or method.schedule == "head"):
            draws = RowDraws(len(input_ids), device)
        if draws is not None and is_noisy:
            noise = StateNoise(source, draws, self.thinking_noise_scale(), config.thinking_noise_dropout)
        return ThinkingState(
            config.thinking_mode,
            source,
            self._thinking_end(tokenizer, device),
            len(input_ids),
            device,
            config.token_policy,
            config.thinking_placeholder_id,
            kind,
            None if kind is None else input_ids.unique(dim=0, return_inverse=True)[1],
            thinking_rule(config, dict(self.base_model.named_children()).get("thinking_head")),
            input_ids[:, -1] if input_ids.shape[1] else None,
            draws,
            noise,
        )

    def _thinking_end(self, tokenizer, device):
        """The automaton that ends the thinking phase."""
        if self.config.thinking_count is not None:
            return CountAutomaton(self.config.thinking_count)
        if not self.config.ends_by_marker:
            return None
        marker = self.config.thinking_answer_start
        return MarkerAutomaton.for_tokenizer(self._marker_tokenizer(tokenizer), marker, device)

    def _marker_tokenizer(self, tokenizer):
        collector = current_collector()
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
                    f"`thinking_answer_start={self.config.thinking_answer_start!r}` needs a tokenizer to be found in "
                    f"the generated tokens, and none could be loaded from next to the model ({path!r}: {error}). Pass "
                    "`tokenizer=` to `generate`, or set `config.thinking_answer_start = None` to think over the whole "
                    "completion."
                ) from error
        return getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds its tokenizer

    def prepare_inputs_for_generation(
        self,
        input_ids,
        inputs_embeds=None,
        thinking_observer=None,
        thinking_states=None,  # `generate` takes what is named here; `_sample` keeps them
        thinking_mask=None,
        **kwargs,
    ):
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if thinking_observer is not None:
            tokens = model_inputs["input_ids"]
            model_inputs.update(thinking_observer.model_inputs(1 if tokens is None else tokens.shape[1]))
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
        thinking_states=None,
        thinking_mask=None,
        **model_kwargs,
    ):
        """
        Differs from GenerationMixin._sample in the observers that it adds, in the thoughts that a prompt may hold (see
        [`PromptThinking`]), and in giving way to the collector's engine.
        """
        collector = current_collector()
        thoughts = {"thinking_states": thinking_states, "thinking_mask": thinking_mask}
        if collector is not None and collector.engine is not None:
            others = {"synced_gpus": synced_gpus, "streamer": streamer, **thoughts, **model_kwargs}
            if collector.engine.accepts(self, generation_config, others):
                return collector.engine(
                    self, input_ids, logits_processor, stopping_criteria, generation_config, tokenizer, **others
                )
        if collector is not None and collector.watcher is not None:
            stopping_criteria = StoppingCriteriaList([*stopping_criteria, collector.watcher])
        # FSDP2: a process whose rows have ended must go on with the others' passes
        synced_gpus = synced_gpus or isinstance(self.get_input_embeddings().weight, DTensor)
        call = functools.partial(
            super()._sample, input_ids, generation_config=generation_config, synced_gpus=synced_gpus, streamer=streamer
        )
        self.config.check_thinking()
        if self.config.thinking_mode == "none":
            return call(logits_processor=logits_processor, stopping_criteria=stopping_criteria, **model_kwargs)

        returned = generation_config.return_dict_in_generate
        cache, text_length = model_kwargs.get(CACHE), model_kwargs["position_ids"].shape[-1]
        past = 0 if cache is None else int(cache.get_seq_length())
        prompt = PromptThinking.of(input_ids, thinking_states, thinking_mask, past)
        continuation, waiting = find_continuation(cache, self.config.thinking_mode, input_ids, text_length)
        thinking = self.begin_thinking(input_ids, tokenizer, generation_config.do_sample)
        if continuation is not None and waiting == 1:
            thinking.resume(continuation.place)
        observer = ThinkingObserver(
            thinking,
            keep=returned or collector is not None or not generation_config.use_cache,
            logps_temperature=None if collector is None else collector.logps_temperature,
            continuation=continuation,
            prompt=prompt,
        )
        processors = [*logits_processor, observer.observe_scores]
        if observer.logps_temperature is not None:
            processors = [observer.observe_logits, *processors]
        output = call(
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=ObservedStoppingCriteria(stopping_criteria, observer),
            thinking_observer=observer,
            **model_kwargs,
        )
        recorded = dict(output) if returned else {"sequences": output}
        sequences = recorded.pop("sequences")
        if cache is not None and sequences.shape[1] > input_ids.shape[1]:
            start = None if continuation is None else continuation.prompt_length
            length = int(cache.get_seq_length())
            leave_continuation(cache, observer.end(sequences[:, input_ids.shape[1] :], start, length))
        if not returned and collector is None:
            return output
        rollout = observer.rollout(sequences.shape[1] - input_ids.shape[1])
        return thinking_output(sequences, rollout, returned, **recorded)
