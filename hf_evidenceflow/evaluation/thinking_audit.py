"""Whether a model's thinking does anything: its accuracy with its states, and with states taken away or exchanged.

The patterns that are read into latent thoughts are found in control models too (arXiv 2606.12689), so that only an
intervention tells.
"""

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
AUDIT_COLUMNS = (
    *("thinking", "accuracy", _INTERVAL, "as trained minus this", _INTERVAL),
    *("p (Holm)", "changed", "tokens"),
)
_OTHERS = ("swap", "shuffle")  # states of other problems
_TAKEN = ("zero", "off")
_FINDINGS = {
    "own": "The answers come from the states: with those of other problems they are worse.",
    "norm": (
        "The answers come from the norms of the states: with the norm of a row's own state and the direction of "
        "another problem's they are as good, with another problem's state they are worse."
    ),
    "any": "The answers need a state, but not their own: with those of other problems they are as good.",
    "mixed": "The mean of the states in their place makes the answers worse, and nothing else does.",
    "nothing": "No sign that the answers need the states.",
}


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

    def rows(self) -> list[list[str]]:
        """Cells of the table, in the order of [`AUDIT_COLUMNS`]."""
        return [_cells(kind, row) for kind, row in self.summary().items()]

    def table(self) -> str:
        """The summary in Markdown."""
        return markdown_table(AUDIT_COLUMNS, self.rows())

    def costs(self, kind: str) -> bool:
        """Whether an intervention makes the answers worse: p below .05 after Holm."""
        difference = self.summary()[kind]["difference"]
        return difference["value"] > 0 and difference["p_holm"] < 0.05

    def finding(self) -> str:
        """
        What the interventions say about the states, in one or two sentences. An effect that these problems are too few
        for is not found, so that the largest one that goes with the intervals is named.
        """
        differences = {kind: row["difference"] for kind, row in self.summary().items() if kind != TRAINED}
        costly = [kind for kind in differences if self.costs(kind)]
        harmless = [kind for kind in differences if kind not in (*costly, "off")]
        text = _FINDINGS[_pattern(costly, harmless)]
        if "off" in differences and "off" not in costly:
            better = differences["off"]["value"] < 0 and differences["off"]["p_holm"] < 0.05
            text += f" Without thinking they are {'better' if better else 'as good'}."
        if harmless:
            count = len(self.scores[TRAINED])
            # Where no score changes, the bootstrap has no width: then Clopper and Pearson's bound for 0 of `count`
            most = max(1 - 0.025 ** (1 / count), *(differences[kind]["high"] for kind in harmless))
            text += f" Costs nothing that {count} problems show: {', '.join(harmless)}"
            text += f" (at most {most:.3f} of accuracy)."
        return text


def _pattern(costly, harmless) -> str:
    """Key of [`_FINDINGS`]."""
    if any(kind in costly for kind in _OTHERS):
        return "norm" if "direction" in harmless else "own"
    if any(kind in costly for kind in _TAKEN):
        return "any"
    return "mixed" if costly else "nothing"


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
            Thinking model. For one of another library: [`audit_generation`].
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
            "with `load_thinking_model`, in a `thinking_mode` other than 'none'; or give a model of another library "
            "to `audit_generation` as a function."
        )
    batch_size = _no_one_alone(len(rows), batch_size)
    prompts = [row["prompt"] for row in rows]

    def complete(kind):
        with nullcontext() if kind == TRAINED else ThinkingIntervention(kind):
            yield from generate_completions(
                model,
                tokenizer,
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seed=seed,
                chat_template_kwargs=chat_template_kwargs,
            )

    return _audit(complete, rows, reward, interventions, seed, on_batch)


def audit_generation(
    generate: Callable[[list, str | None], list[str]],
    rows: Sequence[Mapping[str, Any]],
    reward: Callable[..., Sequence[float]],
    *,
    interventions: Sequence[str] = INTERVENTIONS,
    batch_size: int = 64,
    seed: int = 0,
    count_tokens: Callable[[str], int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ThinkingAudit:
    """
    [`audit_thinking`] of a latent model of another library.

    Args:
        generate (`Callable[[list, str | None], list[str]]`):
            Completes a batch of prompts, as they stand in `rows`, under a kind of intervention, `None` for thinking as
            trained; returns the texts. It sees to it that all kinds have the same budget of tokens.
        interventions (`Sequence[str]`, *optional*):
            Kinds that `generate` knows; those of [`ThinkingIntervention`] are understood by
            [`~ThinkingAudit.finding`].
        count_tokens (`Callable[[str], int]`, *optional*):
            Length of a text in tokens; by default in words.
        rows, reward, batch_size, seed, on_batch:
            As in [`audit_thinking`].

    Example:

    ```python
    >>> def generate(prompts, intervention):
    ...     with exchanged_states(codi, intervention):  # whatever the other library needs
    ...         return codi.answer(prompts, max_new_tokens=64)
    >>> audit = audit_generation(generate, rows, gsm8k_reward, interventions=("zero", "swap"))
    >>> print(audit.finding())
    ```
    """
    batch_size = _no_one_alone(len(rows), batch_size)
    count_tokens = (lambda text: len(text.split())) if count_tokens is None else count_tokens

    def complete(kind):
        for start in range(0, len(rows), batch_size):
            prompts = [row["prompt"] for row in rows[start : start + batch_size]]
            texts = generate(prompts, None if kind == TRAINED else kind)
            if len(texts) != len(prompts):
                raise ValueError(f"`generate` must return {len(prompts)} texts, one a prompt, got {len(texts)}.")
            yield [
                Completion(index, 0, prompt, text, count_tokens(prompt), count_tokens(text), *_UNKNOWN)
                for index, (prompt, text) in enumerate(zip(map(str, prompts), texts), start)
            ]

    return _audit(complete, rows, reward, interventions, seed, on_batch)


_UNKNOWN = (True, None, None, 0.0)  # of a completion whose text alone is known


def _no_one_alone(count: int, batch_size: int) -> int:
    """The batch size, larger where the last batch would have a single row."""
    if count < 2 or batch_size < 2:
        raise ValueError(
            f"States are exchanged between problems: at least 2 problems and a `batch_size` of 2 are needed, got "
            f"{count} and {batch_size}."
        )
    while count % batch_size == 1:
        batch_size += 1
    return batch_size


def _audit(complete, rows, reward, interventions, seed, on_batch) -> ThinkingAudit:
    completions: dict[str, list[Completion]] = {}
    scores: dict[str, list[float]] = {}
    answers = [row["answer"] for row in rows]
    for kind in (TRAINED, *interventions):
        found: list[Completion] = []
        for batch in complete(kind):
            found += batch
            if on_batch is not None:
                on_batch(len(batch))
        completions[kind] = sorted(found, key=lambda completion: completion.index)
        texts = [completion.text for completion in completions[kind]]
        scores[kind] = [float(score) for score in reward(completions=texts, answer=answers)]
    return ThinkingAudit(completions, scores, seed)
