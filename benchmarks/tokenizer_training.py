"""
Seconds and peak memory of training byte-level BPE: the exact rule for ties against `tokenizers`, rustbpe and bpeasy.

```bash
python benchmarks/tokenizer_training.py --text_file text.txt --output results/tokenizers/training.json
```

Each training is a process of its own, in turn, round after round, with all cores; the peak memory is its own. Text is
grown from the file (or from generated stories): words are drawn as often as they occur, and one in fifty is made of
the halves of two, so that the number of distinct words grows with the text. rustbpe and bpeasy take part where they
are installed; their ties are their own. The textbook trainer, which counts all pairs anew for each merge, runs at the
smallest size, for a tenth of the merges.
"""

import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import make_parser, setting

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.text import generate_documents


WORKER = """
import json, resource, sys, time
name, path, vocab_size, processes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from hf_evidenceflow.tokenization.pretokens import GPT2_PATTERN, all_pieces, read_texts
from hf_evidenceflow.tokenization.training import train_tokenizer
texts = lambda: (text for span in all_pieces([path], []) for text in read_texts(path, [], span[1]))
if name == "rustbpe":
    import rustbpe
if name == "bpeasy":
    import bpeasy
start = time.perf_counter()
if name == "rustbpe":
    rustbpe.Tokenizer().train_from_iterator(texts(), vocab_size, pattern=GPT2_PATTERN)
elif name == "bpeasy":
    bpeasy.train_bpe(texts(), GPT2_PATTERN, 128, vocab_size)
else:
    train_tokenizer([path], vocab_size, [], "tokenizers" if name == "tokenizers" else "greatest", processes)
usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": sum(usage) / 1024}))
"""


def grow_text(source: str, megabytes: int, path: Path, seed: int = 0) -> None:
    """Write about so many megabytes of text that is drawn from the words of a source."""
    rng = random.Random(seed)
    words = source.split(" ")
    with open(path, "w", encoding="utf-8") as file:
        written = 0
        while written < megabytes * 1_000_000:
            drawn = rng.choices(words, k=2000)
            for place in range(0, len(drawn) - 1, 50):
                one, other = drawn[place], drawn[place + 1]
                drawn[place] = one[: len(one) // 2] + other[len(other) // 2 :]
            written += file.write(" ".join(drawn) + "\n")


def run(name: str, path: Path, vocab_size: int, processes: int) -> dict[str, float]:
    command = [sys.executable, "-c", WORKER, name, str(path), str(vocab_size), str(processes)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--text_file", type=Path, help="text to grow from; stories are generated if it is not given")
    parser.add_argument("--megabytes", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--vocab_size", type=int, default=10_000)
    args = parser.parse_args(argv)
    if args.text_file is None:
        source = " ".join(generate_documents(2000)[0])
    else:
        source = args.text_file.read_text(encoding="utf-8")
    settings = setting(args, "tokenizer_training", argv)
    settings["text_file"] = None if args.text_file is None else args.text_file.name
    results = {"setting": settings, "points": []}
    others = [name for name in ("rustbpe", "bpeasy") if importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in args.megabytes:
            path = Path(folder) / f"{megabytes}.txt"
            grow_text(source, megabytes, path)
            names = ["tokenizers", "exact", *others]
            rounds = [
                {name: run(name, path, args.vocab_size, args.threads) for name in names} for _ in range(args.rounds)
            ]
            rows = {}
            for name in names:
                ratios = [each[name]["seconds"] / each["tokenizers"]["seconds"] for each in rounds]
                rows[name] = {
                    "seconds": round(statistics.median(each[name]["seconds"] for each in rounds), 3),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_min": round(min(ratios), 3),
                    "ratio_max": round(max(ratios), 3),
                    "peak_mb": round(statistics.median(each[name]["peak_mb"] for each in rounds)),
                }
            results["points"].append({"megabytes": megabytes, "table": rows})
            print(f"\n{megabytes} MB, {args.vocab_size} tokens")
            for name, row in rows.items():
                print(
                    f"  {name:34s} {row['seconds']:8.2f} s  {row['ratio']:6.2f}  {row['peak_mb']:6.0f} MB",
                    flush=True,
                )
            if args.output:
                atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
