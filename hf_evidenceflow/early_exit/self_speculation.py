"""Self-speculative greedy decoding: the model's first layers draft, the whole model verifies.

Draft and verify of LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710). Stock `generate(assistant_early_exit=k)` does
the same through a nested `generate` call per round, with a draft cache of its own that is filled by a prefill of its
own, runs the first k layers again in the verification, and is for families only that read `config.num_hidden_layers`
in their forward pass. Here drafts write to the first k layers of the model's own cache, the verification goes on from
their states ([`DraftPasses`]), and any family with a per-layer KV cache will do.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerateDecoderOnlyOutput

from ..models.thinking.cache_argument import CACHE
from .draft_passes import DraftHead, DraftPasses, drafts_can_be_kept
from .layer_calls import LayerProfile, profile_layers


class SelfSpeculation:
    """
    A decoding method for `generate(custom_generate=...)`: greedy, batch of one, the same tokens as plain greedy
    decoding (up to ties within the rounding of a pass over several tokens, as in stock assisted decoding).

    `generate` hands no `streamer` on to such a method: a streamer shows the prompt only.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal LM whose shallow layers were trained to be read out (cross-entropy at layer `depth - 1`). A looped
            one must keep keys and values for each loop, as TinySeek does.
        depth (`int`):
            Layers that draft, from 1 to L - 1.
        draft_tokens (`int`, *optional*, defaults to `10`):
            Tokens that are drafted at most before the model verifies them.
        min_confidence (`float`, *optional*, defaults to `0.4`):
            The draft ends behind a token that had less probability than this; 0 never ends it early.
        vocabulary (`Sequence[int]`, *optional*):
            Ids of the tokens that drafts choose from, such as the most frequent ones, where the head costs as much as
            a few layers. The tokens written stay those of greedy decoding over all. If `None`, all.

    Attributes:
        drafted, accepted, rounds (`int`):
            Tokens drafted and accepted, and verifying passes, over all calls since the last [`reset`].
        keeps_drafts (`bool`):
            Whether the verification goes on from the drafts' states; else it runs the first layers again.

    Raises:
        ValueError: if an argument is out of range, or the model cannot be read out early or uses a layer several
            times with one place in the cache;
            in `generate`: for a batch, sampling, beams, scores or a cache without plain keys and values.

    Example:

    ```python
    >>> speculation = SelfSpeculation(model, depth=4)
    >>> output = model.generate(**inputs, max_new_tokens=64, custom_generate=speculation)
    >>> speculation.accept_rate
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        depth: int,
        draft_tokens: int = 10,
        min_confidence: float = 0.4,
        vocabulary: Sequence[int] | None = None,
    ):
        self._profile = profile_layers(model)
        self._profile.check_depth(depth, below=1)
        if draft_tokens < 1:
            raise ValueError(f"`draft_tokens` must be at least 1, got {draft_tokens}.")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"`min_confidence` must be in [0, 1], got {min_confidence}.")
        if len(set(self._profile.parts.layers)) != self._profile.num_layers and not _has_cache_of_each_call(
            self._profile
        ):
            raise ValueError(
                f"{type(self._profile.parts.model).__name__} runs a layer several times, and its passes share a place "
                "in the KV cache. Use `early_exit` with `use_cache=False` instead."
            )
        self.depth = depth
        self.draft_tokens = draft_tokens
        self.min_confidence = min_confidence
        self._head = DraftHead(self._profile.parts.head, vocabulary)
        self.keeps_drafts = drafts_can_be_kept(self._profile, depth)
        self.reset()

    def reset(self) -> None:
        """Sets the counters to 0."""
        self.drafted = self.accepted = self.rounds = 0

    @property
    def accept_rate(self) -> float:
        """Share of the drafted tokens that the whole model would have chosen too; NaN if none was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        """Called by `generate` with prepared inputs; returns what greedy decoding returns."""
        self._check(model, input_ids, generation_config, model_kwargs)
        decoding = DraftPasses(
            self._profile, self.depth, input_ids, logits_processor, model_kwargs, self._head, self.keeps_drafts
        )
        with decoding:
            ended = self._append(decoding, decoding.prefill(), stopping_criteria)
            while not ended:
                drafts, further = self._draft(decoding, generation_config)
                chosen = decoding.verify(drafts, further)
                matches = 0
                while matches < len(drafts) and drafts[matches] == chosen[matches]:
                    matches += 1
                self.rounds += 1
                self.drafted += len(drafts)
                self.accepted += matches
                ended = self._append(decoding, chosen[: matches + 1], stopping_criteria)
        if not generation_config.return_dict_in_generate:
            return decoding.sequence
        return GenerateDecoderOnlyOutput(sequences=decoding.sequence, **{CACHE: decoding.cache})

    def _draft(self, decoding, generation_config):
        """The drafts, and whether a token behind the last one is likely to count."""
        # The verifying pass adds a token of its own
        room = generation_config.max_length - decoding.sequence.shape[1] - 1
        eos = generation_config._eos_token_tensor
        eos = [] if eos is None else eos.tolist()
        drafts = []
        while len(drafts) < min(self.draft_tokens, room):
            token, confidence = decoding.draft(drafts)
            drafts.append(token)
            if token in eos or confidence < self.min_confidence:
                return drafts, False
        return drafts, True

    @staticmethod
    def _append(decoding, tokens, stopping_criteria):
        """Appends tokens until one ends the sequence; the cache then holds all tokens but the last."""
        for token in tokens:
            decoding.append(token)
            if bool(stopping_criteria(decoding.sequence, None).all()):
                decoding.crop()
                return True
        decoding.crop()
        return False

    def _check(self, model, input_ids, config, model_kwargs):
        if model is not self._profile.parts.model:
            raise ValueError(
                f"This `SelfSpeculation` was made for another model than the {type(model).__name__} that generates."
            )
        cache = model_kwargs.get(CACHE)
        reasons = {
            f"a batch of {len(input_ids)}": len(input_ids) != 1,
            "`do_sample=True`": config.do_sample,
            f"`num_beams={config.num_beams}`": config.num_beams > 1,
            "scores, logits, attentions or hidden states as outputs": config.output_scores
            or config.output_logits
            or config.output_attentions
            or config.output_hidden_states,
            "`use_cache=False`": cache is None,
            f"the cache of {type(model).__name__}": cache is not None
            and not (isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)),
            "prompts as embeddings": model_kwargs.get("inputs_embeds") is not None,
        }
        if found := [reason for reason, holds in reasons.items() if holds]:
            raise ValueError(
                f"Self-speculation decodes one sequence greedily with a plain KV cache; it cannot be used with "
                f"{', '.join(found)}. Change that, or use stock `generate(assistant_early_exit={self.depth})`."
            )


@torch.no_grad()
def _has_cache_of_each_call(profile: LayerProfile) -> bool:
    model = profile.parts.model
    ids = torch.zeros(1, 1, dtype=torch.long, device=profile.parts.embeddings.weight.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, **{CACHE: cache}, use_cache=True)
    return len(cache.layers) == profile.num_layers and all(layer.get_seq_length() == 1 for layer in cache.layers)
