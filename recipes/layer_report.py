"""
Look into the layers of every trained model of an experiment: what an early exit would cost, norms, effective rank.

```bash
python recipes/layer_report.py --config recipes/configs/run_experiment/loss_p.yaml --experiment outputs/loss_p \
    --output_dir results/loss_p
```

Takes the finished final runs of `recipes/run_experiment.py` over `recipes/pretrain_clm.py`, and reads the validation
text that their run records name. About two seconds per run on one CPU core.

Outputs, in `output_dir`: `layers.jsonl` (one row per run and layer), `layers.md` (per group the layers, and the
loss on the text against the baseline's), `layers_GROUP.png`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch

from hf_evidenceflow.atomic_write import atomic_write_text, to_plain
from hf_evidenceflow.evaluation.perplexity import next_token_losses
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.probe.probe import EvidenceProbe
from hf_evidenceflow.recipes.experiments.grid import Cell
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.layer_report import add_perplexity, difference_table, layer_table, plot_layers
from hf_evidenceflow.recipes.pretrain_clm import ScriptArguments, load_data, packed_rows
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class LayerReportArguments:
    """
    Args:
        config (`str`):
            The experiment's grid.
        experiment (`str`):
            Its output folder.
        output_dir (`str`):
            Where the tables and pictures go.
        max_rows (`int`, *optional*, defaults to `256`):
            Rows of the validation text that each model reads.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows at a time.
    """

    config: str
    experiment: str
    output_dir: str
    max_rows: int = 256
    batch_size: int = 32


def validation_batches(folder: Path, tokenizer, args: LayerReportArguments, cache: dict) -> list[dict]:
    """The first rows of the validation text of a run."""
    record = read_run_record(folder)
    script = {name: value for name, value in record["configs"]["script"].items() if value is not None}
    data = ("train_file", "validation_file", "train_tokens", "validation_tokens", "block_size")
    key = json.dumps([script.get(name) for name in data])
    if key not in cache:
        script = ScriptArguments(**script)
        rows = packed_rows(script, load_data(script)[1], tokenizer)
        ids = torch.stack([rows[index]["input_ids"] for index in range(min(args.max_rows, len(rows)))])
        cache[key] = [{"input_ids": part} for part in ids.split(args.batch_size)]
    return cache[key]


def main(argv: list[str] | None = None) -> list[dict]:
    (args,) = RecipeParser(LayerReportArguments, __doc__).parse_args_and_config(argv)
    grid = load_grid(args.config)
    results = Path(args.experiment) / "results.jsonl"
    if not results.exists():
        raise FileNotFoundError(f"`{results}` does not exist. Run recipes/run_experiment.py first.")
    rows, cache, losses, baselines = [], {}, {}, {}
    for result in read_json_lines(results):
        if not result["final"]:
            continue
        folder = Path(args.experiment) / "runs" / result["id"]
        model, tokenizer = load_model(str(folder), device="cpu")
        cell = Cell(result["cell"], {})
        row = {"group": grid.group(cell) or "all", "arm": grid.arm(cell), "seed": result["seed"]}
        batches = validation_batches(folder, tokenizer, args, cache)
        text = torch.cat([next_token_losses(model, batch["input_ids"])[0].mean(1) for batch in batches])
        losses.setdefault((row["group"], row["arm"]), []).append(text.tolist())
        if grid.is_baseline(cell):
            baselines[row["group"]] = row["arm"]
        layers = EvidenceProbe(model).summarize(batches)
        rows += [row | layer for layer in layers]
        lens = ", ".join(f"{layer['lens_loss']:.3f}" for layer in layers)
        print(f"{result['id']}: lens loss {lens}", flush=True)
    if not rows:
        raise ValueError(f"No final run in `{results}` is finished: there is nothing to look into.")

    output_dir = Path(args.output_dir)
    rows = add_perplexity(rows)
    atomic_write_text(
        output_dir / "layers.jsonl", "".join(json.dumps(to_plain(row), sort_keys=True) + "\n" for row in rows)
    )
    groups = list(dict.fromkeys(row["group"] for row in rows))
    tables = []
    for group in groups:
        tables.append(f"## {group}\n\n{layer_table(rows, group)}\n")
        if group in baselines:
            tables.append(f"{difference_table(losses, group, baselines[group])}\n")
    atomic_write_text(output_dir / "layers.md", "\n".join(tables))
    for group in groups:
        plot_layers(rows, group, output_dir / f"layers_{group.replace(', ', '_')}.png")
    print("\n".join(tables))
    return rows


if __name__ == "__main__":
    run_recipe(main)
