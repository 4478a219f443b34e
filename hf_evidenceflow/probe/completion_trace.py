"""What a thinking model's completion is made of: words, gates and states of each token, the answer over time.

Shapes: C completion tokens, H hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model

from .answer_probability import answer_probabilities
from .texts import token_strings


Words = list[tuple[str, float]]


@dataclass(frozen=True)
class TracedToken:
    """
    One token of a completion.

    Attributes:
        token (`str`):
            Its text.
        thinks (`bool`):
            Whether it is a thought.
        words (`list[tuple[str, float]]`):
            The most probable tokens at its place with their probabilities, the best first. In modes whose state is a
            mean of embeddings these are what is mixed.
        without (`tuple[str, float]`):
            The most probable token at its place where the tokens so far are read without any state, and its
            probability there.
        gate, latent_share (`float`, *optional*):
            Of a thought, the means over the hidden size of the gate `r` and of `sqrt(1 - a^2)`: 1 where the state
            takes the place of the embedding. `None` where there is no gate, or no state.
        target_share (`float`, *optional*):
            Probability of its target's tokens at its place; `None` where no target is known.
        lens (`list[tuple[str, float]]`):
            The most probable words of a thought's state, read by the output head (logit lens), where it is a hidden
            state or a projection of one; else empty.
        nearest (`list[tuple[str, float]]`):
            The input embeddings nearest to a thought's state with their cosines.
        answer (`float`, *optional*):
            Probability of the right answer behind it, of [`answer_probabilities`]; `None` where it was not measured.
    """

    token: str
    thinks: bool
    words: Words
    without: tuple[str, float]
    gate: float | None = None
    latent_share: float | None = None
    target_share: float | None = None
    lens: Words = field(default_factory=list)
    nearest: Words = field(default_factory=list)
    answer: float | None = None


@dataclass(frozen=True)
class ThoughtTrace:
    """
    A `prompt` as the model sees it, the `tokens` of its completion, and the text of the `completion` behind the
    thoughts. With a right answer that, the `lead` before it, and its probability at the `start`.
    """

    prompt: str
    tokens: list[TracedToken]
    completion: str
    answer: str | None = None
    lead: str = ""
    start: float | None = None

    @property
    def thoughts(self) -> list[TracedToken]:
        """The tokens that are thoughts."""
        return [token for token in self.tokens if token.thinks]


@torch.no_grad()
def trace_completion(
    model,
    tokenizer,
    prompt: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    states: torch.Tensor,
    mask: torch.Tensor,
    k: int = 5,
    targets: Sequence[Mapping[str, float]] = (),
    answer: str | None = None,
    lead: str | None = None,
    answer_points: int = 64,
) -> ThoughtTrace:
    """
    Say what each token of a completion is made of, from the states that were recorded with it.

    Args:
        prompt (`str`):
            The prompt as text, of which `prompt_ids` are the tokens.
        states (`torch.Tensor` of shape `(C, H)`), mask (`torch.Tensor` of shape `(C,)`):
            Of a [`ThinkingRollout`] of these completion tokens.
        answer_points (`int`, *optional*, defaults to `64`):
            Points, evenly spread, at which an answer's probability is measured; 0: at none. The last one is before
            the lead turns up in the completion.
        model, tokenizer, k, targets, answer, lead:
            As in [`~hf_evidenceflow.probe.thoughts.thought_words`], for one prompt.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    base = model.get_base_model() if is_peft_model(model) else model
    tokens, mask = torch.tensor(list(completion_ids), device=model.device), mask.bool().to(model.device)
    states = states.to(model.device)
    target_ids = [_target_ids(target, tokenizer) for target in targets]
    columns = _state_columns(base, tokenizer, tokens, states, mask, k)
    with_states = _probabilities(model, prompt_ids, tokens, states, mask)  # [C, V]
    without = _probabilities(model, prompt_ids, tokens)
    columns["words"] = _best(with_states, tokenizer, k)
    columns["without"] = [words[0] for words in _best(without, tokenizer, 1)]
    thoughts = mask.nonzero().flatten().tolist()
    columns["target_share"] = [None] * len(tokens)
    for place, ids in zip(thoughts, target_ids):
        columns["target_share"][place] = float(with_states[place, ids].sum())
    if lead is None:
        lead = "" if base.config.thinking_answer_start is None else f"{base.config.thinking_answer_start} "
    found = {}
    if answer is not None:
        lead_ids, answer_ids = _answer_ids(lead, answer, tokenizer)
        points = _points(tokens.tolist(), lead, tokenizer, answer_points)
        found = answer_probabilities(model, prompt_ids, tokens.tolist(), states, mask, answer_ids, lead_ids, points)
    columns["answer"] = [found.get(place + 1) for place in range(len(tokens))]
    columns["token"], columns["thinks"] = _words(tokens.tolist(), tokenizer), mask.tolist()
    behind = tokens[thoughts[-1] + 1 if thoughts else 0 :]
    return ThoughtTrace(
        prompt,
        [TracedToken(**dict(zip(columns, values))) for values in zip(*columns.values())],
        tokenizer.decode(behind, skip_special_tokens=True),
        answer,
        lead,
        found.get(0),
    )


