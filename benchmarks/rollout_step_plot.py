"""
Draw how the update grows: counted columns as lines, measured times of `rollout_step.py` as points.

```bash
python benchmarks/rollout_step_plot.py results/rollouts/step_growth_*.json --output results/rollouts/step_growth.png
```

Three panels, each relative to TRL's padded update of the same load: over the size of a group, over the length of the
prompts, and over the spread of the completions (the standard deviation of their log-lengths). 8 prompts; the mean of
two seeds for the lines.
"""

import argparse
import json
from pathlib import Path

from rollout_speed import SPREAD, make_load
from rollout_step import PROMPTS, columns

from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


KINDS = ("buckets", "shared")
GROUP = 8


def shares(group=GROUP, prompts=PROMPTS["gsm8k"], spread=SPREAD) -> dict[str, float]:
    """Columns relative to those of the padded update."""
    counted = [
        columns(make_load(8, group, 1, seed=seed, shortest=prompts[0], longest=prompts[1], spread=spread))
        for seed in range(2)
    ]
    return {kind: sum(count[kind] / count["grpo"] for count in counted) / len(counted) for kind in KINDS}


def axes() -> dict:
    """For each panel by its label: what it runs over, lines by load, and where a measured point belongs, or `None`."""
    mean = {name: sum(span) / 2 for name, span in PROMPTS.items()}
    lengths = (20, 50, 100, 165, 300, 600, 1000, 1500, 2000)
    sizes, spreads = (2, 4, 8, 16, 32), (0.0, 0.2, SPREAD, 0.6, 0.8, 1.0)
    return {
        "completions of a prompt": (
            sizes,
            {kind: [shares(group=size, prompts=PROMPTS[kind]) for size in sizes] for kind in ("gsm8k", "passages")},
            lambda point: point["group"] if point["spread"] == SPREAD and point["load"] != "documents" else None,
        ),
        "tokens of a prompt": (
            lengths,
            {"gsm8k": [shares(prompts=(9 * length // 10, 11 * length // 10)) for length in lengths]},
            lambda point: mean[point["load"]] if point["group"] == GROUP and point["spread"] == SPREAD else None,
        ),
        "spread of completions": (
            spreads,
            {"gsm8k": [shares(spread=spread) for spread in spreads]},
            lambda point: point["spread"] if point["group"] == GROUP and point["load"] == "gsm8k" else None,
        ),
    }


def draw(points: list[dict]):
    """A figure of the points that `rollout_step.py` has measured."""
    figure = new_figure((13, 4.6))
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (label, (places, lines, place_of)) in zip(panels, axes().items()):
        for style, (load, rows) in zip(LINE_STYLES, lines.items()):
            for colour, kind in zip(COLOURS, KINDS):
                name = f"{kind}, columns ({load})"
                panel.plot(places, [row[kind] for row in rows], style, color=colour, label=name)
        for colour, kind in zip(COLOURS, KINDS):
            found = [(place_of(point), point["table"][kind]["update_share"], point["load"]) for point in points]
            for load, marker in zip(PROMPTS, "osD"):
                own = [(place, share) for place, share, of in found if place is not None and of == load]
                if own:
                    panel.plot(*zip(*own), marker, color=colour, label=f"{kind}, time ({load})")
        finish_panel(panel, x=label)
        if min(places) > 0:
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
    finish_panel(panels[0], y="update relative to TRL's")
    panels[0].set_ylim(0, 1.05)
    # The first panel has every line and marker of the others
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="+", type=Path, help="JSON files of rollout_step.py")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    points = [point for path in args.measured for point in json.loads(path.read_text(encoding="utf-8"))["points"]]
    save_figure(draw(points), args.output)


if __name__ == "__main__":
    main()
