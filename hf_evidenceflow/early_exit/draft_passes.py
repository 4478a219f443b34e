"""The forward passes of self-speculation over one sequence: drafts by the first layers, verification by the others.

A draft writes to the first layers' part of the model's own cache and leaves its states there where it left the layers.
The verifying pass goes on from these states (the KVQ cache of LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710,
section 4.3.3): its first layers only pass on, with the drafts' keys and values taken out of the cache until the model
has built masks and positions.

A model may use more than a layer's states behind it, such as states of earlier layers. There the first layers are run
again for the drafted tokens: [`drafts_can_be_kept`] finds out.
"""

import contextlib
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..models.decoder import layer_output
from ..models.thinking.cache_argument import CACHE
from .layer_calls import LayerProfile, replaced_layer_calls, shadowed


class DraftHead:
    """
    The output head for drafts: over all tokens, or over the `vocabulary` `[C]` alone, whose rows are copied once. A
    draft is verified, so that a token that it cannot choose costs speed and nothing else.
    """

    def __init__(self, head: nn.Module, vocabulary: Sequence[int] | None = None):
        self._vocabulary = self._weight = None
        if vocabulary is None:
            return
        if type(head) is not nn.Linear or head.bias is not None:
            raise ValueError(
                f"A draft vocabulary takes rows out of a linear head without bias; this is a {type(head).__name__}. "
                "Leave `vocabulary` out."
            )
        ids = torch.tensor(sorted(set(vocabulary)), device=head.weight.device)
        if not len(ids) or ids[0] < 0 or ids[-1] >= len(head.weight):
            raise ValueError(f"`vocabulary` must be token ids from 0 to {len(head.weight) - 1}, at least one.")
        self._vocabulary, self._weight = ids, head.weight.detach()[ids]

    def logits(self, forward, states: torch.Tensor) -> torch.Tensor:
        """The logits `[1, 1, C]`, by the head's own `forward` where the vocabulary is whole."""
        return forward(states) if self._weight is None else F.linear(states, self._weight)

    def over_all(self, logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Logits `[1, C]` as `[1, V]`, with minus infinity at all other tokens."""
        if self._vocabulary is None:
            return logits
        everywhere = logits.new_full((1, vocab_size), float("-inf"))
        everywhere[:, self._vocabulary] = logits
        return everywhere

    def token(self, place: int) -> int:
        """The token id at a place of the logits."""
        return place if self._vocabulary is None else int(self._vocabulary[place])


class DraftPasses:
    """
    One sequence with its cache, and the passes over it; use it as a `with` block. The cache holds all tokens of the
    sequence but the last.

    Args:
        profile ([`LayerProfile`]): of the model.
        depth (`int`): layers that draft.
        sequence (`torch.Tensor` of shape `(1, T)`): the prompt.
        processor (`LogitsProcessorList`): of `generate`.
        model_kwargs (`dict`): of `generate`, with the cache.
        head ([`DraftHead`]): for drafts.
        keep (`bool`): whether the drafts' states are kept for the verification.
    """

    def __init__(self, profile: LayerProfile, depth, sequence, processor, model_kwargs, head, keep):
        self.sequence = sequence
        self.cache = model_kwargs[CACHE]
        self._profile, self._depth, self._processor, self._kwargs = profile, depth, processor, model_kwargs
        self._head, self._keep = head, keep
        mask = model_kwargs.get("attention_mask")
        # A mask of ones says what none says, and costs time in each pass
        self._mask = None if mask is None or bool(mask.all()) else mask
        positions = model_kwargs.get("position_ids")
        self._position = None if positions is None else positions[..., -1:]  # of the last token of the sequence
        self._whole_head = profile.parts.head.forward
        self._run, self._logits = self._plainly, self._whole_head
        self._states: list[torch.Tensor] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        parts = self._profile.parts
        with self._stack as stack:
            stack.enter_context(replaced_layer_calls(parts, lambda *call: self._run(*call)))
            stack.enter_context(shadowed(parts.head, "forward", lambda states: self._logits(states)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.close()

    # What layers do

    def _plainly(self, call, forward, states):
        return forward(states)

    def _draft(self, call, forward, states):
        if call > self._depth:
            return self._profile.output(states)
        output = forward(states)
        if call == self._depth and self._keep:
            self._states.append(layer_output(output))
        return output

    def _go_on(self, call, forward, states):
        if call > self._depth:
            return forward(states)
        if call == 1:
            for layer, kept in zip(self.cache.layers, self._early):
                layer.keys, layer.values = kept
        return self._profile.output(torch.cat(self._states, 1) if call == self._depth else states)

    @contextlib.contextmanager
    def _as(self, run, logits):
        self._run, self._logits = run, logits
        try:
            yield
        finally:
            self._run, self._logits = self._plainly, self._whole_head

    # Passes

    def prefill(self) -> list[int]:
        """Run the prompt, or what of it the cache does not hold; returns the token behind it."""
        model = self._profile.parts.model
        inputs = model.prepare_inputs_for_generation(self.sequence, is_first_iteration=True, **self._kwargs)
        seen = self.cache.get_seq_length()
        for name in ("input_ids", "position_ids"):
            if seen and inputs.get(name) is not None:
                inputs[name] = inputs[name][..., seen - self.sequence.shape[1] :]
        return [int(self._scores(self.sequence, model(**inputs).logits[:, -1]).argmax())]

    def draft(self, drafts: list[int]) -> tuple[int, float]:
        """The next token of the first layers and its probability."""
        ids = self._with(drafts)
        with self._as(self._draft, lambda states: self._head.logits(self._whole_head, states)):
            logits = self._forward(ids, 1)[:, -1]
        if len(self._processor):
            scores = self._scores(ids, self._head.over_all(logits, self._profile.parts.embeddings.num_embeddings))[0]
            place = int(scores.argmax())
            return place, float((scores[place] - scores.logsumexp(-1)).exp())
        top, place = logits[0].max(-1)
        return self._head.token(int(place)), float((top - logits[0].logsumexp(-1)).exp())

    def verify(self, drafts: list[int], further: bool = True) -> list[int]:
        """
        What the whole model chooses in place of each draft and, with `further`, behind the last one.

        Without `further` the first layers need not see the last draft.
        """
        logits = self.verified_logits(drafts, further)
        if not len(self._processor):
            return logits[0].argmax(-1).tolist()
        ids, start = self._with(drafts), self.sequence.shape[1]
        places = range(logits.shape[1])
        return [int(self._scores(ids[:, : start + place], logits[:, place]).argmax()) for place in places]

    def verified_logits(self, drafts: list[int], further: bool) -> torch.Tensor:
        """The whole model's logits `[1, C, V]` for [`verify`]."""
        if further and drafts and self._keep:
            with self._as(self._draft, lambda states: states[..., :1]):  # no logits are needed
                self._forward(self._with(drafts), 1)
        count = len(drafts) + further
        ids = self._with(drafts if further else drafts[:-1])
        kept = len(self._states)
        if kept:
            self._early = [(layer.keys, layer.values) for layer in self.cache.layers[: self._depth]]
        for layer in self.cache.layers[: self._depth]:
            layer.crop(-(kept or len(drafts)))
        with self._as(self._go_on if kept else self._plainly, self._whole_head):
            logits = self._forward(ids, count)
        self._states = []
        return logits

    def append(self, token: int) -> None:
        """Append a token to the sequence."""
        self.sequence = self._with([token])
        if self._position is not None:
            self._position = self._position + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(1, 1)], dim=1)

    def crop(self) -> None:
        """Takes what was not accepted out of the cache."""
        self.cache.crop(min(self.sequence.shape[1] - 1 - self.cache.get_seq_length(), 0))

    def _forward(self, ids, count):
        """Logits of the last `count` tokens, which the cache does not hold yet."""
        inputs = {"input_ids": ids[:, -count:], CACHE: self.cache, "use_cache": True}
        ahead = ids.shape[1] - self.sequence.shape[1]  # drafted tokens behind the sequence
        if self._mask is not None:
            inputs["attention_mask"] = torch.cat([self._mask, self._mask.new_ones(1, ahead)], dim=1)
        if self._position is not None:
            steps = torch.arange(ahead + 1 - count, ahead + 1, device=ids.device)
            inputs["position_ids"] = self._position + steps
        return self._profile.parts.model(**inputs).logits.float()

    def _scores(self, ids, logits):
        logits = logits.float()
        return self._processor(ids, logits) if len(self._processor) else logits

    def _with(self, tokens):
        return torch.cat([self.sequence, self.sequence.new_tensor([tokens])], dim=1) if tokens else self.sequence


