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

Runs may differ in their seed only. What has no mean, as words in two dimensions, is drawn of the first seed, and the
picture says so. The pictures of prompt_search and peft_methods show the seeds of one run; those of scaling_laws and
fast_inference show one run.
"""

import importlib
from dataclasses import dataclass

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, merge_seeds, read_picture
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
    """

    runs: list[str]
    output: str

    def __post_init__(self):
        self.runs = [self.runs] if isinstance(self.runs, str) else self.runs


def draw(rows: PictureRows, path) -> None:
    """Draw what a recipe would."""
    if rows.recipe not in PLOTS:
        raise ValueError(f"The rows are of {rows.recipe!r}, which is none of {', '.join(PLOTS)}.")
    module, function = PLOTS[rows.recipe].split(".")
    module = importlib.import_module(f"hf_evidenceflow.recipes.course.{rows.recipe}.{module}")
    getattr(module, function)(rows, path)


def main(argv: list[str] | None = None) -> PictureRows:
    (args,) = RecipeParser(DrawArguments, __doc__).parse_args_and_config(argv)
    rows = merge_seeds({run: read_picture(run) for run in args.runs})
    draw(rows, args.output)
    print(f"{rows.recipe}, {len(rows.seeds)} of its runs: {args.output}")
    return rows


if __name__ == "__main__":
    run_recipe(main)
