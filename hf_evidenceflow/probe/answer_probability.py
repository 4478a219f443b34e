"""How probable the right answer is at each point of a completion, if the model had to give it there and then.

Shapes: P prompt tokens, C completion tokens, H hidden size, V vocabulary.
"""

import copy
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from ..models.thinking.cache_argument import CACHE


@torch.no_grad()
def answer_probabilities(
    model,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    states: torch.Tensor,
    mask: torch.Tensor,
    answer_ids: Sequence[int],
    lead_ids: Sequence[int] = (),
    points: Sequence[int] | None = None,
) -> dict[int, float]:
    """
    The probability of an answer behind the first t tokens of a completion, teacher-forced: the product of the
    probabilities of its tokens behind prompt, t tokens with their states, and what leads up to an answer.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A thinking model in eval mode.
        prompt_ids, completion_ids (`Sequence[int]` of length P, at least 1, and C):
            Token ids.
        states (`torch.Tensor` of shape `(C, H)`), mask (`torch.Tensor` of shape `(C,)`):
            As a [`ThinkingRollout`] has them.
        answer_ids (`Sequence[int]`):
            Tokens of the answer.
        lead_ids (`Sequence[int]`, *optional*):
            Tokens before it, such as those of an answer marker; their own probabilities do not count.
        points (`Sequence[int]`, *optional*):
            Numbers t, rising, from 0 to C. If not given, all.

    Returns:
        `dict[int, float]`: the probability by t.
    """
    ids = torch.tensor([[*prompt_ids, *completion_ids]], device=model.device)
    before, ahead = len(prompt_ids), [*lead_ids, *answer_ids]
    tail = torch.tensor([ahead[:-1]], device=model.device, dtype=torch.long)
    states = torch.cat([states.new_zeros(before, states.shape[1]), states]).to(model.device)[None]
    mask = torch.cat([mask.new_zeros(before), mask]).bool().to(model.device)[None]
    cache, held = DynamicCache(config=model.config), 0

    def read(first, last, cache, more=tail[:, :0]):
        """Logits behind tokens `first` to `last - 1` and `more`."""
        thoughts = {}
        if mask[:, first:last].any():
            blank = states.new_zeros(1, more.shape[1], states.shape[2]), mask.new_zeros(1, more.shape[1])
            thoughts["thinking_states"] = torch.cat([states[:, first:last], blank[0]], 1)
            thoughts["thinking_mask"] = torch.cat([mask[:, first:last], blank[1]], 1)
        inputs = torch.cat([ids[:, first:last], more], 1)
        return model(input_ids=inputs, use_cache=True, logits_to_keep=len(answer_ids), **{CACHE: cache}, **thoughts)

    found = {}
    for point in range(len(completion_ids) + 1) if points is None else points:
        end = before + point
        if end - 1 > held:
            read(held, end - 1, cache)
            held = end - 1
        # On a copy: not every cache can be cut back
        logits = read(held, end, copy.deepcopy(cache), tail).logits[0].float()
        logps = logits.log_softmax(-1).gather(1, torch.tensor(list(answer_ids), device=model.device)[:, None])
        found[point] = logps.sum().exp().item()
    return found
