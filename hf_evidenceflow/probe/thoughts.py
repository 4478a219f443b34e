"""What the thoughts of a thinking model say while it completes prompts, traced token by token."""

from collections.abc import Mapping, Sequence
from itertools import repeat

import torch
from accelerate.utils import is_peft_model

from ..evaluation.completions import stop_tokens
from ..models.thinking.generation_thinking import ThinkingGenerationMixin
from ..rollouts.generation_settings import own_generation_config
from ..tasks.prompts import render_prompt
from .completion_trace import ThoughtTrace, trace_completion
from .texts import visible


THOUGHT_COLUMNS = ("thought", "token", "most probable words", "on targets", "state through the head", "by cosine")


@torch.no_grad()
def thought_words(
    model,
    tokenizer,
    prompts: Sequence[str | list[dict]],
    targets: Sequence[Sequence[Mapping[str, float]]] | None = None,
    k: int = 5,
    max_new_tokens: int = 64,
    chat_template_kwargs: dict | None = None,
    answers: Sequence[str | None] | None = None,
    lead: str | None = None,
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
        answers (`Sequence[str | None]`, *optional*):
            Right answers, whose probability over time is measured.
        lead (`str`, *optional*):
            Text before an answer. If not given, the config's answer marker and a space.

    Raises:
        `ValueError`: if the model does not think, `k` is below 1, there are not as many targets or answers as
            prompts, or a target is no single token.

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
    for name, values in {"targets": targets, "answers": answers}.items():
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"`{name}` must be one for each prompt, got {len(values)} for {len(prompts)} prompts.")
    settings = own_generation_config(
        model,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_tokens(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )
    traces = []
    for prompt, row, answer in zip(prompts, targets or repeat(()), answers or repeat(None)):
        text, ids = render_prompt(prompt, tokenizer, chat_template_kwargs)
        inputs = torch.tensor([ids], device=model.device)
        output = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings, tokenizer=tokenizer
        )
        completion = output.sequences[0, len(ids) :].tolist()
        rollout = output.thinking_states[0], output.thinking_mask[0]
        traces.append(trace_completion(model, tokenizer, text, ids, completion, *rollout, k, row, answer, lead))
    return traces


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
