"""
Scaling laws: how loss falls with parameters and tokens, what a compute budget is best spent on, and a fit on runs made
here.

```bash
python recipes/course/scaling_laws/run.py --config recipes/configs/course/scaling_laws.yaml
python recipes/course/scaling_laws/run.py --text_file my_text.txt --budgets 1e10 3e10 1e11
```

The first command takes two minutes on one CPU core.

1. With published constants: optimal parameters N* and tokens D* for several budgets, and the smallest budget that
   reaches a loss.
2. With runs made here: small Llamas of several widths are trained at several budgets C = 6 N D, each within one pass
   over the text and with a learning rate that falls to the end of the run. The parametric loss is fitted to them
   (approach 3, bootstrap intervals over the runs), and parabolas over log N (approach 2). A larger run that the fit
   has not seen tells what the fit is worth.

N is the number of all parameters, as in Hoffmann et al.; a second row of the table fits with those outside the
embeddings, as Kaplan et al. count. FLOPs are 6 N D with the same N; the budgets are in all parameters.

Every run is in `runs.jsonl` as soon as it is done. The same command again goes on from there (`--resume false` starts
anew): a run with the same settings and text is not trained twice. The law holds for this text, tokenizer, learning
rate and range of sizes only.

Outputs, in `output_dir`: `scaling_laws.md`, `scaling_laws.png`, `runs.jsonl`, `law.json` (the constants of the fit),
`model` (the larger run), `metrics.json`, `run.json`.

Sources: Kaplan et al. 2020 (2001.08361), Hoffmann et al. 2022 (2203.15556), Besiroglu et al. 2024 (2404.10102).
"""

import hashlib
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.recipes.course.scaling_laws.fitting import (
    Run,
    bootstrap_fits,
    check_enough_runs,
    fit_parametric_loss,
    percentile_interval,
)
from hf_evidenceflow.recipes.course.scaling_laws.isoflop import fit_power_law, isoflop_minima
from hf_evidenceflow.recipes.course.scaling_laws.kaplan import loss_of_size_and_data
from hf_evidenceflow.recipes.course.scaling_laws.measured_runs import (
    RunsFile,
    count_parameters,
    plan_grid,
    small_llama,
    train_run,
)
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import PRESETS
from hf_evidenceflow.recipes.course.scaling_laws.scaling_plots import (
    Measured,
    plot_scaling_rows,
    scaling_rows,
)
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


PUBLISHED, MEASURED = "published", "measured"


@dataclass
class ScalingLawsArguments(CourseArguments):
    """
    Arguments of the recipe, beside those of every recipe of the course.

    Args:
        preset (`str`, *optional*, defaults to `"hoffmann"`):
            Published constants of the first table: `hoffmann` or `besiroglu`.
        published_budgets (`list[float]`, *optional*, defaults to `[1e19, 1e21, 1e23, 5.76e23, 1e25]`):
            FLOPs of the first table; 5.76e23 is Gopher's and Chinchilla's.
        target_losses (`list[float]`, *optional*, defaults to `[2.5, 2.2, 2.0]`):
            Losses whose smallest budget is asked for.
        widths (`list[int]`, *optional*, defaults to `[8, 16, 24, 40, 64]`):
            Sizes of the hidden state of the models, multiples of 8.
        layers (`int`, *optional*, defaults to `2`):
            Their layers.
        budgets (`list[float]`, *optional*, defaults to `[4e9, 8e9, 1.6e10, 3.2e10]`):
            FLOPs of the runs made here.
        held_out_budget (`float`, *optional*, defaults to `1e11`):
            FLOPs of the larger run, which is spent as the fit says.
        fewest_steps (`int`, *optional*, defaults to `80`):
            Optimizer steps of the shortest run; pairs of a width and a budget with fewer are left out.
        vocab_size (`int`, *optional*, defaults to `512`):
            Tokens of the tokenizer.
        block_size (`int`, *optional*, defaults to `64`):
            Tokens a row.
        batch_size (`int`, *optional*, defaults to `4`):
            Rows a step.
        learning_rate (`float`, *optional*, defaults to `0.01`):
            Highest learning rate at width 16; it goes with width^-1/2.
        validation_share (`float`, *optional*, defaults to `0.05`):
            Share of the documents that the loss is measured on.
        resamples (`int`, *optional*, defaults to `200`):
            Resamples of the runs for the intervals.
        methods (`list[str]`, *optional*):
            `published` for what the published constants say, `measured` for the runs made here, or parts of these;
            `None`: both.
        resume (`bool`, *optional*, defaults to `True`):
            Whether runs in `runs.jsonl` with the same settings and text are taken as they are.
    """

    output_dir: str = "outputs/scaling_laws"
    max_documents: int = 12000
    preset: str = "hoffmann"
    published_budgets: list[float] = field(default_factory=lambda: [1e19, 1e21, 1e23, 5.76e23, 1e25])
    target_losses: list[float] = field(default_factory=lambda: [2.5, 2.2, 2.0])
    widths: list[int] = field(default_factory=lambda: [8, 16, 24, 40, 64])
    layers: int = 2
    budgets: list[float] = field(default_factory=lambda: [4e9, 8e9, 1.6e10, 3.2e10])
    held_out_budget: float = 1e11
    fewest_steps: int = 80
    vocab_size: int = 512
    block_size: int = 64
    batch_size: int = 4
    learning_rate: float = 0.01
    validation_share: float = 0.05
    resamples: int = 200
    methods: list[str] | None = None
    resume: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.methods = chosen_methods((PUBLISHED, MEASURED), self.methods)
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {self.preset!r}.")
        if wrong := [width for width in self.widths if width < 8 or width % 8]:
            raise ValueError(f"`widths` must be multiples of 8, got {wrong}.")
        if self.held_out_budget <= max(self.budgets):
            raise ValueError(
                f"`held_out_budget` must exceed the largest of `budgets`, {max(self.budgets):.3g}, got "
                f"{self.held_out_budget:.3g}."
            )


