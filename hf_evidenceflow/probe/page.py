"""A [`ProbeResult`] as one self-contained HTML page: lens table, layers, heat maps and trajectories."""

import html
import os
from collections.abc import Mapping
from pathlib import Path

from ..atomic_write import atomic_write_text
from ..report.html_page import html_page, html_picture, html_table
from .heat_maps import HEAT_MAPS, split_tokens
from .probe import ProbeResult
from .table import layer_table
from .texts import visible


_STYLE = """
:root { --blue: 86, 180, 233; }
@media (prefers-color-scheme: dark) { :root { --blue: 0, 114, 178; } }
.lens th, .lens td { padding: .2rem .4rem; text-align: center; font-size: .8125rem; }
.lens tr > :first-child { text-align: right; }
.lens td { border: 1px solid var(--paper); max-width: 7rem; overflow: hidden; text-overflow: ellipsis; cursor: help;
  background: rgba(var(--blue), var(--p)); }
.lens td.right { font-weight: 700; text-decoration: underline; text-underline-offset: 2px; }
.lens td:hover, .lens td:focus { outline: 2px solid var(--accent); outline-offset: -2px; }
.lens thead span { display: block; max-width: 8rem; overflow: hidden; text-overflow: ellipsis; }
.lens thead .faint, .lens tfoot td { font-weight: 400; }
.lens tfoot td { background: none; cursor: default; }
.lens .tip { display: none; }
.lens td:hover .tip, .lens td:focus .tip { display: block; position: fixed; z-index: 3; right: 1rem; bottom: 1rem;
  max-width: calc(100vw - 2rem); padding: .75rem 1rem; color: var(--ink); background: var(--panel); text-align: left;
  border: 1px solid var(--line); border-radius: 6px; box-shadow: 0 4px 16px rgba(0, 0, 0, .25); white-space: pre;
  font: 400 .875rem/1.45 ui-monospace, monospace; overflow: hidden; pointer-events: none; }
.lens td:focus .tip { z-index: 2; }
body { padding-bottom: 14rem; }
"""
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
    last = {name: values[-1] for name, values in result.measures.items()}
    count = len(result.labels)
    accuracy = (last["label_rank"] == 1).double().mean().item()
    body = [
        f"<p>{count} tokens, {len(result.layers) - 1} layers. After the last layer: cross-entropy "
        f"{last['lens_loss'].mean().item():.3f} nats, {accuracy:.0%} of the next tokens right. Mean drift rate "
        f"{result.drift_rate.mean().item():+.3f} nats a layer, mean effective depth "
        f"{result.effective_depth.double().mean().item():.1f} layers.</p>",
        "<h2>Lens: the most probable next token after each layer</h2>",
        "<p>Each column is a token that the model has read, with the right next token below it. Colour: probability. "
        "<b><u>Underlined</u></b>: right. Tap or point at a cell for the most probable tokens.</p>",
        *_lens_tables(result, max_tokens),
        "<h2>Layers</h2>",
        '<p class="faint">Means over the tokens. The last row is the model\'s own output.</p>',
        _layer_rows(result),
    ]
    if trajectories is not None:
        body += ["<h2>Evidence over depth</h2>", html_picture(trajectories, "Log-odds of the right next token")]
    if heat_maps:
        body.append("<h2>Heat maps</h2>")
        body += [html_picture(picture, HEAT_MAPS[name].title) for name, picture in heat_maps.items()]
    body += ["<h2>What the numbers are</h2>", _definitions(result)]
    return atomic_write_text(path, html_page(f"Inside {model_name}", body, _STYLE))


def _lens_tables(result, max_tokens):
    tables = split_tokens(result.rows, len(result.rows))  # one for each text
    left = max_tokens
    for tokens in tables:
        if left <= 0:
            break
        if len(tables) > 1:
            yield f'<p class="faint">Text {result.rows[tokens[0]] + 1}</p>'
        yield _lens_table(result, tokens[:left])
        left -= len(tokens)
    if left < 0 or sum(map(len, tables)) > max_tokens:
        yield f'<p class="faint">The first {max_tokens} of {len(result.rows)} tokens; the tables hold all.</p>'


def _lens_table(result, tokens):
    text = {index: html.escape(visible(string)) for index, string in result.token_strings.items()}
    heads = "".join(
        f'<th scope="col"><span>{text[result.input_ids[token]]}</span>'
        f'<span class="faint">{text[result.labels[token]]}</span></th>'
        for token in tokens
    )
    body = []
    for depth in reversed(range(len(result.layers))):  # the output on top
        layer = "embedding" if result.layers[depth] < 0 else f"layer {result.layers[depth]}"
        cells = "".join(_lens_cell(result, depth, token, layer, text) for token in tokens)
        body.append(f'<tr><th scope="row">{layer}</th>{cells}</tr>')
    drift = "".join(f"<td>{result.drift_rate[token]:+.2f}</td>" for token in tokens)
    depths = "".join(f"<td>{result.effective_depth[token]}</td>" for token in tokens)
    return (
        '<div class="scroll lens" tabindex="0"><table>'
        f'<thead><tr><th scope="col">read<span class="faint">right next</span></th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody><tfoot>"
        f'<tr><th scope="row">drift rate</th>{drift}</tr><tr><th scope="row">eff. depth</th>{depths}</tr>'
        "</tfoot></table></div>"
    )


def _lens_cell(result, depth, token, layer, text):
    ids = result.top_ids[depth, token].tolist()
    probabilities = result.top_probabilities[depth, token].tolist()
    label = result.labels[token]
    lines = [f"{layer}, right: {text[label]}"]
    lines += [f"{probability:7.2%}  {text[index]}" for index, probability in zip(ids, probabilities)]
    own = {name: result.measures[name][depth, token].item() for name in ("label_probability", "label_rank", "entropy")}
    lines.append(f"right: {own['label_probability']:.2%}, rank {own['label_rank']:.0f}; entropy {own['entropy']:.2f}")
    right = ' class="right"' if own["label_rank"] == 1 else ""
    return (
        f'<td tabindex="0"{right} style="--p:{0.9 * probabilities[0]:.2f}">{text[ids[0]]}'
        f'<span class="tip">{"&#10;".join(lines)}</span></td>'
    )


def _layer_rows(result):
    table = layer_table(result)
    rows = []
    for values in table[list(_LAYER_COLUMNS)].itertuples(index=False):
        layer = "embedding" if values[0] < 0 else str(values[0])
        rows.append([layer, *values[1:]])
    return html_table(list(_LAYER_COLUMNS.values()), rows)


def _definitions(result):
    return (
        "<ul><li>Lens: the state after a layer, through the model's final norm and head. Cross-entropy, rank and "
        "probability are of the right next token; entropy is of the whole distribution, in nats.</li>"
        "<li>Squared distance (mean over features, the token's term of Loss_p) and cosine: to the input embedding of "
        "the right next token; the other cosine to its row of the output head.</li>"
        "<li>Step: norm of what a layer changed; relative: divided by the norm before the layer.</li>"
        "<li>Effective rank of the states: exp of the entropy of their normalised singular values (Roy and Vetterli "
        f"2007); at most the number of tokens, {len(result.labels)} here.</li>"
        "<li>Drift rate: least-squares slope of the log-odds of the right next token over the layers, from the "
        "embedding on, in nats a layer (Ratcliff 1978).</li>"
        f"<li>Effective depth: layers whose relative step is above {result.step_threshold:g}.</li></ul>"
    )
