"""
Damages the files that people hand to this package, one at a time, and looks at how each is refused.

    nice -n 5 python benchmarks/corruption.py --seeds 0 1 2 --output results/corruption.md

Each case copies a folder that our own tools wrote, damages one file in it, and uses the folder as a person would, in a
process of its own with limits of time and memory. It ends as one of

- `clear`: an error whose message names the file, the folder, the entry or the place, and says what to do;
- `raw`: any other error;
- `same`: no error, and to the bit the result of the undamaged folder;
- `legal`: no error and another result, but the file is one that its format allows: another value of the same kind, or
  an entry less that has a default. Only a checksum could tell; files that have one are not excused;
- `silent`: no error and another result otherwise;
- `hang`: no end within the limits;
- `code`: code that was planted in a file has run.

About half an hour on two CPU cores. `--kinds` and `--cases` run a part; `--keep` shows the messages.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from corruption_kinds import KINDS, quietly
from corruption_mutations import format_of, legal_form, make_canary

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.report.run_record import git_revision, package_versions
from hf_evidenceflow.report.tables import markdown_table


OUTCOMES = ("clear", "same", "legal", "raw", "silent", "hang", "code")
SECONDS, MEMORY = 120, 16 << 30
# What tells a reader what to do: an order, or what a value has to be
REMEDY = re.compile(
    r"\b(Correct|Check|Copy|Download|Remove|Choose|Give|Pass|Set|Take|Convert|Unpack|Write|Load|Restore|Move|Encode|"
    r"Rename|Use|Add|Name|Put|List|correct|copy|download|remove|choose|give|pass|did you mean|must (be|hold|have|map|"
    r"list|end|divide|name|satisfy|match)|known are|Nearest)\b"
)


@dataclass(frozen=True)
class Case:
    """One damaged file of a kind."""

    kind: str
    seed: int
    number: int
    file: str
    mutation: int

    def __str__(self):
        return f"{self.kind} {self.seed}.{self.number}: {self.file}"


def draw_cases(kind: str, folder: Path, count: int, seed: int) -> list[Case]:
    """Cases of a kind: its files in turn, each with its mutations in an order that the seed gives."""
    rng = random.Random(f"{kind} {seed}")
    files = [name for name in KINDS[kind].files if (folder / name).is_file()]
    orders = {name: rng.sample(range(len(many)), len(many)) for name in files if (many := format_of(Path(name)))}
    cases = []
    for number in range(count):
        name = files[number % len(files)]
        order = orders[name]
        cases.append(Case(kind, seed, number, name, order[number // len(files) % len(order)]))
    return cases


def run_case(case: Case | None, kind: str, source: Path, expected: str | None, work: Path) -> dict:
    """Damage and use a copy of the folder; this runs in the case's own process."""
    folder = work / "folder"
    shutil.copytree(source, folder, symlinks=True)
    rng, words = random.Random(str(case)), []
    canary = make_canary(work)
    if case is not None:
        path = folder / case.file
        mutation = format_of(path)[case.mutation]
        words = [path.name, str(folder), *mutation.apply(path, rng)]
        words += _changed_words(source / case.file, path)
    use = KINDS[kind].use
    try:
        result, printed = quietly(use, folder)
    except BaseException as error:  # SystemExit and all else that ends a program
        message = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error)[-1:])
        found = {"result": None, "message": message, "trace": traceback.format_exc()[-1500:] if not trace else ""}
        where = traceback.extract_tb(error.__traceback__)[-1]
        found["trace"] = f"{where.filename}:{where.lineno}"
    else:
        found = {"result": result, "message": printed[-2000:], "trace": ""}
    if case is None:
        return found
    found["outcome"] = _judge(found, words, expected, canary)
    if found["outcome"] == "silent" and case.file not in KINDS[kind].guarded:
        form = legal_form(source / case.file, folder / case.file)
        if form is not None:
            found |= {"outcome": "legal", "form": form}
    return found


def _changed_words(before: Path, after: Path) -> list[str]:
    """The words of a text, a name or a value, that stand only in its damaged form."""
    try:
        old, new = (set(re.findall(r"[^\s:,'\"\[\]{}]+", path.read_text())) for path in (before, after))
        return sorted(new - old)[:5]
    except (OSError, UnicodeDecodeError):
        return []


def _judge(found: dict, words: list[str], expected: str, canary: Path) -> str:
    if canary.exists():
        return "code"
    if isinstance(found["result"], str):
        return "same" if found["result"] == expected else "silent"
    message = found["message"]
    named = any(len(word) > 2 and word in message for word in words)
    return "clear" if named and REMEDY.search(message) else "raw"


