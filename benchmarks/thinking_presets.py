"""All ways of thinking against plain `generate`, for `thinking_speed.py`: one model, whose config names the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM


START, END, PLACEHOLDER = 60, 61, 62  # ids that the prompts, but for their last token, and the answers do not need
PRODUCT = "product over the vocabulary"
# Fields besides `thinking_mode`, and what there is to pay for
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, ""),
    "pause": ({}, ""),
    "coconut": ({}, ""),
    "codi": ({}, ""),
    "later": ({}, ""),
    "switch": ({"thinking_start_id": START, "thinking_end_id": END}, ""),
    "projection": ({}, ""),
    "embedding": ({}, PRODUCT),
    "soft": ({}, PRODUCT),
    "soft, the 64 likeliest": ({"thinking_mode": "soft", "thinking_top_k": 64}, "the likeliest of the vocabulary"),
    "soft, approximated": ({"thinking_mode": "soft", "thinking_state_approximation": True}, "cut of the vocabulary"),
    "soft_tokens": ({}, PRODUCT),
    "swi": ({"thinking_min_text": 1}, f"{PRODUCT} and its entropy"),
    "gumbel": ({}, "the likeliest of the vocabulary"),
    "tarpo": ({"thinking_top_k": 10}, "the likeliest of the vocabulary"),
}
_COUNTED = ("pause", "coconut", "codi", "later")


def preset_model(plain: Qwen2ForCausalLM, size: dict[str, int]) -> ThinkingQwen2ForCausalLM:
    """A thinking model with the weights of a plain one and all thinking modules."""
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**size, thinking_mode="tarpo"))
    model.load_state_dict(plain.state_dict(), strict=False)
    return model.eval()


@contextmanager
def thinking_as(model, name: str, tokens: int) -> Iterator[None]:
    """The model thinks as a row of [`PRESETS`] says, over so many tokens."""
    fields = {"thinking_mode": name, **PRESETS[name][0]}
    if fields["thinking_mode"] in _COUNTED:
        fields |= {"thinking_count": tokens, "thinking_placeholder_id": PLACEHOLDER}
    before = {field: getattr(model.config, field) for field in fields}
    try:
        for field, value in fields.items():
            setattr(model.config, field, value)
        yield
    finally:
        for field, value in before.items():
            setattr(model.config, field, value)


def preset_candidates(model, tokens: int, generate: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """What to time by name: `generate(model)` in each way of thinking."""

    def candidate(name):
        def run():
            with thinking_as(model, name, tokens):
                return generate(model)

        return run

    return {name: candidate(name) for name in PRESETS}


def thinking_share(model, name: str, tokens: int, generate: Callable[..., Any]) -> float:
    """Share of the tokens of a call that are thoughts."""
    with thinking_as(model, name, tokens), torch.no_grad():
        output = generate(model, return_dict_in_generate=True)
    mask = output.get("thinking_mask")
    return 0.0 if mask is None else mask.float().mean().item()
