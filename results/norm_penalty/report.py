"""Writes the numbers of this study from the folders of its finished runs, whichever these are.

python results/norm_penalty/report.py outputs/norm_penalty results/norm_penalty

Outputs: `results.jsonl` (a row per run), `measures.jsonl` (see `StepMeasures` of `train.py`), `tables.md`, and
`ranks.png`.
"""

import json
import sys
from pathlib import Path

from scipy.stats import spearmanr

from hf_evidenceflow.atomic_write import atomic_write_text, to_plain
from hf_evidenceflow.evaluation.statistics import mean_t_interval, paired_t_difference
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.plots import look
from hf_evidenceflow.recipes.experiments.runs import RunFiles, result_row
from hf_evidenceflow.report.figures import finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


HERE = Path(__file__).parent
STEPS = (20, 50, 125, 250, 490)  # of the measures that are kept
COLUMNS = {
    "state_norm": STEPS[-1],
    "contribution": STEPS[-1],
    "effective_rank": STEPS[-1],
    "common_share": 50,
    "step_of_function": 250,
    "step_of_weights": 250,
    "grad_norm": 250,
}
RATE = 3e-3  # of the comparisons; the others of the grid are for seed 0
LOSS_P = {"pre-norm": "llama", "post-norm": "post_norm"}  # folders of the study before


def finished_runs(grid, out: Path) -> list[dict]:
    """Rows of all finished runs of the grid, tuned or not, with their measures."""
    specs = [grid.run(cell, seed, value) for cell in grid.cells for seed in grid.seeds for value in grid.tune.values]
    rows = []
    for spec in specs:
        files = RunFiles(out, spec)
        if (record := files.finished_record()) is None:
            continue
        row = result_row(files, record, grid.tune.option, True)
        row |= {"command": None, "measures": read_json_lines(files.folder / "measures.jsonl")}
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def key_of(row) -> tuple[str, str, str]:
    return tuple(row["cell"].values())


def interval(values) -> str:
    found = mean_t_interval(values)
    spread = "" if len(values) == 1 else f" ± {(found.high - found.low) / 2:.3f}"
    return f"{found.value:+.3f}{spread}"


def losses_of(rows, rate: float = RATE) -> dict[tuple, dict[int, float]]:
    """Loss by cell and seed, at one learning rate."""
    losses: dict[tuple, dict[int, float]] = {}
    for row in rows:
        if row["tuned"]["learning_rate"] == rate:
            losses.setdefault(key_of(row), {})[row["seed"]] = row["metrics"]["eval_loss"]
    return losses


def paired(losses, key, other) -> list[float]:
    """Differences of the seeds that both cells have."""
    shared = sorted(losses.get(key, {}).keys() & losses.get(other, {}).keys())
    return [losses[key][seed] - losses[other][seed] for seed in shared]


def cells_table(rows, size) -> str:
    """A line per cell: loss, difference to the plain Llama, and to its own setting without the penalty."""
    losses = losses_of(rows)
    lines = []
    for key in (key for key in losses if key[0] == size):
        _, setting, penalty = key
        plain, own = paired(losses, key, (size, "llama", "off")), paired(losses, key, (size, setting, "off"))
        values = list(losses[key].values())
        lines.append(
            [
                setting,
                penalty,
                str(len(values)),
                f"{sum(values) / len(values):.3f}",
                interval(plain) if plain and (setting, penalty) != ("llama", "off") else "",
                interval(own) if own and penalty != "off" and setting != "llama" else "",
            ]
        )
    header = ["setting", "penalty", "seeds", "loss", "to plain Llama", "penalty's gain in the setting"]
    return markdown_table(header, lines, align="llrrrr")


