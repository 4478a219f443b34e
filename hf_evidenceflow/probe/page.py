"""A [`ProbeResult`] as one self-contained HTML page: lens table, layers, heat maps and trajectories."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_text
from ..report.html import html_page, picture
from .heat_maps import HEAT_MAPS, split_tokens
from .probe import ProbeResult
from .table import layer_means
from .texts import visible


_LAYER_COLUMNS = {
    "layer": "layer",
    "lens_loss": "cross-entropy",
    "lens_accuracy": "accuracy",
    "label_rank": "mean rank",
    "label_probability": "probability",
    "entropy": "entropy",
    "mse_to_target": "squared distance",
    "cosine_to_target": "cosine",
    "cosine_to_output_row": "cosine, output row",
    "state_norm": "norm",
    "step_norm": "step",
    "relative_step": "relative step",
    "effective_rank": "effective rank",
}


def write_probe_page(
    result: ProbeResult,
    path: str | os.PathLike,
    model_name: str,
    heat_maps: Mapping[str, str | os.PathLike] | None = None,
    trajectories: str | os.PathLike | None = None,
    max_tokens: int = 160,
) -> Path:
    """
    Write the page. It needs no other file, no network and no script.

    Args:
        result ([`ProbeResult`]):
            What to show.
        path (`str` or `os.PathLike`):
            HTML file to write. Missing parent folders are made.
        model_name (`str`):
            Name of the model, for the title.
        heat_maps (`Mapping[str, str | os.PathLike]`, *optional*):
            PNGs of [`~hf_evidenceflow.probe.heat_maps.plot_heat_map`] by measure.
        trajectories (`str` or `os.PathLike`, *optional*):
            PNG of [`~hf_evidenceflow.probe.heat_maps.plot_trajectories`].
        max_tokens (`int`, *optional*, defaults to `160`):
            Tokens in the lens tables; the page says how many are left out.

    Returns:
        `Path`: The path written.
    """
    means = layer_means(result)
    layers = [dict(zip(means, values)) for values in zip(*means.values())]
    page = html_page(
        "probe.html",
        title=f"Inside {model_name}",
        result=result,
        last=layers[-1],
        drift_rate=result.drift_rate.mean().item(),
        effective_depth=result.effective_depth.double().mean().item(),
        lenses=_lenses(result, max_tokens),
        shown=max_tokens,
        columns=list(_LAYER_COLUMNS.values()),
        rows=[[_layer_name(row["layer"]), *map(row.get, list(_LAYER_COLUMNS)[1:])] for row in layers],
        trajectories=trajectories and picture(trajectories, "Log-odds of the right next token"),
        heat_maps=[picture(png, HEAT_MAPS[name].title) for name, png in (heat_maps or {}).items()],
    )
    return atomic_write_text(path, page)


def _layer_name(layer: int) -> str:
    return "embedding" if layer < 0 else str(layer)


def _lenses(result: ProbeResult, max_tokens: int) -> Iterator[dict[str, Any]]:
    """One lens table per text, until `max_tokens` are shown."""
    texts = split_tokens(result.rows, len(result.rows))
    for tokens in texts:
        if max_tokens <= 0:
            return
        number = result.rows[tokens[0]] + 1 if len(texts) > 1 else None
        yield {"text": number} | _lens(result, tokens[:max_tokens])
        max_tokens -= len(tokens)


def _lens(result: ProbeResult, tokens: Sequence[int]) -> dict[str, Any]:
    text = {index: visible(string) for index, string in result.token_strings.items()}
    heads = [
        {
            "read": text[result.input_ids[token]],
            "right": text[result.labels[token]],
            "drift_rate": result.drift_rate[token].item(),
            "effective_depth": result.effective_depth[token].item(),
        }
        for token in tokens
    ]
    layers = []
    for depth in reversed(range(len(result.layers))):  # the output on top
        name = _layer_name(result.layers[depth])
        name = name if result.layers[depth] < 0 else f"layer {name}"
        layers.append((name, [_lens_cell(result, depth, token, name, text) for token in tokens]))
    return {"tokens": heads, "layers": layers}


def _lens_cell(result: ProbeResult, depth: int, token: int, layer: str, text: Mapping[int, str]) -> dict[str, Any]:
    ids = result.top_ids[depth, token].tolist()
    probabilities = result.top_probabilities[depth, token].tolist()
    own = {name: result.measures[name][depth, token].item() for name in ("label_probability", "label_rank", "entropy")}
    tip = [f"{layer}, right: {text[result.labels[token]]}"]
    tip += [f"{probability:7.2%}  {text[index]}" for index, probability in zip(ids, probabilities)]
    tip.append(f"right: {own['label_probability']:.2%}, rank {own['label_rank']:.0f}; entropy {own['entropy']:.2f}")
    return {
        "best": text[ids[0]],
        "tip": "\n".join(tip),
        "color": 0.9 * probabilities[0],
        "right": own["label_rank"] == 1,
    }
