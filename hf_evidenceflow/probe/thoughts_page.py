"""Completions of a thinking model as one self-contained HTML page: each token, its state, the answer over time."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_text
from ..report.html import html_page
from .completion_trace import ThoughtTrace, TracedToken, Words
from .texts import visible


_NOTES = (
    "Gate: mean over the hidden size of the gate r. Latent share: mean of sqrt(1 - a²), the weight of the state next "
    "to that of the token's embedding, a; 1 where the state takes the embedding's place. Both only of thoughts.",
    "Likeliest: what the model holds most probable at this place, with their probabilities; in modes that feed a mean "
    "of embeddings, what is mixed.",
    "Nearest: the input embeddings with the largest cosine to the state that is fed. Through the head: the words that "
    "the output head reads from it, with their probabilities.",
    "Without thinking: the most probable token at this place if all tokens so far are read as themselves, without any "
    "state, and its probability. Underlined: it is another than with the states. In modes whose thoughts have a "
    "placeholder, that is what the placeholder alone would give.",
    "Answer: the probability of the right answer if it had to be given behind this token, which is the product of the "
    "probabilities of its tokens behind the text that leads up to it; not measured from the place on where the "
    "completion itself has that text.",
    "Marks: · space, ↵ line break, ⇥ tab.",
)


def write_thoughts_page(
    traces: Sequence[ThoughtTrace], path: str | os.PathLike, title: str, headline: str = "", max_tokens: int = 512
) -> Path:
    """
    Write the page. It needs no other file, no network and no script.

    Args:
        traces (`Sequence[ThoughtTrace]`):
            Completions, from [`~hf_evidenceflow.probe.thoughts.thought_words`] or
            [`~hf_evidenceflow.probe.completion_trace.trace_completion`].
        path (`str` or `os.PathLike`):
            HTML file to write. Missing parent folders are made.
        title, headline (`str`):
            Above the page, and below that.
        max_tokens (`int`, *optional*, defaults to `512`):
            Tokens shown of a completion; the page says how many are left out.

    Returns:
        `Path`: the path written.
    """
    page = html_page(
        "thoughts.html",
        title=title,
        headline=headline,
        traces=[_shown(trace, max_tokens) for trace in traces],
        notes=_NOTES,
    )
    return atomic_write_text(path, page)


def _shown(trace: ThoughtTrace, most: int) -> dict[str, Any]:
    tokens = trace.tokens[:most]
    used = {
        name: any(getattr(token, name) not in (None, []) for token in tokens)
        for name in ("gate", "latent_share", "target_share", "nearest", "lens", "answer")
    }
    measured = [(0, trace.start), *((place, token.answer) for place, token in enumerate(tokens, 1))]
    return {
        "prompt": trace.prompt,
        "answer": trace.answer,
        "lead": visible(trace.lead) if trace.lead else "",
        "curve": [(place, value) for place, value in measured if value is not None],
        "tokens": [_token(token) for token in tokens],
        "left_out": len(trace.tokens) - len(tokens),
        "used": used,
    }


def _token(token: TracedToken) -> dict[str, Any]:
    return {
        "text": visible(token.token),
        "thinks": token.thinks,
        "changed": token.without[0] != token.words[0][0],
        "gate": token.gate,
        "latent_share": token.latent_share,
        "target_share": token.target_share,
        "answer": token.answer,
        "words": _line(token.words),
        "nearest": _line(token.nearest),
        "lens": _line(token.lens),
        "without": _line([token.without]),
    }


def _line(words: Words) -> str:
    return ", ".join(f"{visible(word)}\N{NO-BREAK SPACE}{value:.2f}" for word, value in words)