def _probabilities(model, prompt_ids, tokens, states=None, mask=None) -> torch.Tensor:
    """Probabilities `(C, V)` at each token's place; without states, of tokens read as themselves."""
    ids = torch.cat([torch.tensor(list(prompt_ids), device=tokens.device), tokens[:-1]])
    thoughts = {}
    if mask is not None and mask[:-1].any():
        thoughts = {"thinking_states": states[None, :-1], "thinking_mask": mask[None, :-1]}
    logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=len(tokens), **thoughts).logits[0]
    return logits.float().softmax(-1)


def _state_columns(base, tokenizer, tokens, states, mask, k) -> dict[str, list]:
    """What is known of the states of thoughts: gates, latent shares and words, `None` or empty at other tokens."""
    method, count = base.config.thinking_method, len(tokens)
    columns: dict[str, list] = {
        "gate": [None] * count,
        "latent_share": [None] * count,
        "lens": [[]] * count,
        "nearest": [[]] * count,
    }
    if not method.fuses or not mask.any():
        return columns
    embeds = base.get_input_embeddings()(tokens)[None]
    _, a, r = base.base_model.fuse(embeds, states[None], mask[None])
    state = base.base_model.thinking_state(states[None], embeds.float())[0][mask]
    values = {}
    if method.mixer != "add":  # both weigh 1
        values["latent_share"] = (1 - a * a).clamp(min=0).sqrt().mean(-1)[0][mask].tolist()
    if method.mixer == "gated":
        values["gate"] = r.mean(-1)[0][mask].tolist()
    embedding = base.get_input_embeddings().weight
    cosines = F.normalize(state.float(), dim=-1) @ F.normalize(embedding.float(), dim=-1).T
    values["nearest"] = _best(cosines, tokenizer, k)
    if not method.reads_distribution:
        lens = base.read_out(state.to(embedding.dtype)[None])[0].float().softmax(-1)
        values["lens"] = _best(lens, tokenizer, k)
    for name, column in values.items():
        for place, value in zip(mask.nonzero().flatten().tolist(), column):
            columns[name][place] = value
    return columns


def _answer_ids(lead, answer, tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of the lead, and those that the answer adds, of both together."""
    lead_ids = tokenizer(lead, add_special_tokens=False)["input_ids"] if lead else []
    ids = tokenizer(lead + answer, add_special_tokens=False)["input_ids"]
    shared = 0
    while shared < min(len(lead_ids), len(ids) - 1) and lead_ids[shared] == ids[shared]:
        shared += 1
    if not ids:
        raise ValueError("`answer` has no token. Give the text of the right answer.")
    return ids[:shared], ids[shared:]


def _points(ids, lead, tokenizer, count) -> list[int]:
    """Up to `count` of the places 0 to C before the lead, evenly spread."""
    last = len(ids)
    if lead.strip():
        last = next((n for n in range(last + 1) if lead.strip() in tokenizer.decode(ids[:n])), last + 1) - 1
    count = min(count, last + 1)
    return sorted({round(place * last / max(count - 1, 1)) for place in range(count)})


def _best(values: torch.Tensor, tokenizer, k: int) -> list[Words]:
    """The largest of values `(n, V)` with their words, per row."""
    best = values.topk(min(k, values.shape[-1]), dim=-1)
    pairs = list(zip(_words(best.indices.flatten().tolist(), tokenizer), best.values.flatten().tolist()))
    width = best.indices.shape[1]
    return [pairs[start : start + width] for start in range(0, len(pairs), width)]


def _words(ids, tokenizer) -> list[str]:
    text = token_strings(ids, tokenizer)
    return [text[index] for index in ids]


def _target_ids(target: Mapping[str, float], tokenizer) -> list[int]:
    found = []
    for text in (text for text, weight in target.items() if weight):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"The target {text!r} must be one token, but the tokenizer makes {len(ids)} of it.")
        found += ids
    return sorted(set(found))
