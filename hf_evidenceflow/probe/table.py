"""A [`ProbeResult`] as tables: one row per layer and token, per layer, or per token; to parquet and csv.

The tables are `pandas.DataFrame`s, for which pandas must be installed: `pip install 'hf-evidenceflow[tables]'`.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ..atomic_write import atomic_file
from ..evaluation.statistics import ratio_interval
from .probe import ProbeResult


if TYPE_CHECKING:
    import pandas


def layer_token_table(result: ProbeResult) -> "pandas.DataFrame":
    """
    (L+1) * N rows, layer by layer, with `layer` (-1: embedding), `row`, `position`, `token_id`, `token`, `label_id`,
    `label`, a column for each measure, and `top_ids`, `top_tokens`, `top_probabilities` (lists, best first).
    """
    pd = _pandas()
    tokens = _token_columns(result)
    frames = []
    for depth, layer in enumerate(result.layers):
        frame = pd.DataFrame({"layer": layer, **tokens})
        for name, values in result.measures.items():
            frame[name] = values[depth].numpy()
        frame["top_ids"] = result.top_ids[depth].tolist()
        frame["top_tokens"] = [[result.token_strings[index] for index in ids] for ids in frame["top_ids"]]
        frame["top_probabilities"] = result.top_probabilities[depth].tolist()
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def layer_means(result: ProbeResult) -> dict[str, list]:
    """
    Columns with one value per layer: `layer` (-1: embedding), the mean over tokens of each measure, `lens_accuracy`
    (share of tokens whose label ranks first) and `effective_rank`; of several texts also `lens_loss_low` and
    `lens_loss_high`, the 95 % interval over the texts. Needs no pandas.
    """
    means = {name: values.double().mean(1).tolist() for name, values in result.measures.items()}
    accuracy = (result.measures["label_rank"] == 1).double().mean(1).tolist()
    columns = {"layer": result.layers, **means, "lens_accuracy": accuracy, "effective_rank": result.effective_rank}
    rows = torch.tensor(result.rows)
    counts = rows.bincount()
    if len(counts) > 1:
        sums = (rows.bincount(losses.double()).tolist() for losses in result.measures["lens_loss"])
        intervals = [ratio_interval(some, counts.tolist()) for some in sums]
        columns["lens_loss_low"] = [interval.low for interval in intervals]
        columns["lens_loss_high"] = [interval.high for interval in intervals]
    return columns


def layer_table(result: ProbeResult) -> "pandas.DataFrame":
    """[`layer_means`] as a table of L+1 rows."""
    return _pandas().DataFrame(layer_means(result))


def token_table(result: ProbeResult) -> "pandas.DataFrame":
    """
    N rows with `row`, `position`, `token_id`, `token`, `label_id`, `label`, `drift_rate` (nats a layer) and
    `effective_depth` (layers).
    """
    measured = {"drift_rate": result.drift_rate.numpy(), "effective_depth": result.effective_depth.numpy()}
    return _pandas().DataFrame(_token_columns(result) | measured)


def write_tables(result: ProbeResult, folder: str | os.PathLike) -> list[Path]:
    """Write `layer_tokens`, `layers` and `tokens` into a folder, each as `.parquet` and `.csv`; returns the paths."""
    written = []
    tables = {"layer_tokens": layer_token_table, "layers": layer_table, "tokens": token_table}
    for name, make in tables.items():
        table = make(result)
        for ending, write in ((".parquet", table.to_parquet), (".csv", table.to_csv)):
            path = Path(folder) / f"{name}{ending}"
            with atomic_file(path) as temporary:
                write(temporary, index=False)
            written.append(path)
    return written


def _pandas() -> ModuleType:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables of a probe need pandas: pip install 'hf-evidenceflow[tables]'.") from error
    return pandas


def _token_columns(result: ProbeResult) -> dict[str, list]:
    text = result.token_strings
    return {
        "row": result.rows,
        "position": result.positions,
        "token_id": result.input_ids,
        "token": [text[index] for index in result.input_ids],
        "label_id": result.labels,
        "label": [text[index] for index in result.labels],
    }