class Pool:
    """Runs functions in forks of this process, which has imported everything, a few at a time."""

    def __init__(self, workers: int):
        self.workers = workers
        self.running: dict[int, tuple] = {}

    def run(self, jobs, done) -> None:
        """Each job is `(key, function of a folder)`; `done(key, result)` gets what it returned, or `None`."""
        waiting = list(jobs)
        while waiting or self.running:
            while waiting and len(self.running) < self.workers:
                self._start(*waiting.pop(0))
            self._collect(done)

    def _start(self, key, function):
        work = Path(tempfile.mkdtemp(prefix="corruption-"))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
                quiet = os.open(work / "output", os.O_WRONLY | os.O_CREAT)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                (work / "result.json").write_text(json.dumps(function(work), default=str))
                code = 0
            finally:
                os._exit(code)
        self.running[pid] = (key, work, time.monotonic())

    def _collect(self, done):
        for pid, (key, work, started) in list(self.running.items()):
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() - started > SECONDS:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ended = pid
            if ended:
                del self.running[pid]
                path = work / "result.json"
                done(key, json.loads(path.read_text()) if path.exists() else None)
                shutil.rmtree(work, ignore_errors=True)
        time.sleep(0.02)


def prepare(kinds: list[str], root: Path, pool: Pool) -> dict[str, str]:
    """Build the folder of each kind, and see what the undamaged one gives."""
    expected = {}

    def build(kind):
        (root / kind).mkdir(parents=True)
        return lambda work: quietly(lambda folder: KINDS[kind].build(folder) or "", root / kind)

    def built(kind, result):
        if result is None:
            raise RuntimeError(f"The folder of {kind!r} could not be built. Run with `--kinds {kind!r} --debug`.")

    def used(kind, result):
        if result is None or not isinstance(result["result"], str):
            raise RuntimeError(f"The undamaged folder of {kind!r} cannot be used: {result}")
        if expected.setdefault(kind, result["result"]) != result["result"]:
            raise RuntimeError(f"The undamaged folder of {kind!r} does not always give the same.")

    pool.run([(kind, build(kind)) for kind in kinds], built)
    use = [(kind, lambda work, kind=kind: run_case(None, kind, root / kind, None, work)) for kind in kinds] * 2
    pool.run(use, used)
    return expected


def report(results: list[tuple[Case, dict]], args, started: float) -> str:
    """The page."""
    counts = {kind: Counter(found["outcome"] for case, found in results if case.kind == kind) for kind in args.kinds}
    total = sum(counts.values(), Counter())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items() if version)
    done = sum(total.values())
    rows = [
        (kind, sum(found.values()), *(found[outcome] for outcome in OUTCOMES))
        for kind, found in [*counts.items(), ("all", total)]
    ]
    lines = [
        "# Damaged files",
        "",
        f"`python benchmarks/corruption.py --seeds {' '.join(map(str, args.seeds))} --cases {args.cases}`, "
        f"{done} cases, {time.monotonic() - started:.0f} s, commit {git_revision()}; {versions}.",
        "",
        "What the outcomes mean stands at the top of the script. The bar: at most 2 % raw, and none silent, hanging "
        "or running code.",
        "",
        markdown_table(("kind", "cases", *OUTCOMES), rows),
    ]
    if done:
        lines += ["", f"Raw: {100 * total['raw'] / done:.1f} %."]
    forms = Counter(found["form"] for _, found in results if found["outcome"] == "legal")
    lines += [f"No reader without a checksum can know: {', '.join(f'{n} x {form}' for form, n in forms.items())}."]
    wrong = [(case, found) for case, found in results if found["outcome"] in ("raw", "silent", "hang", "code")]
    if wrong:
        lines += ["", "## What was not refused clearly", ""]
    for case, found in wrong:
        name = format_of(Path(case.file))[case.mutation].name
        message = " ".join(found["message"].split())[:300].replace("`", "'")
        lines.append(f"- {case}, {name}: **{found['outcome']}** {message}")
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the cases")
    parser.add_argument("--cases", type=int, default=30, help="cases of each kind and seed")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="kinds to damage")
    parser.add_argument("--processes", type=int, default=2, help="cases at the same time")
    parser.add_argument("--output", type=Path, help="Markdown file to write, as the cases are done")
    parser.add_argument("--keep", type=Path, help="JSON lines file for the messages of all cases")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    started, results = time.monotonic(), []
    pool = Pool(args.processes)
    root = Path(tempfile.mkdtemp(prefix="corruption-kinds-"))
    try:
        expected = prepare(args.kinds, root, pool)
        cases = [
            case
            for seed in args.seeds
            for kind in args.kinds
            for case in draw_cases(kind, root / kind, args.cases, seed)
        ]

        def done(case, found):
            found = found or {"outcome": "hang", "message": "", "trace": ""}
            results.append((case, found))
            if args.keep is not None:
                name = format_of(Path(case.file))[case.mutation].name
                with open(args.keep, "a") as file:
                    file.write(json.dumps({"case": str(case), "mutation": name, **found}) + "\n")
            if args.output is not None and len(results) % 20 == 0:
                atomic_write_text(args.output, report(results, args, started))

        jobs = [
            (
                case,
                lambda work, case=case: run_case(case, case.kind, root / case.kind, expected[case.kind], work),
            )
            for case in cases
        ]
        pool.run(jobs, done)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    page = report(results, args, started)
    if args.output is not None:
        atomic_write_text(args.output, page)
    print(page)
    total = Counter(found["outcome"] for _, found in results)
    bad = total["silent"] + total["hang"] + total["code"]
    return int(bad > 0 or total["raw"] > 0.02 * len(results))


if __name__ == "__main__":
    sys.exit(main())
