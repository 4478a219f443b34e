"""
Counts how many golds of GSM8K each grader reads wrongly.

A gold counts as misgraded if the same number, written without commas after the marker, does not score 1 against it.

    python benchmarks/grade_gsm8k_golds.py --dataset path/to/gsm8k

`--dataset` is a folder with train.jsonl and test.jsonl, or `openai/gsm8k`. About a minute on one CPU core, nearly all
of it for math-verify, which is left out if it is not installed.
"""

import argparse
from importlib.util import find_spec

from hf_evidenceflow.data import load_split
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.tasks import GRADERS, MARKER, grade
from hf_evidenceflow.tasks.grading import gold_text


SPLITS = ("test", "train")


def count(solutions: list[str], graders: list[str]) -> dict[str, int]:
    """How many golds there are, how many have commas, and how many each grader misgrades."""
    golds = [gold_text(solution) for solution in solutions]
    plain = [f"{MARKER} {gold.replace(',', '')}" for gold in golds]
    misgraded = {
        grader: sum(grade(answer, solution, grader) != 1.0 for answer, solution in zip(plain, solutions))
        for grader in graders
    }
    return {"golds": len(golds), "with commas": sum("," in gold for gold in golds), **misgraded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder with train.jsonl and test.jsonl, or Hub name")
    args = parser.parse_args()

    graders = [grader for grader in GRADERS if grader != "math_verify" or find_spec("math_verify")]
    counts = {
        split: count(list(load_split(args.dataset, split, ("main",), ("question", "answer"))["answer"]), graders)
        for split in SPLITS
    }
    print(markdown_table(["split", *counts[SPLITS[0]]], [[split, *row.values()] for split, row in counts.items()]))


if __name__ == "__main__":
    main()
