"""What the thoughts of a thinking model say: for each its most probable words, and the words nearest to its state.

Shapes: C completion tokens, H hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model

from ..evaluation.completions import stop_tokens
from ..models.thinking.generation_thinking import ThinkingGenerationMixin
from ..rollouts.generation_settings import own_generation_config
from ..tasks.prompts import render_prompt
from .texts import token_strings, visible


Words = list[tuple[str, float]]
THOUGHT_COLUMNS = ("thought", "token", "most probable words", "on targets", "state through the head", "by cosine")


@dataclass(frozen=True)
class Thought:
    """
    One thought.

    Attributes:
        token (`str`):
            The token that it has.
        words (`list[tuple[str, float]]`):
            Where it comes from, the most probable next tokens with their probabilities, the best first. In modes whose
            state is a mean of embeddings these are what is mixed.
        target_share (`float`, *optional*):
            Probability of its target's tokens there; `None` where no target is known.
        lens (`list[tuple[str, float]]`):
            The same of the state itself, read by the output head (logit lens), where it is a hidden state or a
            projection of one; else empty.
        nearest (`list[tuple[str, float]]`):
            The input embeddings nearest to that state with their cosines.
    """

    token: str
    words: Words
    target_share: float | None
    lens: Words
    nearest: Words


@dataclass(frozen=True)
class ThoughtTrace:
    """A `prompt` as the model sees it, its `thoughts`, and the text of the `completion` behind them."""

    prompt: str
    thoughts: list[Thought]
    completion: str


@torch.no_grad()
def thought_words(
    model,
    tokenizer,
    prompts: Sequence[str | list[dict]],
    targets: Sequence[Sequence[Mapping[str, float]]] | None = None,
    k: int = 5,
    max_new_tokens: int = 64,
    chat_template_kwargs: dict | None = None,
) -> list[ThoughtTrace]:
    """
    Complete prompts greedily and say what each thought holds.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A thinking model in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str | list[dict]]`):
            Texts or chats.
        targets (`Sequence[Sequence[Mapping[str, float]]]`, *optional*):
            For each prompt its `thought_targets`, as in [`LatentSFTTrainer`]'s rows.
        k (`int`, *optional*, defaults to `5`):
            Words listed of a thought.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest completion, thoughts included.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, the same as in training.

    Raises:
        `ValueError`: if the model does not think, `k` is below 1, there are not as many targets as prompts, or a
            target is no single token.

    Example:

    ```python
    >>> from hf_evidenceflow.probe.thoughts import thought_words

    >>> trace = thought_words(model, tokenizer, [row["prompt"]], targets=[row["thought_targets"]])[0]
    >>> [thought.words[0] for thought in trace.thoughts]
    ```
    """
    base = model.get_base_model() if is_peft_model(model) else model
    if not isinstance(base, ThinkingGenerationMixin) or model.config.thinking_mode == "none":
        raise ValueError(
            f"{type(base).__name__} does not think, so there are no thoughts to look at. Load a thinking checkpoint "
            "in a `thinking_mode` other than 'none'."
        )
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if targets is not None and len(targets) != len(prompts):
        raise ValueError(f"`targets` must be one for each prompt, got {len(targets)} for {len(prompts)} prompts.")
    rows = [() for _ in prompts] if targets is None else targets
    settings = own_generation_config(
        model,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_tokens(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [
        _trace(model, base, tokenizer, *render_prompt(prompt, tokenizer, chat_template_kwargs), row, k, settings)
        for prompt, row in zip(prompts, rows)
    ]


def _trace(model, base, tokenizer, text, ids, targets, k, settings) -> ThoughtTrace:
    prompt = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, tokenizer=tokenizer
    )
    tokens = output.sequences[0, len(ids) :]  # [C]
    thinks = output.thinking_mask[0]  # [C], its first columns
    count = int(thinks.sum())
    probabilities = torch.cat(output.logits[:count]).float().softmax(-1) if count else None
    states = _states(base, tokens[:count], output.thinking_states[0, :count])
    thoughts = []
    for place in range(count):
        target = _target_ids(targets[place], tokenizer) if place < len(targets) else None
        lens, nearest = ([], []) if states is None else _state_words(base, states[place], tokenizer, k)
        thoughts.append(
            Thought(
                token=_words([int(tokens[place])], tokenizer)[0],
                words=_best(probabilities[place], tokenizer, k),
                target_share=None if target is None else float(probabilities[place, target].sum()),
                lens=lens,
                nearest=nearest,
            )
        )
    return ThoughtTrace(text, thoughts, tokenizer.decode(tokens[count:], skip_special_tokens=True))


def _states(base, tokens, states):
    """States `(C, H)` as they are fed or mixed in; `None` where they are means of embeddings, or none are."""
    method = base.config.thinking_method
    if not method.fuses or method.reads_distribution:
        return None
    embeds = base.get_input_embeddings()(tokens)[None].float()
    return base.base_model.thinking_state(states[None], embeds)[0]


def _state_words(base, state, tokenizer, k) -> tuple[Words, Words]:
    embedding = base.get_input_embeddings().weight
    lens = base.read_out(state.to(embedding.dtype)[None, None])[0, 0].float().softmax(-1)
    cosines = F.cosine_similarity(state.float()[None], embedding.float())
    return _best(lens, tokenizer, k), _best(cosines, tokenizer, k)


def _best(values: torch.Tensor, tokenizer, k: int) -> Words:
    best = values.topk(min(k, len(values)))
    return list(zip(_words(best.indices.tolist(), tokenizer), best.values.tolist()))


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


def thought_table(trace: ThoughtTrace) -> list[list[str]]:
    """A row for each thought under [`THOUGHT_COLUMNS`], with marks for spaces and line breaks."""

    def cell(words):
        return ", ".join(f"{visible(word)} {value:.2f}" for word, value in words) or "-"

    return [
        [
            str(number),
            visible(thought.token),
            cell(thought.words),
            "-" if thought.target_share is None else f"{thought.target_share:.3f}",
            cell(thought.lens),
            cell(thought.nearest),
        ]
        for number, thought in enumerate(trace.thoughts, 1)
    ]