def published_tables(args: ScalingLawsArguments) -> list[str]:
    """What the published constants say, forwards and backwards."""
    law = PRESETS[args.preset]
    rows = []
    for best in map(law.optimal, args.published_budgets):
        kaplan = float(loss_of_size_and_data(best.parameters, best.tokens))
        ratio = best.tokens / best.parameters
        rows.append([*(f"{value:.3g}" for value in best[:3]), f"{ratio:.1f}", f"{best.loss:.3f}", f"{kaplan:.3f}"])
    forward = markdown_table(["FLOPs", "N*", "D*", "D*/N*", f"loss ({args.preset})", "Kaplan's L(N*, D*)"], rows)
    rows = [[f"{loss:g}", *(f"{value:.3g}" for value in law.cheapest(loss)[:3])] for loss in args.target_losses]
    return [forward, markdown_table(["loss to reach", "FLOPs", "N", "D"], rows)]


def load_rows(args: ScalingLawsArguments):
    """Tokenizer, rows to train on and to measure on, and a fingerprint of the text."""
    train, held_out = split_documents(course_documents(args), args.validation_share)
    tokenizer = train_text_tokenizer(train[:4000], args.vocab_size)

    def rows(documents):
        encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
        return pack_rows(np.concatenate(encoded), np.cumsum([len(ids) for ids in encoded]), args.block_size)

    text = hashlib.sha256("\0".join([*train, *held_out]).encode()).hexdigest()[:16]
    return tokenizer, rows(train), rows(held_out), text


def fit_row(name: str, runs: list[Run], args: ScalingLawsArguments):
    """A row of the table of fits, the law, and the intervals of its constants."""
    law = fit_parametric_loss(runs)
    fits = bootstrap_fits(runs, law, args.resamples, args.seed)
    names = ("E", "alpha", "beta", "parameter_exponent")
    intervals = {each: percentile_interval(getattr(law, each), [getattr(fit, each) for fit in fits]) for each in names}
    cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in intervals.values()]
    return [name, *cells], law, fits, intervals


def larger_run_row(held_out: Run, predicted) -> list[str]:
    """A row of the table of the run that the fit has not seen."""
    return [
        f"{held_out.parameters}",
        f"{held_out.tokens}",
        f"{predicted.value:.3f} [{predicted.low:.3f}, {predicted.high:.3f}]",
        f"{held_out.loss:.3f}",
        f"{predicted.value / held_out.loss - 1:+.1%}",
    ]


