"""
Compare two evaluations of the same problems, paired: the mean difference with its 95 % bootstrap interval, and
McNemar's exact test.

```bash
python recipes/compare_evaluations.py --first outputs/evaluation-grpo --second outputs/evaluation-hrpo
```

The folders are those of `recipes/evaluate_gsm8k.py`; the difference is second minus first, on the greedy completions.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from rich.console import Console
from rich.table import Table

from hf_evidenceflow.evaluation.statistics import paired_difference
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class CompareArguments:
    """
    Args:
        first, second (`str`):
            Folders of two evaluations of the same problems.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.
    """

    first: str
    second: str
    seed: int = 0


def read_scores(folder: str) -> dict[int, dict[str, float]]:
    """Scores by problem and grader."""
    path = Path(folder) / "greedy.jsonl"
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` does not exist. Run recipes/evaluate_gsm8k.py with `--output_dir {folder}` first."
        )
    return {row["id"]: row["scores"] for row in read_json_lines(path)}


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(CompareArguments, __doc__).parse_args_and_config(argv)
    first, second = read_scores(args.first), read_scores(args.second)
    if first.keys() != second.keys():
        raise ValueError(
            f"The evaluations are of different problems: {len(first)} in `{args.first}`, {len(second)} in "
            f"`{args.second}`, {len(first.keys() & second.keys())} in both. Evaluate both on the same ones."
        )
    problems = sorted(first)
    graders = [grader for grader in first[problems[0]] if grader in second[problems[0]]]
    results = {
        grader: paired_difference(
            [first[index][grader] for index in problems], [second[index][grader] for index in problems], seed=args.seed
        )
        for grader in graders
    }
    table = Table(title=f"{args.second} minus {args.first}, {len(problems)} problems")
    for column in ("grader", "difference", "95 % interval", "p (McNemar)"):
        table.add_column(column, justify="left" if column == "grader" else "right")
    for grader, result in results.items():
        table.add_row(
            grader, f"{result.value:+.4f}", f"[{result.low:+.4f}, {result.high:+.4f}]", f"{result.p_value:.3f}"
        )
    Console().print(table)
    return results


if __name__ == "__main__":
    run_recipe(main)
