"""
Byte-level BPE on real text in the form of CS336's first assignment: naive against fast, training and encoding.

```bash
python benchmarks/tokenizer_assignment.py --text_files webster_train.txt technical_train.txt \
    --work_dir outputs/tokenizer_assignment --output results/tokenizers/assignment.json
```

Each row is a process of its own, with its peak memory; the file is written after each, and the same command goes on
with the rows that are missing, round after round. `--seconds` begins no row after so long. Each size of text takes
the same share of every file, from its start. "naive" is `tokenizer_textbook.py`, in one process: of its merges a few
are timed after 0, 200, 1,000, ... of ours, which must go on with the same ones; its encoding is timed on the start of
the text, and must give the same ids. `tokenizer_tables.py` writes the tables next to the JSON, and marks what is
extrapolated. Nothing else should run on the machine.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from timing import make_parser, setting
from tokenizer_rows import RESERVED, load_merges
from tokenizer_tables import write_tables

from hf_evidenceflow.atomic_write import atomic_file, atomic_write_json, atomic_write_text
from hf_evidenceflow.data.text import END_OF_TEXT
from hf_evidenceflow.files import read_json
from hf_evidenceflow.tokenization.exact_bpe import train_merges
from hf_evidenceflow.tokenization.pretokens import count_pretokens
from hf_evidenceflow.tokenization.training import from_merges


@dataclass(frozen=True)
class Row:
    """What a process measures."""

    part: str
    method: str
    megabytes: int
    vocab_size: int
    processes: int

    def key(self, number: int) -> str:
        return f"{self.part}, {self.method}, {self.megabytes} MB, {self.vocab_size}, {self.processes}, round {number}"


def plan(megabytes: list[int], vocab_sizes: list[int], processes: int) -> list[Row]:
    """The rows of a round; fewer processes where these make a difference, with one vocabulary."""
    rows = []
    for size in megabytes:
        rows += [Row("train", method, size, v, processes) for method in ("ours", "tokenizers") for v in vocab_sizes]
        middle = vocab_sizes[len(vocab_sizes) // 2]
        rows += [Row("train", "ours", size, middle, count) for count in range(1, processes)]
        for v, method in itertools.product(vocab_sizes[1:], ("ours", "ours without tiktoken")):
            rows += [Row("encode", method, size, v, count) for count in range(1, processes + 1)]
        rows += [Row("encode", "tokenizers", size, v, processes) for v in vocab_sizes[1:]]
    return rows


def naive_plan(megabytes: list[int], vocab_sizes: list[int]) -> list[Row]:
    """The rows that run once."""
    rows = [Row("train", "naive", size, max(vocab_sizes), 1) for size in megabytes]
    return rows + [Row("encode", "naive", megabytes[0], v, 1) for v in vocab_sizes[1:]]


def cut_text(sources: list[Path], megabytes: int, target: Path) -> None:
    """Write so many megabytes: the same share of each source, from its start to the end of a line."""
    share = megabytes * 1_000_000 / sum(path.stat().st_size for path in sources)
    if share > 1.001:
        raise ValueError(f"The files hold less than {megabytes} MB. Give more `--text_files`, or fewer megabytes.")
    with atomic_file(target) as temporary, open(temporary, "wb") as file:
        for number, path in enumerate(sources):
            with open(path, "rb") as source:
                part = source.read(min(path.stat().st_size, round(share * path.stat().st_size)))
            file.write((END_OF_TEXT + "\n").encode() * (number > 0) + part[: part.rfind(b"\n") + 1])


def prepare(args) -> None:
    """Texts, merges and tokenizers that the rows take, made once."""
    for size in args.megabytes:
        text, merges = args.work_dir / f"{size}.txt", args.work_dir / f"{size}.merges.json"
        if not text.exists():
            cut_text(args.text_files, size, text)
        if not merges.exists():
            words = count_pretokens([text], [END_OF_TEXT], args.threads)
            learned = train_merges(words, max(args.vocab_sizes) - RESERVED)
            atomic_write_text(merges, json.dumps([[left.hex(), right.hex()] for left, right in learned]))
        for v in args.vocab_sizes:
            folder = args.work_dir / f"{size}-{v}"
            if not folder.exists():
                from_merges(load_merges(merges)[: v - RESERVED], [END_OF_TEXT]).save_pretrained(folder)


def run(row: Row, args) -> dict:
    """Measure a row in a process of its own."""
    job = asdict(row) | {
        "text": str(args.work_dir / f"{row.megabytes}.txt"),
        "merges": str(args.work_dir / f"{row.megabytes}.merges.json"),
        "tokenizer": str(args.work_dir / f"{row.megabytes}-{row.vocab_size}"),
        "timed_merges": args.naive_merges,
        "windows": [first for first in args.naive_windows if first + args.naive_merges <= row.vocab_size - RESERVED],
        "naive_bytes": round(args.naive_megabytes * 1e6),
    }
    command = [sys.executable, str(Path(__file__).with_name("tokenizer_rows.py")), json.dumps(job)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(row.processes)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--text_files", nargs="+", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/tokenizer_assignment"), help="prepared files")
    parser.add_argument("--megabytes", nargs="+", type=int, default=[20, 60])
    parser.add_argument("--vocab_sizes", nargs="+", type=int, default=[4096, 10_000, 32_000])
    parser.add_argument("--naive_merges", type=int, default=3, help="merges that are timed after each window's start")
    parser.add_argument("--naive_windows", nargs="+", type=int, default=[0, 200, 1000, 4000, 10_000, 31_000])
    parser.add_argument("--naive_megabytes", type=float, default=4, help="text that the naive encoder gets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no row begins after so long")
    parser.add_argument("--prepare", action="store_true", help="make texts and tokenizers, and measure nothing")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    prepare(args)
    if args.prepare:
        return {}
    rows = [(row, 0) for row in naive_plan(args.megabytes, args.vocab_sizes)]
    rows += [(row, n) for n in range(args.rounds) for row in plan(args.megabytes, args.vocab_sizes, args.threads)]
    results = {"setting": setting(args, "tokenizer_assignment", argv), "rows": {}}
    results["setting"] |= {"text_files": [path.name for path in args.text_files], "work_dir": args.work_dir.name}
    if args.output and args.output.exists():
        results["rows"] = read_json(args.output)["rows"]
    for row, number in rows:
        if row.key(number) in results["rows"]:
            continue
        if time.perf_counter() - start > args.seconds:
            print("The rest is left for the next call.")
            break
        try:
            found = run(row, args)
        except subprocess.CalledProcessError as error:  # the next call tries it again
            print(f"{row.key(number)}: {error}", file=sys.stderr)
            continue
        results["rows"][row.key(number)] = asdict(row) | {"round": number} | found
        print(f"{time.perf_counter() - start:.0f} s  {row.key(number)}: {json.dumps(found)}", flush=True)
        if args.output:
            atomic_write_json(args.output, results)
    if args.output:
        write_tables(results, args.output.with_suffix(".md"))
    return results


if __name__ == "__main__":
    main()