def measured_part(args: ScalingLawsArguments, folder: Path) -> tuple[list[str], str, dict, Measured]:
    """Trains the runs, fits the law, and compares it with a larger run: tables, note, metrics and what to draw."""
    tokenizer, rows, held_out_rows, text = load_rows(args)
    finished = RunsFile(folder / "runs.jsonl", args.resume)
    trained = 0

    def measure(width, tokens, save_to=None):
        nonlocal trained
        settings = {
            "width": width,
            "layers": args.layers,
            "tokens": tokens,
            "block_size": args.block_size,
            "batch_size": args.batch_size,
            "learning_rate": args.learning_rate * (16 / width) ** 0.5,
            "seed": args.seed,
        }
        key = {**settings, "vocab_size": len(tokenizer), "text": text}
        result = finished.find(key)
        if result is None or (save_to is not None and not finished.is_saved(key, save_to)):
            result = train_run(settings, rows, held_out_rows, tokenizer, save_to)
            trained += 1
            finished.add(key, result, save_to)
            print("{parameters} parameters, {tokens} tokens: loss {loss:.3f}".format(**result), flush=True)
        return result

    def sizes(widths):
        models = {width: small_llama(width, args.layers, args.block_size, tokenizer) for width in widths}
        return {width: count_parameters(model)[0] for width, model in models.items()}

    batch, most_tokens = args.block_size * args.batch_size, len(rows) * args.block_size
    grid = plan_grid(sizes(args.widths), args.budgets, batch, most_tokens, args.fewest_steps)
    check_enough_runs([(width, tokens) for _, width, tokens in grid])
    candidates = sizes(range(8, 257, 8))
    larger = plan_grid(candidates, [args.held_out_budget], batch, most_tokens, args.fewest_steps)
    print(f"{len(grid)} runs of {min(g[2] for g in grid)} to {max(g[2] for g in grid)} tokens", flush=True)
    results = [(budget, measure(width, tokens)) for budget, width, tokens in grid]

    # Fits
    by_budget, non_embedding = defaultdict(list), []
    for budget, result in results:
        by_budget[budget].append(Run(result["parameters"], result["tokens"], result["loss"]))
        non_embedding.append(Run(result["non_embedding"], result["tokens"], result["loss"]))
    runs = [each for members in by_budget.values() for each in members]
    total_row, law, fits, intervals = fit_row("all", runs, args)
    fit_rows = [total_row, fit_row("outside the embeddings", non_embedding, args)[0]]
    tables = [markdown_table(["parameters counted (95 %)", "E", "alpha", "beta", "a in N* ~ C^a"], fit_rows)]

    minima = [minimum for minimum in isoflop_minima(by_budget) if minimum.inside]
    rows_of_minima = []
    for minimum in minima:
        fitted = law.optimal(minimum.compute)
        cells = (minimum.parameters, fitted.parameters, minimum.loss, fitted.loss)
        rows_of_minima.append([f"{minimum.compute:.3g}", *(f"{value:.4g}" for value in cells)])
    headings = ["FLOPs", "N* (parabola)", "N* (fit)", "loss (parabola)", "loss (fit)"]
    tables.append(markdown_table(headings, rows_of_minima))
    exponent = None
    if len(minima) > 1:
        exponent = fit_power_law([m.compute for m in minima], [m.parameters for m in minima]).exponent

    # A larger run, spent as the fit says as far as widths and one pass allow
    best = law.optimal(args.held_out_budget)
    _, width, tokens = min(larger, key=lambda item: abs(np.log(candidates[item[1]] / best.parameters)))
    result = measure(width, tokens, folder / "model")
    held_out = Run(result["parameters"], result["tokens"], result["loss"])
    predicted = percentile_interval(law(*held_out[:2]), [fit(*held_out[:2]) for fit in fits])
    headings = ["larger run: N", "D", "predicted loss (95 %)", "measured", "error"]
    tables.append(markdown_table(headings, [larger_run_row(held_out, predicted)]))

    atomic_write_json(folder / "law.json", asdict(law))
    note = (
        f"{len(runs)} runs, one seed each, {trained} trained now. The intervals are over the runs (bootstrap), "
        f"not over seeds. a from the parabolas: {'too few minima' if exponent is None else f'{exponent:.2f}'}."
    )
    metrics = {
        "law": asdict(law),
        "intervals": {name: interval._asdict() for name, interval in intervals.items()},
        "isoflop_exponent": exponent,
        "held_out": {**held_out._asdict(), "predicted": predicted._asdict()},
        "runs": len(runs),
        "trained": trained,
    }
    return tables, note, metrics, Measured(law, by_budget, minima, held_out)


def main(argv: list[str] | None = None) -> dict:
    parser = RecipeParser(ScalingLawsArguments, __doc__)
    (args,) = parser.parse_args_and_config(argv)
    with course_run("scaling_laws", args) as run:
        tables, note, metrics, measured = [], "", {}, None
        if PUBLISHED in args.methods:
            tables = published_tables(args)
            print("\n\n".join(tables), flush=True)
        if MEASURED in args.methods:
            further, note, metrics, measured = measured_part(args, run.folder)
            tables += further
        preset = args.preset if PUBLISHED in args.methods else ""
        run.draw(plot_scaling_rows, scaling_rows(preset, args.published_budgets, measured))
        return run.finish(tables, note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
