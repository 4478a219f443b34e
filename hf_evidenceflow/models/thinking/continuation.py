"""Where a completion stopped: rides on the cache of a `generate` call, so that a later call goes on as if it were one.

The last token of a completion is not fed before the next call, which needs its state, and the place in the answer
marker.

Shapes: B rows, n tokens that the cache does not hold, H hidden size.
"""

from dataclasses import dataclass

import torch


_ATTRIBUTE = "thinking_continuation"
_GENERATE_ANEW = (
    "Generate from the whole text without `past_key_values`: then all of it is a prompt, which does not think."
)


@dataclass
class ThinkingContinuation:
    """
    What a call leaves behind.

    Args:
        mode (`str`): `thinking_mode` of the call.
        prompt_length, length (`int`): positions of the cache before the first completion and at the end of the call.
        tokens (`torch.Tensor` of shape `(B,)`): last tokens, not in the cache.
        states (`torch.Tensor` of shape `(B, H)`), mask (`torch.Tensor` of shape `(B,)`): their states, and whether
            they are fused.
        place (`tuple[torch.Tensor, torch.Tensor]`): that of [`ThinkingState`] behind them.
    """

    mode: str
    prompt_length: int
    length: int
    tokens: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor
    place: tuple[torch.Tensor, torch.Tensor]

    def inputs(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(B, n, H)` and mask `(B, n)` of the `count` tokens behind the cache, of which it knows the first."""
        states = self.states.new_zeros(len(self.states), count, self.states.shape[1])
        mask = self.mask.new_zeros(len(self.mask), count)
        states[:, 0], mask[:, 0] = self.states, self.mask
        return states, mask


def leave_continuation(cache, continuation: ThinkingContinuation) -> None:
    """Attach it to the cache, which may be copied."""
    setattr(cache, _ATTRIBUTE, continuation)


def find_continuation(cache, mode: str, input_ids: torch.Tensor, text_length: int):
    """
    What the completion that a cache ends with left behind.

    Args:
        cache ([`~transformers.Cache`], *optional*): `past_key_values` of the call.
        mode (`str`): `thinking_mode` of the call.
        input_ids (`torch.Tensor` of shape `(B, T)`): the whole text, or the tokens that the cache does not hold.
        text_length (`int`): length of the whole text.

    Returns:
        `tuple`: [`ThinkingContinuation`], or `None` where the cache holds a prompt; and the number n of tokens that
        the cache does not hold.

    Raises:
        `ValueError`: if the cache was cut within a completion, or does not belong to the text, the batch or the mode.
    """
    past = 0 if cache is None else int(cache.get_seq_length())
    waiting = input_ids[:, past:] if text_length == input_ids.shape[1] else input_ids  # [B, n]
    found = vars(cache).get(_ATTRIBUTE) if past else None
    if found is None or past > found.length or (past < found.length and past <= found.prompt_length):
        return None, waiting.shape[1]
    if past < found.length:
        raise ValueError(
            f"`past_key_values` was cut to {past} positions, within the completion at positions "
            f"{found.prompt_length} to {found.length}, and the thinking states there are gone. {_GENERATE_ANEW}"
        )
    if mode != found.mode:
        raise ValueError(
            f"`past_key_values` comes from a call with `thinking_mode={found.mode!r}`, and this one has {mode!r}. "
            f"{_GENERATE_ANEW}"
        )
    if text_length and input_ids.shape[1] == 0:
        raise ValueError(
            "`past_key_values` ends with a completion, and `inputs_embeds` do not tell how it goes on. Pass the "
            f"`sequences` of that call as `input_ids`. {_GENERATE_ANEW}"
        )
    if waiting.shape[1] == 0 or not torch.equal(waiting[:, 0], found.tokens.to(waiting.device)):
        raise ValueError(
            f"`past_key_values` was returned for a text that goes on with the tokens {found.tokens.tolist()}, one per "
            f"row; got {waiting[:, :1].flatten().tolist()}. Pass `sequences` of that call, with more tokens behind "
            f"them or without. {_GENERATE_ANEW}"
        )
    return found, waiting.shape[1]
