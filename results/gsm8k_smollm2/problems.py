"""Writes the easier set of this study, generated two-step problems: `start.jsonl`, `train.jsonl` and `test.jsonl`."""

import json
import sys
from pathlib import Path

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.tasks import split_word_problems


def main(folder: str) -> None:
    splits = split_word_problems(train=2800, test=400, seed=0, max_number=20)
    parts = {"start": splits["train"][:800], "train": splits["train"][800:], "test": splits["test"]}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        atomic_write_text(Path(folder) / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
