"""Finds the answer marker in a stream of tokens: a token-level automaton, so that no text is decoded while generating.

The automaton runs over bytes, because a marker may span tokens and a token may hold half a character. It knows the
first marker only: thinking ends also at one that the graders pass over, in `<think>...</think>` or as a heading.
"""

import json
import re
import weakref

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode


_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_automata = weakref.WeakKeyDictionary()


def token_bytes(tokenizer) -> list[bytes | None]:
    """
    The bytes that each token adds to a text when it is not the first token.

    Any tokenizer will do: byte-level, byte-fallback, WordPiece or WordLevel. `None` for an id that no token has.
    """
    vocab = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    added = tokenizer.get_added_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
    if '"ByteLevel"' in decoder:
        byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
        for token, index in vocab.items():
            if token in added or any(char not in byte_of for char in token):
                pieces[index] = token.encode()
            else:
                pieces[index] = bytes(byte_of[char] for char in token)
        return pieces

    # A token's text depends on its place (a leading space is dropped at the start), so take it after another token
    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    anchor = next((i for token, i in vocab.items() if token.isalnum() and decode([i])), next(iter(vocab.values()), 0))
    prefix = decode([anchor])
    for token, index in vocab.items():
        fallback = _BYTE_FALLBACK.fullmatch(token) if '"ByteFallback"' in decoder else None
        if fallback:
            pieces[index] = bytes([int(fallback[1], 16)])
            continue
        text = decode([anchor, index])
        pieces[index] = (text[len(prefix) :] if text.startswith(prefix) else decode([index])).encode()
    return pieces


def marker_table(tokenizer, marker: str) -> torch.Tensor:
    """
    Transition table of the automaton that finds `marker` in a stream of tokens.

    State `k < S - 1` means that the last `k` bytes match the beginning of the marker; state `S - 1` is absorbing: the
    marker was seen.

    Returns:
        `torch.Tensor` of shape `(S, V + 1)`, int64, S = bytes of the marker + 1. The last column, for ids that the
        tokenizer does not have, leaves the state unchanged.

    Raises:
        `ValueError`: if no sequence of tokens spells the marker.
    """
    pattern = marker.encode()
    found = len(pattern)
    # step[k][byte]: Knuth-Morris-Pratt as a dense automaton
    step = [[0] * 256 for _ in range(found)]
    border = 0
    for k in range(found):
        if k:
            step[k] = list(step[border])
        step[k][pattern[k]] = k + 1
        if k:
            border = step[border][pattern[k]]

    pieces = token_bytes(tokenizer)
    table = torch.zeros(found + 1, len(pieces) + 1, dtype=torch.long)
    table[found] = found
    table[:found, -1] = torch.arange(found)
    letters = set(pattern)
    for index, piece in enumerate(pieces):
        if not piece:
            table[:found, index] = torch.arange(found)
        elif not letters.isdisjoint(piece):
            for start in range(found):
                state = start
                for byte in piece:
                    state = step[state][byte]
                    if state == found:
                        break
                table[start, index] = state

    reached, frontier = {0}, [0]
    while frontier:
        new = set(table[frontier.pop()].unique().tolist()) - reached
        reached |= new
        frontier += new
    if found not in reached:
        raise ValueError(
            f"The tokenizer cannot produce the answer marker `thinking_answer_start={marker!r}`: no sequence of its "
            "tokens spells it. Set `thinking_answer_start` to a text that it can produce, or to None to think over "
            "the whole completion."
        )
    return table


class MarkerAutomaton:
    """The automaton of a [`marker_table`], on its device; each row of a batch has one state, which starts at 0."""

    def __init__(self, table: torch.Tensor):
        self.table = table
        self.found = table.shape[0] - 1

    @classmethod
    def for_tokenizer(cls, tokenizer, marker: str, device: torch.device) -> "MarkerAutomaton":
        """The automaton of a tokenizer and a marker; tables are built once and kept as long as the tokenizer lives."""
        tables = _automata.setdefault(tokenizer, {})
        key = (marker, len(tokenizer), str(device))
        if key not in tables:
            tables[key] = marker_table(tokenizer, marker).to(device)
        return cls(tables[key])

    def step(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Next states of shape `(B,)`, int64, from states and token ids of shape `(B,)`; nothing leaves the device."""
        return self.table[state, tokens.clamp(max=self.table.shape[1] - 1)]

    def may_think_next(self, state: torch.Tensor) -> torch.Tensor:
        """Whether the token behind states `(B,)` can be a thought, `(B,)`: that depends on the token."""
        return state != self.found
