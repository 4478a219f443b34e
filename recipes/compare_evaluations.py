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


def read_rows(folder: str) -> dict[int, dict]:
    """The greedy completions by problem."""
    path = Path(folder) / "greedy.jsonl"
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` does not exist. Run recipes/evaluate_gsm8k.py with `--output_dir {folder}` first."
        )
    return {row["id"]: row for row in read_json_lines(path)}


def check_problems(args: CompareArguments, first: dict[int, dict], second: dict[int, dict]) -> None:
    """Refuses problems that differ: those of one evaluation only, or with other right answers in the other."""
    common = first.keys() & second.keys()
    if len(common) < max(len(first), len(second)):
        raise ValueError(
            f"The evaluations are of different problems: {len(first)} in `{args.first}`, {len(second)} in "
            f"`{args.second}`, {len(common)} in both. Evaluate both on the same ones."
        )
    others = [index for index in sorted(common) if first[index]["gold"] != second[index]["gold"]]
    if others:
        index = others[0]
        raise ValueError(
            f"The evaluations are of different problems: {len(others)} of {len(common)} have other right answers, "
            f"such as problem {index}: {first[index]['gold']!r} in `{args.first}`, {second[index]['gold']!r} in "
            f"`{args.second}`. Evaluate both with the same `task`, `dataset_name_or_path`, `split` and `order`."
        )


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(CompareArguments, __doc__).parse_args_and_config(argv)
    first, second = read_rows(args.first), read_rows(args.second)
    check_problems(args, first, second)
    problems = sorted(first)

    def scores(rows, grader):
        return [rows[index]["scores"][grader] for index in problems]

    known, others = (rows[problems[0]]["scores"] for rows in (first, second))
    results = {
        grader: paired_difference(scores(first, grader), scores(second, grader), seed=args.seed)
        for grader in known
        if grader in others
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
