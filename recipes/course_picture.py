"""
The picture of a course recipe from the rows that its runs leave (`picture.json`): of one seed as the recipe draws it,
of several with their means, and bands and error bars from the least to the greatest.

```bash
for seed in 0 1 2; do
    python recipes/course/seq2seq_pretraining/run.py --config recipes/configs/course/seq2seq_pretraining.yaml \
        --seed $seed --output_dir outputs/seq2seq-$seed
done
python recipes/course_picture.py --runs outputs/seq2seq-0 outputs/seq2seq-1 outputs/seq2seq-2 \
    --output outputs/seq2seq.png
```

With `--table` the scores of all seeds go into a Markdown file as well: mean, least and greatest.

Runs may differ in their seed only. What has no mean, as words in two dimensions, is drawn of the first seed, and the
picture says so. The pictures of prompt_search and peft_methods show the seeds of one run; those of scaling_laws and
fast_inference show one run.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, interval, merge_seeds, read_picture
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


PLOTS = {
    "word_vectors": "vectors_plot.plot_vector_rows",
    "contextual_pretraining": "pretraining_plot.plot_pretraining",
    "seq2seq_pretraining": "filling_plots.plot_filling",
    "peft_methods": "peft_report.plot_methods",
    "prompt_search": "search_plots.plot_search",
    "instruction_tuning": "alignment_report.plot_alignment",
    "scaling_laws": "scaling_plots.plot_scaling_rows",
    "compression": "compression_plots.plot_compression",
    "fast_inference": "inference_plots.plot_fast_inference",
}


@dataclass
class DrawArguments:
    """
    Arguments of the picture.

    Args:
        runs (`list[str]`):
            Output folders of a recipe, one a seed, or their files `picture.json` under any name.
        output (`str`):
            PNG to write.
        table (`str`, *optional*):
            Markdown file to write with mean, least and greatest of each score.
    """

    runs: list[str]
    output: str
    table: str | None = None

    def __post_init__(self):
        self.runs = [self.runs] if isinstance(self.runs, str) else self.runs


def draw(rows: PictureRows, path) -> None:
    """Draw what a recipe would."""
    if rows.recipe not in PLOTS:
        raise ValueError(f"The rows are of {rows.recipe!r}, which is none of {', '.join(PLOTS)}.")
    module, function = PLOTS[rows.recipe].split(".")
    module = importlib.import_module(f"hf_evidenceflow.recipes.course.{rows.recipe}.{module}")
    getattr(module, function)(rows, path)


def score_rows(scores: Any, name: str = "") -> Iterator[list[str]]:
    """Name, mean, least and greatest of each score that is a number."""
    if isinstance(scores, Mapping) and set(scores) != {"value", "low", "high"}:
        for key, inner in scores.items():
            yield from score_rows(inner, f"{name}, {key}" if name else key)
    elif isinstance(scores, list):
        for place, inner in enumerate(scores):
            yield from score_rows(inner, f"{name}, {place}")
    elif isinstance(scores, Mapping | int | float):
        yield [name, *(f"{number:.4g}" for number in interval(scores))]


def write_table(rows: PictureRows, path: str) -> None:
    if len(rows.seeds) < 2:
        raise ValueError(f"A table over seeds needs two runs or more, got the seeds {rows.seeds}.")
    table = markdown_table([rows.recipe, "mean", "least", "greatest"], list(score_rows(rows.scores)))
    seeds = ", ".join(map(str, rows.seeds))
    atomic_write_text(path, f"Seeds {seeds}; made by `recipes/course_picture.py`.\n\n{table}\n")


def main(argv: list[str] | None = None) -> PictureRows:
    (args,) = RecipeParser(DrawArguments, __doc__).parse_args_and_config(argv)
    rows = merge_seeds({run: read_picture(run) for run in args.runs})
    draw(rows, args.output)
    if args.table is not None:
        write_table(rows, args.table)
    print(f"{rows.recipe}, {len(rows.seeds)} of its runs: {args.output}")
    return rows


if __name__ == "__main__":
    run_recipe(main)