def rates_table(rows, grid) -> str:
    """Loss of seed 0 by learning rate, of the cells that ran with each, and the penalty's effect at the best ones."""
    by_rate = {rate: losses_of(rows, rate) for rate in grid.tune.values}
    tried = {
        key: [by_rate[rate][key][0] for rate in by_rate]
        for key in by_rate[RATE]
        if all(0 in losses.get(key, {}) for losses in by_rate.values())
    }
    lines = []
    for key, losses in tried.items():
        off = tried.get((*key[:2], "off"))
        gain = "" if off is None or key[2] == "off" else f"{min(losses) - min(off):+.3f}"
        lines.append([*key, *(f"{loss:.3f}" for loss in losses), gain])
    header = ["size", "setting", "penalty", *(f"{rate:g}" for rate in by_rate), "best minus best without penalty"]
    return markdown_table(header, lines, align="lll" + "r" * (len(by_rate) + 1))


def interactions_table(rows) -> str:
    """How much less the penalty gains in a setting than in the plain Llama of its size, paired by seed."""
    losses = losses_of(rows)
    lines = []
    for size, setting, penalty in losses:
        if penalty != "zero" or setting == "llama":
            continue
        cells = [(size, s, p) for s in (setting, "llama") for p in ("zero", "off")]
        if shared := sorted(set.intersection(*(set(losses.get(cell, {})) for cell in cells))):
            values = [[losses[cell][seed] for cell in cells] for seed in shared]
            found = paired_t_difference([b[2] - b[3] for b in values], [b[0] - b[1] for b in values])
            limits = "" if len(shared) == 1 else f" [{found.low:+.3f}, {found.high:+.3f}]"
            lines.append([size, setting, str(len(shared)), f"{found.value:+.3f}{limits}"])
    return markdown_table(["size", "setting", "seeds", "interaction (+: the penalty gains less)"], lines, align="llrr")


def layers_table(rows, size) -> str:
    """By cell, at seed 0: the measures at some step, from the embedding to the last layer."""
    names = [f"{name} (step {step})" for name, step in COLUMNS.items()]
    lines = []
    for row in rows:
        key = key_of(row)
        if key[0] != size or row["seed"] or row["tuned"]["learning_rate"] != RATE:
            continue
        cells = []
        for name, step in COLUMNS.items():
            values = [each.get(name) for each in row["measures"] if each["step"] == step]
            cells.append(" ".join("-" if value is None else f"{value:.2g}" for value in values))
        last = [each for each in row["measures"] if each["step"] == STEPS[-1]]
        cells.append(f"{last[0]['logit_scale']:.2f}" if last else "")
        lines.append([key[1], key[2], *cells])
    return markdown_table(["setting", "penalty", *names, "logit scale at the end"], lines)


def runs_before(folder: str) -> list[dict]:
    """Arm, loss, measures behind the first layer, and lowest effective rank, of each final run of `../loss_p`."""
    folder = HERE.parent / "loss_p" / folder
    losses = {}
    for row in read_json_lines(folder / "results.jsonl"):
        if row["final"]:
            group = f"{row['cell']['model']}, {row['cell']['warmup']}"
            losses[group, row["cell"]["arm"], row["seed"]] = row["metrics"]["eval_loss"]
    layers = {}
    for row in read_json_lines(folder / "layers.jsonl"):
        layers.setdefault((row["group"], row["arm"], row["seed"]), []).append(row)
    return [
        rows[0] | {"loss": losses[key], "narrowest": min(row["effective_rank"] for row in rows)}
        for key, rows in layers.items()
        if key in losses
    ]


def before_table() -> str:
    """The arms of `../loss_p`: what the first layer adds to the embedding, the rank behind it, and the loss."""
    lines = []
    for place, folder in LOSS_P.items():
        runs = runs_before(folder)
        for group, arm in dict.fromkeys((run["group"], run["arm"]) for run in runs):
            own = [run for run in runs if (run["group"], run["arm"]) == (group, arm)]
            means = [sum(run[name] for run in own) / len(own) for name in ("relative_step", "effective_rank", "loss")]
            lines.append([group, arm, str(len(own)), f"{means[0]:.1f}", f"{means[1]:.1f}", f"{means[2]:.3f}"])
        found = [
            spearmanr([run[name] for run in runs], [run["loss"] for run in runs]).statistic
            for name in ("effective_rank", "narrowest")
        ]
        spearman = f"{found[0]:.2f} (of the narrowest layer: {found[1]:.2f})"
        lines.append([f"all {place}", "rank against loss: Spearman", str(len(runs)), "", spearman, ""])
    header = ["model, warm-up", "arm", "seeds", "layer 1 adds / embedding", "effective rank behind it", "loss"]
    return markdown_table(header, lines, align="llrrrr")


