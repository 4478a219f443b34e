"""The tables of the recipe."""

from collections.abc import Mapping

from hf_evidenceflow.evaluation.statistics import paired_t_difference
from hf_evidenceflow.report.tables import markdown_table


def compression_tables(
    quantized: Mapping[str, Mapping],
    outliers: Mapping[str, Mapping],
    weights: Mapping[str, Mapping],
    adapters: Mapping[str, Mapping],
    students: Mapping[str, Mapping],
) -> list[str]:
    """
    The results in Markdown.

    Args:
        quantized (`Mapping[str, Mapping]`):
            By the name of the form, `float32` first: `bits`, `bytes`, `perplexity`, `row_losses` and `seconds`.
        outliers (`Mapping[str, Mapping]`):
            By the name of the model: `errors` as from [`int8_layer_errors`], and `perplexity` by way: `float32`,
            `int8`, `split` and `split, int8 weights`.
        weights (`Mapping[str, Mapping]`):
            By the name of the 4-bit values: relative errors `normal` and `trained`.
        adapters (`Mapping[str, Mapping]`):
            By name: `bytes`, `trained`, `before`, `after`, `base_unchanged` and `seconds`.
        students (`Mapping[str, Mapping]`):
            By name: `perplexity`, `forward_kl`, `reverse_kl`, `teacher_perplexity`, `tokens` and `seconds`.

    Returns:
        `list[str]`: the tables; none of what is empty.
    """
    tables = [
        markdown_table(
            ["weights", "bits a weight", "MB", "perplexity", "loss minus float32's (95 %, over rows)", "seconds"],
            [
                [
                    name,
                    f"{row['bits']:.3f}",
                    f"{row['bytes'] / 1e6:.3f}",
                    f"{row['perplexity']:.4f}",
                    "" if name == "float32" else _difference(quantized["float32"], row),
                    f"{row['seconds']:.1f}",
                ]
                for name, row in quantized.items()
            ],
        )
    ]
    if outliers:
        ways = {"int8": "plain", "split": "split", "split, int8 weights": "split_int8_weight"}
        tables.append(
            markdown_table(
                ["LLM.int8()", "perplexity", "error of layers", "columns split off"],
                [
                    [
                        f"{name}: {way}",
                        f"{row['perplexity'][way]:.4f}",
                        f"{row['errors'][ways[way]]:.2%}" if way in ways else "",
                        f"{row['errors']['columns']:.1%}" if way.startswith("split") else "",
                    ]
                    for name, row in outliers.items()
                    for way in ("float32", *ways)
                ],
            )
        )
    if weights:
        tables.append(
            markdown_table(
                ["4-bit values", "error, normal weights", "error, trained weights"],
                [[name, f"{row['normal']:.2%}", f"{row['trained']:.2%}"] for name, row in weights.items()],
            )
        )
    if adapters:
        tables.append(
            markdown_table(
                ["backward text", "base, MB", "trained parameters", "before", "after", "base unchanged", "seconds"],
                [
                    [
                        name,
                        f"{row['bytes'] / 1e6:.3f}",
                        f"{row['trained']}",
                        f"{row['before']:.2f}",
                        f"{row['after']:.3f}",
                        "yes" if row["base_unchanged"] else "NO",
                        f"{row['seconds']:.0f}",
                    ]
                    for name, row in adapters.items()
                ],
            )
        )
    if students:
        tables.append(
            markdown_table(
                [
                    *("student", "perplexity", "KL(teacher, student)", "KL(student, teacher)"),
                    *("teacher's perplexity on its samples", "tokens", "seconds"),
                ],
                [
                    [
                        name,
                        f"{row['perplexity']:.3f}",
                        _interval(row["forward_kl"]),
                        _interval(row["reverse_kl"]),
                        f"{row['teacher_perplexity']:.2f}",
                        f"{row['tokens']:.0f}",
                        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
                    ]
                    for name, row in students.items()
                ],
            )
        )
    return tables


def _difference(full: Mapping, row: Mapping) -> str:
    value, low, high, _ = paired_t_difference(full["row_losses"], row["row_losses"])
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _interval(row: Mapping[str, float]) -> str:
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
