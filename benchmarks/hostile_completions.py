"""
Gives hostile completions to all graders, and to what evaluations do with texts, and reports errors, time and memory.

    nice -n 10 python benchmarks/hostile_completions.py --completions 1000000 --processes 2

Drawn by seed: Unicode of all planes, NUL, lone surrogates, mixed encodings, braces, numbers of 100,000 digits, open
boxes, nested `<think>`, thousands of markers, what is hard for regular expressions, and LaTeX that takes long to
compute. Each process grades in two threads. One completion of `--verify_every` goes through math-verify too, which is
a thousand times as slow as the rest; one of `--log_every` goes to a log of completions and back, and to the table of
samples.

Writes `results/hostile_completions.md`, with its command. The exit code is 1 if anything raised.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shlex
import sys
import tempfile
import threading
import time
from pathlib import Path

from hostile_texts import LONG, draw
from rich.console import Console

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.evaluation.accuracy import summarize_completions
from hf_evidenceflow.evaluation.completion_log import CompletionLog
from hf_evidenceflow.report.samples import print_samples
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.tasks import (
    GRADERS,
    completion_text,
    extract_answer,
    extract_math_answer,
    grade,
    gsm8k_reward,
    math_reward,
    multiple_choice_reward,
    open_qa_reward,
)
from hf_evidenceflow.tasks.verifier import verifier


CHUNK = 1000
CHUNKS_OF_A_SHARE = 10  # between which the results are written
THREADS = 2
BUCKETS = 100_000  # of 10 microseconds
RESULTS = Path(__file__).parents[1] / "results" / "hostile_completions.md"


class Tally:
    """Counts of errors and of CPU times, which can be added up."""

    def __init__(self):
        self.count = self.right = self.verified = self.logged = 0
        self.errors = []
        self.times = {}  # CPU time in buckets of 10 microseconds
        self.slowest = self.slowest_verified = (0.0, 0, "")  # seconds, characters, beginning

    def add_time(self, seconds, text):
        bucket = min(int(seconds * 1e5), BUCKETS)
        self.times[bucket] = self.times.get(bucket, 0) + 1
        self.slowest = max(self.slowest, (seconds, len(text), text[:40]))

    def merge(self, other):
        for name in ("count", "right", "verified", "logged", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for bucket, times in other.times.items():
            self.times[bucket] = self.times.get(bucket, 0) + times
        self.slowest = max(self.slowest, other.slowest)
        self.slowest_verified = max(self.slowest_verified, other.slowest_verified)

    def quantile(self, share):
        """Milliseconds that this share of the completions does not exceed."""
        left = share * sum(self.times.values())
        for bucket in sorted(self.times):
            left -= self.times[bucket]
            if left <= 0:
                return (bucket + 1) / 100
        return 0.0


def grade_all(completion) -> dict:
    """A row of an evaluation, graded by all but the comparison of expressions."""
    text = completion_text(completion)
    gsm8k_reward([completion], ["18"])
    multiple_choice_reward([completion], ["B"])
    open_qa_reward([completion], [["Paris"]])
    extract_math_answer(completion)
    graders = [grader for grader in GRADERS if grader != "math_verify"]
    extract_answer(completion, "math_verify")
    return {
        "completion": text,
        "extracted": {grader: extract_answer(completion, grader) for grader in graders},
        "scores": {grader: grade(completion, "18", grader) for grader in graders},
        **{"completion_tokens": len(text), "thinking_tokens": None, "finished": True, "seconds": 0.0},
    }


def log_and_show(rows: list[dict], folder: str, name: str) -> None:
    """Writes rows to a log, reads them back, and prints one as a sample."""
    rows = [{"id": number, "sample": 0, **row} for number, row in enumerate(rows)]
    plan = [[(number, 0) for number in range(len(rows))]]
    path = Path(folder) / f"{name}.jsonl"
    log = CompletionLog(path, plan)
    log.append(rows)
    if [row["completion"] for row in CompletionLog(path, plan).rows] != [row["completion"] for row in rows]:
        raise ValueError("completions came back changed from the log")
    path.unlink()
    json.dumps(summarize_completions(rows, list(rows[0]["scores"]), greedy=True))
    texts = [row["completion"] for row in rows]
    print_samples(texts, texts, console=Console(file=io.StringIO(), width=100))


def run_chunk(seed: int, chunk: int, count: int, verify_every: int, log_every: int, folder: str) -> Tally:
    """Grades `count` completions of one chunk."""
    rng, tally, rows = random.Random(f"{seed}-{chunk}"), Tally(), []
    for number in range(count):
        completion, place = draw(rng), chunk * CHUNK + number
        text = completion_text(completion)
        start = time.thread_time()
        try:
            row = grade_all(completion)
            tally.right += row["scores"]["strict"] == 1
            tally.add_time(time.thread_time() - start, text)
            if place % log_every == 0:
                rows.append(row)
            if place % verify_every == 0:
                start = time.monotonic()
                math_reward([completion], ["18"])
                grade(completion, "18", "math_verify")
                tally.verified += 1
                tally.slowest_verified = max(tally.slowest_verified, (time.monotonic() - start, len(text), text[:40]))
        except Exception as error:
            tally.errors.append(f"seed {seed}, chunk {chunk}, number {number}: {type(error).__name__}: {error}"[:300])
        tally.count += 1
    try:
        if rows:
            log_and_show(rows, folder, f"{os.getpid()}-{chunk}")
        tally.logged = len(rows)
    except Exception as error:
        tally.errors.append(f"seed {seed}, chunk {chunk}, log: {type(error).__name__}: {error}"[:300])
    return tally


def run_share(arguments) -> dict:
    """A share of the chunks, in threads."""
    seed, chunks, verify_every, log_every = arguments
    over_limit = verifier.over_limit
    total, lock, chunks = Tally(), threading.Lock(), iter(chunks)

    def work():
        while True:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            tally = run_chunk(seed, *chunk, verify_every, log_every, folder)
            with lock:
                total.merge(tally)

    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {
        "tally": total,
        "over limit": verifier.over_limit - over_limit,
        "start MiB": before / 1024,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def report(results: list[dict], args, seconds: float) -> str:
    """The results so far, in Markdown."""
    tally = Tally()
    for result in results:
        tally.merge(result["tally"])
    slow, characters, text = tally.slowest
    worst, _, bomb = tally.slowest_verified
    rows = {
        "completions": f"{tally.count:,}" + f" of {args.completions:,}" * (tally.count < args.completions),
        "that raised an error": f"{len(tally.errors)}",
        "right by chance (`strict`, gold 18)": f"{tally.right:,}",
        "CPU time of all graders but math-verify, median": f"{tally.quantile(0.5):.2f} ms",
        "99.9 % of the completions within": f"{tally.quantile(0.999):.2f} ms",
        f"the slowest ({characters:,} characters, {text!a})": f"{slow * 1e3:.1f} ms",
        "through math-verify, as GSM8K and as MATH": f"{tally.verified:,}",
        "comparisons over the limit": f"{sum(result['over limit'] for result in results)}",
        f"slowest completion of these, waiting included ({bomb!a})": f"{worst:.1f} s",
        "written to a log, read back, shown": f"{tally.logged:,}",
        "peak memory of a process; before the first completion": " and ".join(
            f"{max(result[name] for result in results):.0f} MiB" for name in ("peak MiB", "start MiB")
        ),
        "wall-clock time": f"{seconds / 60:.1f} min",
    }
    rows = {name.replace("|", "/"): value for name, value in rows.items()}
    table = markdown_table(["", ""], rows.items())
    errors = "\n".join(f"- {error!a}" for error in tally.errors[:20])
    return f"""# Hostile completions through the graders

    {" ".join(map(shlex.quote, ["python", *sys.argv]))}

Seed {args.seed}, {args.processes} processes of {THREADS} threads. CPU times are those of the grading thread, on a
machine that did other things too. Pieces of a completion have up to {LONG:,} characters.

{table}
{errors}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verify_every", type=int, default=2000)
    parser.add_argument("--log_every", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    start = time.monotonic()
    chunks = [(place // CHUNK, min(CHUNK, args.completions - place)) for place in range(0, args.completions, CHUNK)]
    shares = [
        (args.seed, chunks[place : place + CHUNKS_OF_A_SHARE], args.verify_every, args.log_every)
        for place in range(0, len(chunks), CHUNKS_OF_A_SHARE)
    ]
    results = []
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for result in pool.imap_unordered(run_share, shares):
            results.append(result)
            text = report(results, args, time.monotonic() - start)
            atomic_write_text(args.output, text.rstrip() + "\n")
    print(text)
    sys.exit(any(result["tally"].errors for result in results))


if __name__ == "__main__":
    main()
