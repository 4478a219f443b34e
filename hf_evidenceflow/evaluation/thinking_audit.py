"""Whether a model's thinking does anything: its accuracy with its states, and with states taken away or exchanged.

The patterns that are read into latent thoughts are found in control models too (arXiv 2606.12689), so that only an
intervention tells.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import is_peft_model

from ..models.thinking.generation_thinking import ThinkingGenerationMixin
from ..models.thinking.intervention import INTERVENTIONS, ThinkingIntervention
from ..report.tables import markdown_table
from .completions import Completion, generate_completions
from .statistics import holm, paired_difference, proportion_interval


TRAINED = "on"
_INTERVAL = "95 % interval"
_COLUMNS = ("thinking", "accuracy", _INTERVAL, "as trained minus this", _INTERVAL, "p (Holm)", "changed", "tokens")


@dataclass
class ThinkingAudit:
    """
    Greedy completions of the same problems under each intervention.

    Args:
        completions (`dict[str, list[Completion]]`):
            By intervention, `"on"` for the model as it was trained, in the order of the problems.
        scores (`dict[str, list[float]]`):
            1.0 for each right completion, else 0.0.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.
    """

    completions: dict[str, list[Completion]]
    scores: dict[str, list[float]]
    seed: int = 0
    _summary: dict[str, Any] | None = field(default=None, repr=False)

    def summary(self) -> dict[str, Any]:
        """
        By intervention `accuracy` with its Wilson interval, `mean_tokens` and `thinking_tokens` of a completion; for
        all but `"on"` also `changed`, the share of completions that differ from it, and `difference`, the accuracy
        with thinking as trained minus this one: a paired bootstrap interval, McNemar's test, its p-value after Holm.
        """
        if self._summary is None:
            self._summary = {kind: self._row(kind) for kind in self.scores}
            differences = [row["difference"] for row in self._summary.values() if "difference" in row]
            adjusted = holm([difference["p_value"] for difference in differences])
            for difference, p_value in zip(differences, adjusted):
                difference["p_holm"] = p_value
        return self._summary

    def _row(self, kind) -> dict[str, Any]:
        scores, completions, trained = self.scores[kind], self.completions[kind], self.completions[TRAINED]
        count = len(scores)
        row = {
            "accuracy": proportion_interval(int(sum(scores)), count)._asdict(),
            "mean_tokens": sum(completion.completion_tokens for completion in completions) / count,
            "thinking_tokens": sum(completion.thinking_tokens or 0 for completion in completions) / count,
        }
        if kind != TRAINED:
            row["changed"] = sum(one.text != other.text for one, other in zip(completions, trained)) / count
            row["difference"] = paired_difference(scores, self.scores[TRAINED], seed=self.seed)._asdict()
        return row

    def table(self) -> str:
        """The summary in Markdown."""
        return markdown_table(_COLUMNS, [_cells(kind, row) for kind, row in self.summary().items()])


def _cells(kind, row) -> list[str]:
    accuracy, difference = row["accuracy"], row.get("difference")
    cells = [kind, f"{accuracy['value']:.4f}", f"{accuracy['low']:.4f} to {accuracy['high']:.4f}"]
    if difference is None:
        cells += ["", "", "", ""]
    else:
        ends = f"{difference['low']:+.4f} to {difference['high']:+.4f}"
        cells += [f"{difference['value']:+.4f}", ends, f"{difference['p_holm']:.2g}", f"{row['changed']:.1%}"]
    return [*cells, f"{row['mean_tokens']:.1f}"]


def audit_thinking(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, Any]],
    reward: Callable[..., Sequence[float]],
    *,
    max_new_tokens: int,
    interventions: Sequence[str] = INTERVENTIONS,
    batch_size: int = 64,
    seed: int = 0,
    chat_template_kwargs: dict | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ThinkingAudit:
    """
    Complete the same problems greedily with thinking as trained and under interventions, with the same token budget.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Thinking model.
        rows (`Sequence[Mapping]`):
            At least two problems, each with `prompt` (text or chat messages) and `answer`.
        reward ([`Reward`]):
            Grades `completions` by `answer`, with 1.0 or 0.0 each.
        max_new_tokens (`int`):
            Longest completion, thoughts included.
        interventions (`Sequence[str]`, *optional*, defaults to all):
            Kinds of [`ThinkingIntervention`].
        batch_size (`int`, *optional*, defaults to `64`):
            Completions generated at once, between which states are exchanged; one more where a single one would be
            left over.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the intervals.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, the same as in training.
        on_batch (`Callable[[int], None]`, *optional*):
            Called with the number of completions after each batch.

    Raises:
        `ValueError`: if the model does not think, or if there are too few problems to exchange states.

    Example:

    ```python
    >>> from hf_evidenceflow.evaluation.thinking_audit import audit_thinking
    >>> from hf_evidenceflow.tasks import set_tracking_reward, split_set_problems

    >>> rows = split_set_problems(train=0, test=500)["test"]
    >>> print(audit_thinking(model, tokenizer, rows, set_tracking_reward, max_new_tokens=12).table())
    ```
    """
    base = model.get_base_model() if is_peft_model(model) else model
    if not (isinstance(base, ThinkingGenerationMixin) and model.config.thinking_mode != "none"):
        raise ValueError(
            f"{type(base).__name__} does not think, so there is nothing to intervene in. Load a thinking checkpoint "
            "with `load_thinking_model`, in a `thinking_mode` other than 'none'."
        )
    if len(rows) < 2 or batch_size < 2:
        raise ValueError(
            f"States are exchanged between problems: at least 2 problems and a `batch_size` of 2 are needed, got "
            f"{len(rows)} and {batch_size}."
        )
    while len(rows) % batch_size == 1:
        batch_size += 1
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    complete = functools.partial(
        generate_completions,
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        chat_template_kwargs=chat_template_kwargs,
    )
    completions: dict[str, list[Completion]] = {}
    scores: dict[str, list[float]] = {}
    for kind in (TRAINED, *interventions):
        found: list[Completion] = []
        with nullcontext() if kind == TRAINED else ThinkingIntervention(kind):
            for batch in complete():
                found += batch
                if on_batch is not None:
                    on_batch(len(batch))
        completions[kind] = sorted(found, key=lambda completion: completion.index)
        texts = [completion.text for completion in completions[kind]]
        scores[kind] = [float(score) for score in reward(completions=texts, answer=answers)]
    return ThinkingAudit(completions, scores, seed)
