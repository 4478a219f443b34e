"""`EvidenceProbe`: what each layer of a causal LM knows about the next token.

Shapes: N positions with a right next token, K listed tokens, L layers; a looped block counts each of its loops as a
layer. The embedding is no layer: it is shown as row -1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..models.decoder import decoder_parts
from .forward import MeasuredTokens, measure_batch
from .measures import drift_rate, effective_depth, effective_rank
from .texts import encode_texts, token_strings


# Means that `summarize` gives
_SUMMARY = (
    *("lens_loss", "lens_accuracy", "label_probability", "entropy", "state_norm", "step_norm", "relative_step"),
    *("cosine_to_target", "cosine_to_output_row", "mse_to_target"),
)


@dataclass(frozen=True)
class ProbeResult:
    """
    What [`EvidenceProbe`] found. The first axis of a measure is the embedding (-1), then the layers (0 to L-1).

    Attributes:
        layers (`list[int]`):
            -1 for the embedding, then 0 to L-1.
        rows (`list[int]` of length `N`):
            Row of the batch, or number of the text, of each token.
        positions (`list[int]` of length `N`):
            Position of each token in its row.
        input_ids, labels (`list[int]` of length `N`):
            The token at the position, and the right next one.
        measures (`dict[str, torch.Tensor]`):
            Tensors of shape (L+1, N): `mse_to_target` (squared distance averaged over H), `cosine_to_target`,
            `cosine_to_output_row`, `lens_loss`, `label_rank` (1 is the best), `label_probability`, `entropy`,
            `log_odds`, `state_norm`, `step_norm`, `relative_step`; defined in
            [`~hf_evidenceflow.probe.measures.state_measures`] and `LensMeasures` there.
        top_ids, top_probabilities (`torch.Tensor` of shape `(L+1, N, K)`):
            The most probable tokens of each layer, best first.
        effective_rank (`list[float]` of length `L+1`):
            Of the states of all N tokens, layer by layer; at most N.
        drift_rate (`torch.Tensor` of shape `(N,)`):
            Slope of the label's log-odds from the embedding to the last layer, in nats a layer.
        effective_depth (`torch.Tensor` of shape `(N,)`):
            Number of layers whose relative step is above `step_threshold`, int64.
        step_threshold (`float`):
            That threshold.
        token_strings (`dict[int, str]`):
            Text of each token id above, or the id in brackets if the probe has no tokenizer.
    """

    layers: list[int]
    rows: list[int]
    positions: list[int]
    input_ids: list[int]
    labels: list[int]
    measures: dict[str, torch.Tensor]
    top_ids: torch.Tensor
    top_probabilities: torch.Tensor
    effective_rank: list[float]
    drift_rate: torch.Tensor
    effective_depth: torch.Tensor
    step_threshold: float
    token_strings: dict[int, str]


class EvidenceProbe:
    """
    Looks into the layers of a causal LM, bare or inside a PEFT model.

    The states after each layer are read out through the model's own final norm and head (the logit lens); the last
    layer's row is the model's logits themselves. Besides these, logits exist for `chunk_size` tokens of one layer at a
    time. The model is put into eval mode for the time of a call and then back, and its hooks go in any case.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal LM.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Needed for texts, and to show tokens as text.
        layer_modules (`str`, *optional*):
            Name of the `ModuleList` of decoder layers; if `None`, it is looked for.
        top_k (`int`, *optional*, defaults to `5`):
            Number of most probable tokens kept for each layer and token.
        step_threshold (`float`, *optional*, defaults to `0.1`):
            Relative step above which a layer counts in the effective depth.
        chunk_size (`int`, *optional*, defaults to `256`):
            Tokens read out at a time.
        max_length (`int`, *optional*):
            Tokens of a text that are looked at; the rest is cut, with a warning. If `None`, as many as the model's
            `max_position_embeddings`.

    Raises:
        ValueError: if the model has no head, its layers cannot be found, or a number is out of its range.

    Example:

    ```python
    >>> result = EvidenceProbe(model, tokenizer).probe("The cat sat on the mat.")
    >>> result.measures["lens_loss"].mean(1)  # per layer, the embedding first
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        layer_modules: str | None = None,
        top_k: int = 5,
        step_threshold: float = 0.1,
        chunk_size: int = 256,
        max_length: int | None = None,
    ):
        for name, value, least in (
            ("top_k", top_k, 1),
            ("step_threshold", step_threshold, 0),
            ("chunk_size", chunk_size, 1),
            ("max_length", 2 if max_length is None else max_length, 2),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        self.model, self.tokenizer = model, tokenizer
        self.parts = decoder_parts(model, layer_modules)
        self.top_k, self.step_threshold, self.chunk_size = top_k, step_threshold, chunk_size
        positions = getattr(self.parts.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(filter(None, (max_length, positions)), default=None)

    def probe(self, inputs: str | Sequence[str] | Mapping[str, torch.Tensor]) -> ProbeResult:
        """
        Measure every layer at every position that has a right next token.

        Left out are, as in the losses, padding, labels of -100, borders of packed sequences and last positions.

        Args:
            inputs (`str`, `Sequence[str]` or `Mapping[str, torch.Tensor]`):
                Texts, or a batch for the model's forward: `input_ids` of shape (B, T), where needed `attention_mask`
                and `position_ids`, and `labels` (not shifted; by default the `input_ids`). Texts are run one by one,
                so that no padding is needed.

        Returns:
            [`ProbeResult`].

        Raises:
            ValueError: if there is no text, a text has fewer than two tokens, no position has a right next token, the
                probe has no tokenizer for texts, or the lens does not give the model's own logits at the last layer.
        """
        batch = isinstance(inputs, Mapping)
        batches = [inputs] if isinstance(inputs, Mapping) else encode_texts(inputs, self.tokenizer, self.max_length)
        found = [self._measure(one) for one in batches]
        names = ("rows", "positions", "input_ids", "labels")
        columns = {name: torch.cat([getattr(one, name) for one in found]).tolist() for name in names}
        if not batch:
            columns["rows"] = [number for number, one in enumerate(found) for _ in one.rows]
        if not columns["labels"]:
            raise ValueError("No position has a right next token: pass rows of two tokens or more and labels >= 0.")
        top_ids = torch.cat([one.top_ids for one in found], dim=1)
        measures = {name: torch.cat([one.measures[name] for one in found], dim=1) for name in found[0].measures}
        states = map(torch.cat, zip(*(one.states for one in found)))
        return ProbeResult(
            layers=list(range(-1, len(top_ids) - 1)),
            **columns,
            measures=measures,
            top_ids=top_ids,
            top_probabilities=torch.cat([one.top_probabilities for one in found], dim=1),
            effective_rank=[effective_rank(layer) for layer in states],
            drift_rate=drift_rate(measures["log_odds"]),
            effective_depth=effective_depth(measures["relative_step"][1:], self.step_threshold),
            step_threshold=self.step_threshold,
            token_strings=token_strings(
                {*columns["input_ids"], *columns["labels"], *top_ids.unique().tolist()}, self.tokenizer
            ),
        )

    def summarize(
        self, batches: Iterable[Mapping[str, torch.Tensor]], rank_tokens: int = 2048, seed: int = 0
    ) -> list[dict[str, Any]]:
        """
        Average each layer over many batches, which are read one at a time and not kept.

        Args:
            batches (`Iterable[Mapping[str, torch.Tensor]]`):
                Batches as in [`~EvidenceProbe.probe`].
            rank_tokens (`int`, *optional*, defaults to `2048`):
                Tokens whose states are kept for the effective rank: a uniform sample, the same tokens in each layer.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sample, which does not depend on how the tokens are spread over batches.

        Returns:
            `list[dict]`: One row for each of the L layers (not the embedding) with `layer`, `tokens`, the means over
            tokens of `lens_loss`, `lens_accuracy`, `label_probability`, `entropy`, `state_norm`, `step_norm`,
            `relative_step`, `cosine_to_target`, `cosine_to_output_row` and `mse_to_target`, and `effective_rank`.

        Raises:
            ValueError: if no batch has a position with a right next token, or `rank_tokens` is below 1.
        """
        if rank_tokens < 1:
            raise ValueError(f"`rank_tokens` must be at least 1, got {rank_tokens}.")
        generator = torch.Generator().manual_seed(seed)
        count, sums, sample, keys = 0, {}, None, torch.empty(0)
        for batch in batches:
            found = self._measure(batch)
            count += len(found.labels)
            measures = found.measures | {"lens_accuracy": found.measures["label_rank"] == 1}
            for name in _SUMMARY:
                sums[name] = sums.get(name, 0) + measures[name][1:].double().sum(1)  # [L]
            # Each token draws a key and the smallest keys stay: a uniform sample of as many tokens as come
            keys = torch.cat([keys, torch.rand(len(found.labels), generator=generator)])
            kept = keys.argsort()[:rank_tokens]
            keys, new = keys[kept], torch.stack(found.states[1:])  # [L, N, H]
            sample = (new if sample is None else torch.cat([sample, new], dim=1))[:, kept]
        if count == 0:
            raise ValueError("No batch has a position with a right next token: there is nothing to average.")
        means = {name: (value / count).tolist() for name, value in sums.items()}
        return [
            {"layer": layer, "tokens": count, **{name: means[name][layer] for name in _SUMMARY}}
            | {"effective_rank": effective_rank(states)}
            for layer, states in enumerate(sample)
        ]

    def _measure(self, batch: Mapping[str, torch.Tensor]) -> MeasuredTokens:
        return measure_batch(self.model, self.parts, batch, self.top_k, self.chunk_size)
