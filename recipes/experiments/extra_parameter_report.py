"""What a cross-layer Llama learned in the parameters that Llama has not: values by layer, scales, a picture."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.models.crosslayer.configuration_crosslayer import CrossLayerLlamaConfig
from hf_evidenceflow.models.crosslayer.extra_parameters import extra_parameters
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


@dataclass(frozen=True)
class ParameterRow:
    """
    One parameter of one layer.

    Attributes:
        layer (`int`):
            Layer, from 0.
        name (`str`):
            Last part of its name, or what was made from parameters: `share` (softmax of weights) or `scale` (what the
            scores of a layer are multiplied with, as a multiple of `1 / sqrt(d_k)`).
        values (`list[float]`):
            Values.
        initial (`list[float]`):
            Values of a fresh model.
    """

    layer: int
    name: str
    values: list[float]
    initial: list[float]

    @property
    def summary(self) -> dict[str, float]:
        """Mean, standard deviation (of the values, not a sample), minimum and maximum."""
        mean = sum(self.values) / len(self.values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self.values) / len(self.values))
        return {"mean": mean, "std": deviation, "min": min(self.values), "max": max(self.values)}


@torch.no_grad()
def parameter_rows(model) -> list[ParameterRow]:
    """
    The learned parameters of a model, and the shares and scales that follow from them.

    Args:
        model ([`CrossLayerLlamaForCausalLM`]):
            A trained model.

    Returns:
        `list[ParameterRow]`: by layer; empty for a variant without parameters of its own.

    Raises:
        `ValueError`: if it is no cross-layer Llama.
    """
    if not isinstance(model.config, CrossLayerLlamaConfig):
        raise ValueError(f"{type(model).__name__} is no cross-layer Llama, so it has no extra parameters to report.")
    with torch.random.fork_rng(devices=[]):
        fresh = type(model)(model.config)
    initial = extra_parameters(fresh)
    rows = []
    for name, parameter in extra_parameters(model).items():
        layer = int(name.split("layers.")[1].split(".")[0])
        short = name.rpartition(".")[2]
        values, start = (tensor.detach().float().cpu().flatten() for tensor in (parameter, initial[name]))
        rows.append(ParameterRow(layer, short, values.tolist(), start.tolist()))
        if short.endswith("residual_weights") and model.config.cross_layer_combination == "softmax":
            shares = (tensor.softmax(0).tolist() for tensor in (values, start))
            rows.append(ParameterRow(layer, "share", *shares))
    for (layer, module), (_, old) in zip(_attentions(model), _attentions(fresh)):
        if model.config.cross_layer_stream == "scores" and list(module.parameters(recurse=False)):
            unit = module.head_dim**-0.5
            scales = ((torch.as_tensor(each.scales()) / unit).float().cpu().flatten() for each in (module, old))
            rows.append(ParameterRow(layer, "scale", *(scale.tolist() for scale in scales)))
    return sorted(rows, key=lambda row: row.layer)


def _attentions(model):
    return [(index, layer.self_attn) for index, layer in enumerate(model.model.layers)]


def parameter_table(rows: Sequence[ParameterRow]) -> str:
    """The rows as a Markdown table: layer, parameter, mean, deviation, range, and the mean of a fresh model."""
    cells = []
    for row in rows:
        numbers = [*row.summary.values(), sum(row.initial) / len(row.initial)]
        cells.append((row.layer, f"`{row.name}`", len(row.values), *(f"{number:.3f}" for number in numbers)))
    columns = ("layer", "parameter", "values", "mean", "std", "min", "max", "init (mean)")
    return markdown_table(columns, cells, align="rlr")


def plot_parameters(rows: Sequence[ParameterRow], path: str | os.PathLike, title: str | None = None) -> Path:
    """
    Draw each parameter by layer: its mean with the range, and the mean of a fresh model.

    Args:
        rows (`Sequence[ParameterRow]`):
            From [`parameter_rows`].
        path (`str` or `os.PathLike`):
            PNG to write.
        title (`str`, *optional*):
            Title of the picture.

    Returns:
        `Path`: the path.

    Raises:
        `ValueError`: if there is no row.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    if not names:
        raise ValueError("The model has no extra parameters: there is nothing to draw.")
    figure = new_figure((3.6 * len(names), 3.2))
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        own = [row for row in rows if row.name == name]
        layers = [row.layer for row in own]
        summaries = [row.summary for row in own]
        axes.fill_between(
            layers,
            [each["min"] for each in summaries],
            [each["max"] for each in summaries],
            color=COLOURS[0],
            alpha=0.2,
            label="range in the layer",
        )
        axes.plot(layers, [each["mean"] for each in summaries], color=COLOURS[0], marker="o", label="trained")
        starts = [sum(row.initial) / len(row.initial) for row in own]
        axes.plot(layers, starts, color=COLOURS[1], marker=".", linestyle=LINE_STYLES[1], label="init")
        finish_panel(axes, name, "layer")
    finish_panel(figure.axes[0], y="value")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    if title:
        figure.suptitle(title)
    return save_figure(figure, path)


def write_parameter_report(model, output_dir: str | os.PathLike, title: str) -> list[ParameterRow]:
    """
    Write `parameters.json` (all values), `parameters.md` (the table) and `parameters.png`.

    Args:
        model ([`CrossLayerLlamaForCausalLM`]):
            A trained model.
        output_dir (`str` or `os.PathLike`):
            Folder.
        title (`str`):
            What the model is called in the report.

    Returns:
        `list[ParameterRow]`: the rows; without any, nothing is written.
    """
    rows = parameter_rows(model)
    if rows:
        folder = Path(output_dir)
        plot_parameters(rows, folder / "parameters.png", title)
        atomic_write_text(folder / "parameters.md", f"# {title}\n\n{parameter_table(rows)}\n")
        data = [{**vars(row), **row.summary} for row in rows]
        atomic_write_text(folder / "parameters.json", json.dumps(data, indent=1) + "\n")
    return rows
