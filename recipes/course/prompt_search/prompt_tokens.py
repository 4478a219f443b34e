"""Which tokens a prompt may be made of, and which prompts are read back as they were meant."""

from collections.abc import Callable, Sequence

import torch


def allowed_tokens(tokenizer, vocab_size: int, printable_ascii: bool = True) -> torch.Tensor:
    """
    Tokens that a prompt may hold.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        vocab_size (`int`):
            V, rows of the model's embedding; those beyond the tokenizer are not allowed.
        printable_ascii (`bool`, *optional*, defaults to `True`):
            Whether only tokens of printable ASCII, space among it, are.

    Returns:
        `torch.Tensor` of shape `(V,)`: true for tokens that are neither special nor empty nor a part of a character.

    Raises:
        `ValueError`: if no token is left.
    """
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in range(min(vocab_size, len(tokenizer))):
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        whole = bool(text) and "\N{REPLACEMENT CHARACTER}" not in text
        plain = text.isascii() and text.isprintable()
        allowed[token] = token not in special and whole and (plain or not printable_ascii)
    if not allowed.any():
        raise ValueError("No token of the tokenizer is allowed. Try `printable_ascii=False`.")
    return allowed


def round_trip(tokenizer, before: Sequence[int] = (), after: Sequence[int] = ()) -> Callable[[torch.Tensor], bool]:
    """
    A filter for prompts that are the same tokens again after decoding and encoding, between their neighbours.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        before, after (`Sequence[int]`, *optional*, default to `()`):
            Tokens around the prompt, such as those of an item.

    Returns:
        `Callable`: takes a prompt, of shape `(L,)`, and returns a `bool`.
    """

    def keep(prompt: torch.Tensor) -> bool:
        ids = [*before, *prompt.tolist(), *after]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"] == ids

    return keep


def random_prompt(
    allowed: torch.Tensor, length: int, seed: int, keep: Callable[[torch.Tensor], bool] | None = None
) -> torch.Tensor:
    """
    A first prompt of random tokens.

    Args:
        allowed (`torch.Tensor` of shape `(V,)`):
            True for tokens that may be used.
        length (`int`):
            L, 1 or more.
        seed (`int`):
            Seed of the draw.
        keep (`Callable`, *optional*):
            Says of a prompt whether it may be used.

    Returns:
        `torch.Tensor` of shape `(L,)`: token ids.

    Raises:
        `ValueError`: if `length` is below 1, or none of 1000 draws may be used.
    """
    if length < 1:
        raise ValueError(f"`prompt_length` must be at least 1, got {length}.")
    ids, generator = allowed.nonzero().flatten(), torch.Generator().manual_seed(seed)
    for _ in range(1000):
        prompt = ids[torch.randint(len(ids), (length,), generator=generator)]
        if keep is None or keep(prompt):
            return prompt
    raise ValueError(f"None of 1000 random prompts of {length} tokens may be used. Take a shorter one.")
