"""
Draw the training figures of one or several runs from their logs, laid over each other.

```bash
python recipes/plot_run.py \
    --runs baseline=outputs/baseline evidence_flow=outputs/evidence_flow/checkpoint-500 \
    --output_dir outputs/curves
```

A run is named by an output folder, a checkpoint, a `trainer_state.json` or a `.jsonl` file with one logged row a line.
Seconds on a CPU; nothing is trained or downloaded.

With the EvidenceFlow callback the trained loss holds the weighted Loss_p. The loss and the perplexity drawn here never
do: they are taken from `evidence_flow/model_loss`, which the callback logs.

Outputs, in `output_dir`:
- `curves.png`: loss, perplexity, held-out loss, Loss_p and its weight, load balance, learning rate and the rolling
  coefficient of variation of the perplexity, and of latent training KL, probability on the targets, loss after the
  thoughts and stage, as far as they are logged;
- `log_fit.png`: the loss over ln(step) with its least-squares line; `layers.png`: Loss_p by layer, and `thoughts.png`:
  KL by thought, where they are logged;
- `metrics.json`: last values, fit and spread of each run; `index.html`: all of it on one page; `run.json`.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from rich.console import Console

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.report.curves import load_log_history
from hf_evidenceflow.report.figures import COLOURS
from hf_evidenceflow.report.html import html_page, picture
from hf_evidenceflow.report.run_curves import plot_layer_terms, plot_log_fit, plot_run_curves, plot_thoughts
from hf_evidenceflow.report.run_metrics import run_metrics
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe


CAPTIONS = {
    "curves": "Curves of the log; bold lines are running means",
    "log_fit": "Loss over the logarithm of the step, and its fit",
    "layers": "Loss_p by layer, unweighted",
    "thoughts": "KL of each thought to its target",
}
COLUMNS = (
    *("run", "loss taken from", "last loss", "last perplexity", "held-out loss", "Loss_p"),
    *("fit: loss at step 1", "fit: slope per ln(step)", "fit: R²", "mean CV", "unsteady windows"),
)


@dataclass
class PlotArguments:
    """
    Arguments of the figures.

    Args:
        runs (`list[str]`):
            One or several `name=path`.
        output_dir (`str`):
            Folder of the figures.
        window (`int`, *optional*, defaults to `20`):
            Logged values of a window of the rolling coefficient of variation (standard deviation / mean).
        cv_threshold (`float`, *optional*, defaults to `0.1`):
            Coefficient of variation above which a window counts as unsteady.
        smooth (`int`, *optional*):
            Logged values that the bold lines average over; `1` for none. If not given, a tenth of each curve.
        keys (`list[str]`, *optional*):
            Further logged keys to draw.
    """

    runs: list[str]
    output_dir: str
    window: int = 20
    cv_threshold: float = 0.1
    smooth: int | None = None
    keys: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.runs = [self.runs] if isinstance(self.runs, str) else self.runs
        self.paths = dict(run.split("=", 1) for run in self.runs if run.strip("=").count("="))
        if len(self.paths) != len(self.runs):
            raise ValueError(f"`runs` must be `name=path` with different names, got {self.runs}.")
        if self.window < 2:
            raise ValueError(f"`window` must be at least 2 values, got {self.window}.")
        if not self.cv_threshold > 0:
            raise ValueError(f"`cv_threshold` must be above 0, got {self.cv_threshold}.")


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(PlotArguments, __doc__).parse_args_and_config(argv)
    folder = Path(args.output_dir)
    with run_record(folder, plot=args) as record:
        histories = {name: load_log_history(path) for name, path in args.paths.items()}
        pictures = {
            "curves": plot_run_curves(histories, folder / "curves.png", args.window, args.smooth, args.keys),
            "log_fit": plot_log_fit(histories, folder / "log_fit.png"),
            "layers": plot_layer_terms(histories, folder / "layers.png"),
            "thoughts": plot_thoughts(histories, folder / "thoughts.png"),
        }
        metrics = {name: run_metrics(log, args.window, args.cv_threshold) for name, log in histories.items()}
        atomic_write_json(folder / "metrics.json", metrics)
        atomic_write_text(folder / "index.html", page(metrics, pictures, args))
        record.add(metrics=metrics)
    console = Console()
    for name, values in metrics.items():
        loss = "no loss without Loss_p" if values["last_loss"] is None else f"loss {values['last_loss']:.3f}"
        console.print(f"{name}: {loss} (from {values['loss_key']})", highlight=False)
    console.print(f"Page: {folder / 'index.html'}", highlight=False, soft_wrap=True)
    return metrics


def page(metrics: dict, pictures: dict, args: PlotArguments) -> str:
    """All figures and numbers as one self-contained page."""
    return html_page(
        "curves.html",
        title="Training curves",
        columns=COLUMNS,
        rows=[table_row(name, values) for name, values in metrics.items()],
        window=args.window,
        cv_threshold=args.cv_threshold,
        runs=list(zip(metrics, itertools.cycle(COLOURS))),
        pictures=[picture(path, CAPTIONS[name]) for name, path in pictures.items() if path is not None],
    )


def table_row(name: str, values: dict) -> list:
    fit, spread = values["log_fit"] or {}, values["perplexity_cv"]
    last = (values[key] for key in ("loss_key", "last_loss", "last_perplexity", "last_eval_loss", "last_loss_p"))
    share = spread["share_above"]
    unsteady = None if share is None else f"{share:.0%} of {spread['windows']}"
    return [name, *last, *(fit.get(key) for key in ("intercept", "slope", "r_squared")), spread["mean"], unsteady]


if __name__ == "__main__":
    run_recipe(main)