@torch.no_grad()
def drafts_can_be_kept(profile: LayerProfile, depth: int) -> bool:
    """Whether a verifying pass that goes on from the drafts' states gives the logits of a pass over all layers."""
    model = profile.parts.model
    if len(set(profile.parts.layers)) != profile.num_layers:  # what a loop decides may hang on states of earlier ones
        return False
    ids = torch.arange(5, device=profile.parts.embeddings.weight.device)[None]
    right = model(input_ids=ids, use_cache=False).logits[0, 2:4].float()
    cache = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in cache.layers):  # refused later, with the reason
        return False
    head = DraftHead(profile.parts.head)
    try:
        with DraftPasses(profile, depth, ids[:, :3], [], {CACHE: cache}, head, keep=True) as passes:
            model(input_ids=ids[:, :2], use_cache=True, **{CACHE: cache})
            passes.draft([])
            passes.draft([3])
            own = passes.verified_logits([3, 4], further=False)[0]
    except Exception as error:  # whatever a layer raises that finds nothing of earlier layers
        logging.getLogger(__name__).info(
            "The first layers run again in each verifying pass: %s: %s", type(error).__name__, error
        )
        return False
    tolerance = 1e-4 if right.dtype == profile.parts.head.weight.dtype else 5e-2
    return bool((own - right).abs().max() <= tolerance * right.abs().max())
