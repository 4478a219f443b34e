"""
Train all cross-layer Llama variants and base on the same text, over seeds, and compare them with the published table.

```bash
python recipes/crosslayer_sweep.py --config recipes/configs/crosslayer_sweep/smoke.yaml \
    --output_dir outputs/crosslayer-smoke --jobs 2
python recipes/crosslayer_sweep.py --output_dir outputs/crosslayer --jobs 2 \
    --options '{"train_file": "train.txt", "validation_file": "validation.txt"}'
```

This is `run_experiment.py` with the grid `recipes/configs/run_experiment/crosslayer.yaml` as its default: resumable,
with a live `status.html`, the same options. `smoke.yaml` takes about four minutes on two CPU cores, the whole grid
63 runs of one to three minutes each.

Outputs, in `output_dir`: those of `run_experiment.py`; `ranking.md`, the differences to base next to the published
ones; `parameters/VARIANT/`, what the variants with parameters of their own learned (first seed): values by layer,
effective scales, a picture.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from scipy.stats import spearmanr

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.evaluation.statistics import mean_t_interval, paired_t_difference
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.models.loading import load_checkpoint
from hf_evidenceflow.recipes import run_experiment
from hf_evidenceflow.recipes.experiments.extra_parameter_report import write_parameter_report
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


GRID = "recipes/configs/run_experiment/crosslayer.yaml"
# Loss on WikiText-103 (8 layers, 512 wide, one run each); v2m2, v3m2 and v3m4 were not published
PUBLISHED = {
    "base": 2.5297,
    "v2m1": 2.5340,
    "v2m3": 2.5199,
    "v3m1": 2.5253,
    "v3m3_1": 2.5259,
    "v3m3_2": 2.5261,
    "v4m1": 2.5293,
    "v4m2": 2.5512,
    "v4m3": 2.5556,
    "v4m4": 2.5451,
    "v4m5": 2.5470,
    "v4m6": 2.5420,
    "v4m7": 2.5443,
}


def losses_by_variant(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Evaluation loss by variant and seed, of the finished runs without decay on the variants' own parameters."""
    losses: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["final"] and row["cell"].get("decay", "off") == "off":
            losses.setdefault(row["cell"]["variant"], {})[row["seed"]] = row["metrics"]["eval_loss"]
    return losses


def ranking(losses: Mapping[str, Mapping[int, float]]) -> str:
    """Markdown: loss of each variant, its difference to base with a 95 % interval, and the published difference."""
    base = losses.get("base")
    if not base:
        raise ValueError("No run of `base` is finished: there is nothing to compare with.")
    cells, ours, theirs = [], [], []
    for variant, by_seed in sorted(losses.items(), key=lambda item: mean_t_interval(list(item[1].values())).value):
        seeds = sorted(by_seed.keys() & base.keys())
        difference = "" if variant == "base" or not seeds else "one seed"
        if variant != "base" and len(seeds) > 1:
            pair = paired_t_difference([base[seed] for seed in seeds], [by_seed[seed] for seed in seeds])
            difference = f"{pair.value:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
        published = ""
        if variant in PUBLISHED and variant != "base":
            published = f"{PUBLISHED[variant] - PUBLISHED['base']:+.4f}"
        mean = mean_t_interval(list(by_seed.values())).value
        if variant in PUBLISHED:
            ours.append(mean)
            theirs.append(PUBLISHED[variant])
        cells.append((f"`{variant}`", len(by_seed), f"{mean:.4f}", difference, published))
    columns = ("variant", "seeds", "loss", "difference to base, 95 %", "published difference (one run)")
    text = markdown_table(columns, cells) + "\n"
    if len(ours) > 2:
        correlation = spearmanr(ours, theirs)
        text += (
            f"\nRank correlation with the published losses (Spearman, {len(ours)} variants): "
            f"{correlation.statistic:.2f}, p = {correlation.pvalue:.2f}.\n"
        )
    return text


def write_parameters(rows: Sequence[Mapping[str, Any]], output_dir: Path, seed: int) -> None:
    """The learned parameters of each variant that has some, for one seed."""
    for row in rows:
        if not row["final"] or row["seed"] != seed:
            continue
        name = "-".join(row["cell"].values())
        model = load_checkpoint(str(output_dir / "runs" / row["id"]))
        if write_parameter_report(model, output_dir / "parameters" / name, name):
            print(f"Learned parameters: {output_dir / 'parameters' / name}")


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--config" not in argv:
        argv += ["--config", GRID]
    code = run_experiment.main(argv)
    (args,) = RecipeParser(run_experiment.RunnerArguments, __doc__).parse_args_and_config(argv)
    results = Path(args.output_dir) / "results.jsonl"
    if args.print_jobs or not results.exists():
        return code
    rows = read_json_lines(results)
    table = ranking(losses_by_variant(rows))
    atomic_write_text(Path(args.output_dir) / "ranking.md", table)
    print(table)
    write_parameters(rows, Path(args.output_dir), load_grid(args.config).seeds[0])
    return code


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Run the same command again to go on.")
