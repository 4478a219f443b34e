"""
T5's span corruption on token ids: which spans are noise, the corrupted input with its target, and the way back.

With sentinels X0, X1, ... the row `a b c d e f g` whose spans `c d` and `g` are noise becomes

    input   a b X0 e f X1 </s>
    target  X0 c d X1 g </s>

Source: Raffel et al. 2020 (1910.10683), section 3.1.4 and figure 2, and the segmentation of the authors' code, where
noise and kept segments take turns. A row begins with a kept segment and ends with noise, so its first token is never
masked and its last one always is. (The figure closes the target with one more sentinel; the code with EOS alone.)

Shapes: T tokens of a row, S spans.
"""

from collections.abc import Sequence

import torch


def count_noise(length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """
    How many tokens and spans of a row are noise. The numbers are the same for all rows of a length.

    Args:
        length (`int`):
            Tokens of the row, 2 or more.
        noise_density (`float`, *optional*, defaults to `0.15`):
            Share of the tokens that is masked, in (0, 1).
        mean_span_length (`float`, *optional*, defaults to `3.0`):
            Mean length of a masked span, 1 or more.

    Returns:
        `tuple[int, int]`: noise tokens, at least 1 and less than `length`, and spans, at least 1.

    Raises:
        `ValueError`: if a value is out of its range.
    """
    if not 0 < noise_density < 1:
        raise ValueError(f"`noise_density` must be in (0, 1), got {noise_density}.")
    if not mean_span_length >= 1:
        raise ValueError(f"`mean_span_length` must be at least 1, got {mean_span_length}.")
    if length < 2:
        raise ValueError(f"A row needs a token to mask and one to keep, got {length}. Leave rows this short out.")
    tokens = min(max(round(length * noise_density), 1), length - 1)
    # Each span has a noise token, and a kept one before it
    spans = min(max(round(tokens / mean_span_length), 1), tokens, length - tokens)
    return tokens, spans


def random_segments(items: int, segments: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Cuts a number of items into non-empty segments, each way of doing so equally likely.

    Args:
        items (`int`):
            Items to cut.
        segments (`int`):
            Segments, from 1 to `items`.
        generator (`torch.Generator`, *optional*):
            Where the randomness comes from; torch's own without it.

    Returns:
        `torch.Tensor` of shape `(segments,)`: their lengths.
    """
    # Of the items - 1 places between two items, segments - 1 different ones are cut
    cuts = torch.randperm(items - 1, generator=generator)[: segments - 1].sort().values + 1
    return torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([items]))


def random_spans_mask(
    length: int,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Draws the spans of a row that are noise.

    Args:
        length, noise_density, mean_span_length:
            As in [`count_noise`].
        generator (`torch.Generator`, *optional*):
            Where the randomness comes from; torch's own without it.

    Returns:
        `torch.Tensor` of shape `(T,)`: true where a token is masked.
    """
    tokens, spans = count_noise(length, noise_density, mean_span_length)
    noise = random_segments(tokens, spans, generator)
    kept = random_segments(length - tokens, spans, generator)
    lengths = torch.stack([kept, noise], dim=1).flatten()  # [2 * S]
    return torch.tensor([False, True]).repeat(spans).repeat_interleave(lengths)


def corrupt(
    ids: Sequence[int], mask: Sequence[bool], sentinels: Sequence[int], eos: int
) -> tuple[list[int], list[int]]:
    """
    The input and the target of a row.

    Args:
        ids (`Sequence[int]`):
            Tokens of the row, T of them.
        mask (`Sequence[bool]`):
            True where a token is masked, T of them.
        sentinels (`Sequence[int]`):
            Ids of the sentinels in their order; none of them is in the row.
        eos (`int`):
            Ends input and target.

    Returns:
        `tuple[list[int], list[int]]`: input and target.

    Raises:
        `ValueError`: if the mask has another length, there are too few sentinels, or one stands in the row.
    """
    ids, mask = [int(token) for token in ids], [bool(value) for value in mask]
    if len(ids) != len(mask):
        raise ValueError(f"`mask` must have a value for each of {len(ids)} tokens, got {len(mask)}.")
    spans = sum(now and not before for before, now in zip([False, *mask], mask))
    if spans > len(sentinels):
        raise ValueError(
            f"The row has {spans} masked spans, but there are {len(sentinels)} sentinels. Make more of them, or take "
            "shorter rows."
        )
    if present := set(ids) & set(sentinels):
        raise ValueError(f"The row holds the sentinel {min(present)}: what is restored would be ambiguous.")
    inputs, targets, used, before = [], [], 0, False
    for token, masked in zip(ids, mask):
        if masked and not before:
            inputs.append(sentinels[used])
            targets.append(sentinels[used])
            used += 1
        (targets if masked else inputs).append(token)
        before = masked
    return [*inputs, eos], [*targets, eos]


def split_spans(targets: Sequence[int], sentinels: Sequence[int], eos: int) -> dict[int, list[int]]:
    """
    The spans of a target, or of what a model generated.

    Args:
        targets (`Sequence[int]`):
            Token ids; what comes before the first sentinel or from EOS on does not count.
        sentinels (`Sequence[int]`):
            Ids of the sentinels.
        eos (`int`):
            End of the target.

    Returns:
        `dict[int, list[int]]`: tokens of each span by its sentinel; of a repeated sentinel the first span.
    """
    known, spans, current = set(sentinels), {}, None
    for token in map(int, targets):
        if token == eos:
            break
        if token in known:
            current = []
            spans.setdefault(token, current)
        elif current is not None:
            current.append(token)
    return spans


def restore(inputs: Sequence[int], targets: Sequence[int], sentinels: Sequence[int], eos: int) -> list[int]:
    """
    The original row: each sentinel of the input is replaced by its span of the target.

    Args:
        inputs, targets (`Sequence[int]`):
            As from [`corrupt`].
        sentinels (`Sequence[int]`):
            Ids of the sentinels.
        eos (`int`):
            End of input and target.

    Returns:
        `list[int]`: the tokens.

    Raises:
        `ValueError`: if the sentinels of input and target differ, or one of the two has no end.
    """
    inputs, targets = [int(token) for token in inputs], [int(token) for token in targets]
    for name, tokens in (("inputs", inputs), ("targets", targets)):
        if not tokens or tokens[-1] != eos:
            raise ValueError(f"`{name}` must end in EOS, {eos}, got {tokens[-3:]}. Cut the padding off.")
    spans, known = split_spans(targets, sentinels, eos), set(sentinels)
    expected = [token for token in inputs if token in known]
    if expected != list(spans):
        raise ValueError(f"The inputs have the sentinels {expected}, but the targets have {list(spans)}.")
    row = []
    for token in inputs[:-1]:
        row.extend(spans[token] if token in known else [token])
    return row


def raw_length(input_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """
    How many tokens a row must have for an input of exactly the wanted length, so that no batch needs padding.

    Args:
        input_length (`int`):
            Wanted tokens of an input, with its sentinels and EOS.
        noise_density, mean_span_length (`float`, *optional*, default to `0.15` and `3.0`):
            As in [`count_noise`].

    Returns:
        `tuple[int, int]`: tokens of the row, the most that fit, and of the target, with its sentinels and EOS.

    Raises:
        `ValueError`: if no row is that short.

    Example:

    ```python
    >>> raw_length(512)
    (568, 114)
    ```
    """

    def lengths(raw):
        tokens, spans = count_noise(raw, noise_density, mean_span_length)
        return raw - tokens + spans + 1, tokens + spans + 1

    if input_length < lengths(2)[0]:
        raise ValueError(f"`input_length` must be at least {lengths(2)[0]}, got {input_length}.")
    raw = 2
    while lengths(raw + 1)[0] <= input_length:
        raw += 1
    return raw, lengths(raw)[1]
