"""A [`ProbeResult`] as tables: one row a layer and token, a layer, or a token; to parquet and csv."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import atomic_file
from .probe import ProbeResult


if TYPE_CHECKING:
    import pandas


def layer_token_table(result: ProbeResult) -> "pandas.DataFrame":
    """
    One row for each layer and token.

    Args:
        result ([`ProbeResult`]):
            Result with L+1 rows (embedding and layers) of N tokens.

    Returns:
        `pandas.DataFrame`: (L+1) * N rows, layer by layer, with `layer` (-1: embedding), `row`, `position`,
        `token_id`, `token`, `label_id`, `label`, a column for each measure, and `top_ids`, `top_tokens`,
        `top_probabilities` (lists, best first).
    """
    import pandas as pd

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


def layer_table(result: ProbeResult) -> "pandas.DataFrame":
    """
    One row for each layer.

    Args:
        result ([`ProbeResult`]):
            Result with L+1 rows (embedding and layers).

    Returns:
        `pandas.DataFrame`: L+1 rows with `layer` (-1: embedding), the mean over tokens of each measure,
        `lens_accuracy` (share of tokens whose label ranks first) and `effective_rank`.
    """
    import pandas as pd

    means = {name: values.double().mean(1).numpy() for name, values in result.measures.items()}
    accuracy = (result.measures["label_rank"] == 1).double().mean(1).numpy()
    return pd.DataFrame(
        {"layer": result.layers, **means, "lens_accuracy": accuracy, "effective_rank": result.effective_rank}
    )


def token_table(result: ProbeResult) -> "pandas.DataFrame":
    """
    One row for each token.

    Args:
        result ([`ProbeResult`]):
            Result of N tokens.

    Returns:
        `pandas.DataFrame`: N rows with `row`, `position`, `token_id`, `token`, `label_id`, `label`, `drift_rate` (nats
        a layer) and `effective_depth` (layers).
    """
    import pandas as pd

    return pd.DataFrame(
        {
            **_token_columns(result),
            "drift_rate": result.drift_rate.numpy(),
            "effective_depth": result.effective_depth.numpy(),
        }
    )


def write_tables(result: ProbeResult, folder: str | os.PathLike) -> list[Path]:
    """
    Write the three tables, each as parquet and as csv.

    Args:
        result ([`ProbeResult`]):
            What to write.
        folder (`str` or `os.PathLike`):
            Folder of the files; made when missing.

    Returns:
        `list[Path]`: `layer_tokens`, `layers` and `tokens`, each `.parquet` and `.csv`.
    """
    folder, written = Path(folder), []
    tables = {"layer_tokens": layer_token_table, "layers": layer_table, "tokens": token_table}
    for name, make in tables.items():
        table = make(result)
        for ending, write in ((".parquet", table.to_parquet), (".csv", table.to_csv)):
            path = folder / f"{name}{ending}"
            with atomic_file(path) as temporary:
                write(temporary, index=False)
            written.append(path)
    return written


def _token_columns(result):
    text = result.token_strings
    return {
        "row": result.rows,
        "position": result.positions,
        "token_id": result.input_ids,
        "token": [text[index] for index in result.input_ids],
        "label_id": result.labels,
        "label": [text[index] for index in result.labels],
    }