def post_norm_interaction() -> str:
    """The penalty's effect in the post-norm model of `../loss_p` minus that in its tied Llama, paired by seed."""
    losses = {}
    for folder in LOSS_P.values():
        for run in runs_before(folder):
            if run["group"] in ("llama_tied, on", "gpt_post_norm, on"):
                losses[run["group"][:3], run["arm"], run["seed"]] = run["loss"]
    effects = [
        [losses[model, "zero", seed] - losses[model, "none", seed] for seed in range(3)] for model in ("lla", "gpt")
    ]
    found = paired_t_difference(*effects)
    return f"post-norm minus pre-norm, 3 seeds: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def plot_ranks(rows, path) -> None:
    """Effective rank of the narrowest layer against the loss: the arms of `../loss_p`, and those of this study."""
    figure = new_figure((13.0, 5.4))
    panels = figure.subplots(1, 3)
    for panel, (place, folder) in zip(panels, LOSS_P.items()):
        runs = runs_before(folder)
        for index, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
            own = [run for run in runs if run["arm"] == arm]
            style = look(index) | {"linestyle": ""}
            panel.plot([run["narrowest"] for run in own], [run["loss"] for run in own], label=arm, **style)
        finish_panel(panel, f"{place}, width 128: objectives of loss_p")
    points = {"without penalty": [], "with a penalty": []}
    for row in rows:
        ranks = [each.get("effective_rank") for each in row["measures"] if each["step"] == STEPS[-1] and each["layer"]]
        size, _, penalty = key_of(row)
        if size == "d64" and row["seed"] == 0 and row["tuned"]["learning_rate"] == RATE and None not in ranks:
            points["without penalty" if penalty == "off" else "with a penalty"].append(
                (min(ranks), row["metrics"]["eval_loss"])
            )
    for index, (label, own) in enumerate(points.items()):
        panels[-1].plot(*zip(*own), label=label, **look(index) | {"linestyle": ""})
    finish_panel(panels[-1], "width 64, seed 0: this study")
    for panel in panels:
        finish_panel(panel, x="effective rank of the states behind the narrowest layer", y="held-out loss")
        panel.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    save_figure(figure, path)


def main(out: str, folder: str) -> None:
    grid = load_grid(HERE / "grid.yaml")
    rows = finished_runs(grid, Path(out))
    sizes = list(dict.fromkeys(key_of(row)[0] for row in rows))
    folder = Path(folder)
    parts = []
    for size in sizes:
        parts += [f"## {size}\n\n{cells_table(rows, size)}", f"### Layers of seed 0\n\n{layers_table(rows, size)}"]
    parts.append(f"## Learning rates, seed 0\n\n{rates_table(rows, grid)}")
    parts.append(f"## The study before\n\n{before_table()}\n\nInteraction of the penalty: {post_norm_interaction()}")
    parts.append(f"## Interactions\n\n{interactions_table(rows)}")
    atomic_write_text(folder / "tables.md", "\n\n".join(parts) + "\n")
    plot_ranks(rows, folder / "ranks.png")
    kept = [
        {"id": row["id"]}
        | {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in each.items()}
        for row in rows
        for each in row.pop("measures")
        if each["step"] in STEPS and row["seed"] == 0
    ]
    for name, lines in (("results.jsonl", rows), ("measures.jsonl", kept)):
        atomic_write_text(folder / name, "".join(json.dumps(to_plain(line)) + "\n" for line in lines))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
