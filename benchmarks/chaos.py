"""
Stops training at random moments and inside each phase, resumes it, and compares all that it leaves with a run that
nothing stopped: 60 SIGKILL and 20 SIGTERM.

```bash
python benchmarks/chaos.py --output results/reliability.json
```

The runs are tiny, of `hrpo_gsm8k.py` (all weights, and LoRA), `pretrain_clm.py` and `run_experiment.py`, with one and
two processes, forked or by `accelerate launch` and `torchrun`. After each stop the same command runs again, with
`--resume_from_checkpoint auto`, until it ends. Weights, optimizer, scheduler, random states and the whole log but
times, speeds and memory must be equal, no step may be trained twice, no checkpoint may be broken under its name, and
no process may outlive its launcher. Named scenarios (a clock set back, a full disk, two processes in one folder, ...)
follow. Exit code 1 if anything is lost or different; the folders of such runs are kept.

The results grow with each run: the same command again goes on, if neither the commit nor the seed has changed. The
table is written next to them, with the ending `.md`. Linux only.
"""

import argparse
import fnmatch
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results; the table gets the ending .md")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: a new one)")
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of the runs' and scenarios' names")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    args.work = (args.work or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from chaos_settings import ROOT, clean_environment, preload

    output = args.output and args.output.resolve()
    os.chdir(ROOT)
    clean_environment(args.work)  # before anything starts threads
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    preload()
    results = Results(output, args, sys.argv[1:] if argv is None else argv)
    print(f"Runs in {args.work}", flush=True)
    with multiprocessing.get_context("fork").Pool(args.jobs, _adopt) as pool:
        _run_all(pool, args, results)
    return results.report()


def _adopt() -> None:
    from chaos_processes import adopt_orphans

    adopt_orphans()


def _run_all(pool, args, results) -> None:
    from chaos_cases import all_cases
    from chaos_scenarios import SCENARIOS
    from chaos_settings import write_settings

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in args.only)

    pool.apply(write_settings, (args.work,))
    cases = [case for case in all_cases() if wanted(case.name) and case.name not in results.data["cases"]]
    scenarios = [name for name in SCENARIOS if wanted(name) and name not in results.data["scenarios"]]
    needed = {(case.setting, case.processes) for case in cases} | {("clm", 1) for _ in scenarios[:1]}
    references = {
        key: pool.apply_async(make_reference, (args.work, *key))
        for key in sorted(needed, key=lambda key: key[0] != "experiment")
    }
    references = {key: reference.get() for key, reference in references.items()}
    results.data["references"] |= {f"{setting}-{n}": ref for (setting, n), ref in references.items()}
    jobs = [(case, args.work, references[case.setting, case.processes], args.seed) for case in cases]
    for result in pool.imap_unordered(_one_case, jobs):
        results.add("cases", result["case"]["name"], result)
    for result in pool.imap_unordered(_one_scenario, [(name, args.work) for name in scenarios]):
        results.add("scenarios", result["name"], result)


def _one_case(arguments):
    from chaos_cases import run_case

    return run_case(*arguments)


def _one_scenario(arguments):
    from chaos_scenarios import run_scenario

    return run_scenario(*arguments)


def make_reference(work: Path, setting: str, processes: int) -> dict:
    """The run that nothing stops."""
    from chaos_processes import run_job
    from chaos_settings import make_job

    output = work / f"uninterrupted-{setting}-{processes}"
    kind = "experiment" if setting == "experiment" else "fork"
    shutil.rmtree(output, ignore_errors=True)
    log = work / f"{output.name}.log"
    outcome = run_job(make_job(work, setting, kind, processes, output), log, work / f"{output.name}.trace")
    if outcome.returncode:
        raise RuntimeError(f"The uninterrupted run of {setting} fails with {outcome.returncode}, see {log}.")
    return {"output": str(output), "seconds": outcome.seconds}


class Results:
    """The results file, written after each run, and the table."""

    def __init__(self, output: Path | None, args, command: list[str]):
        from chaos_settings import read_json

        from hf_evidenceflow.report.run_record import git_revision, package_versions

        setting = {
            "command": shlex.join(["python", "benchmarks/chaos.py", *command]),
            "git": git_revision(),
            "seed": args.seed,
            "versions": package_versions(),
        }
        self.output, self.start = output, time.time()
        self.data = {"setting": setting, "seconds": 0.0, "references": {}, "cases": {}, "scenarios": {}}
        if output is not None and output.exists():
            earlier = read_json(output)
            if all(earlier["setting"][name] == setting[name] for name in ("git", "seed", "versions")):
                self.data = earlier
        self.earlier_seconds = self.data["seconds"]

    def add(self, part: str, name: str, result: dict) -> None:
        from hf_evidenceflow.atomic_write import atomic_write_json

        self.data[part][name] = result
        self.data["seconds"] = round(self.earlier_seconds + time.time() - self.start)
        print(f"{'FAIL' if result['problems'] else 'ok  '} {name} {result['seconds']:.0f} s", flush=True)
        for kind, text in result["problems"]:
            print(f"     {kind}: {text}", flush=True)
        if self.output is not None:
            atomic_write_json(self.output, self.data)

    def report(self) -> int:
        """Print and write the table; 1 if anything went wrong."""
        from hf_evidenceflow.atomic_write import atomic_write_text

        text = markdown(self.data)
        print(text)
        if self.output is not None:
            atomic_write_text(self.output.with_suffix(".md"), text)
        parts = [*self.data["cases"].values(), *self.data["scenarios"].values()]
        return int(any(result["problems"] for result in parts))


def markdown(data: dict) -> str:
    """The tables of a results file."""
    from hf_evidenceflow.report.tables import markdown_table

    counts: dict[tuple, Counter] = {}
    for result in data["cases"].values():
        kinds = {kind for kind, _ in result["problems"]}
        case = result["case"]
        for stop in result["stops"]:
            launched = " (launcher)" if case["kind"] == "launch" else ""
            row = (
                case["setting"],
                stop["phase"],
                signal.Signals(stop["signal"]).name,
                f"{case['processes']}{launched}",
            )
            counts.setdefault(row, Counter()).update(["stops", *kinds])
    total = sum(counts.values(), Counter())
    columns = ("stops", "lost", "different", "broken", "alive", "signal")
    rows = [(*row, *(counts[row][column] for column in columns)) for row in sorted(counts)]
    rows.append(("all", "", "", "", *(total[column] for column in columns)))
    lines = [
        "# Stopped and resumed",
        "",
        f"`{data['setting']['command']}`, commit {data['setting']['git']}, {data['seconds'] / 60:.0f} minutes. "
        + ", ".join(f"{name} {version}" for name, version in data["setting"]["versions"].items() if version)
        + ".",
        "",
        f"{total['stops']} stops of {len(data['cases'])} runs. Lost: could not be resumed, or not from the newest "
        "checkpoint. Different: not equal to the uninterrupted run at the end. Broken: a checkpoint under its final "
        "name is not whole. Alive: a process outlived the job. Signal: after SIGTERM, the checkpoint, status or exit "
        "code is not as it should be.",
        "",
        markdown_table(("run", "phase", "signal", "processes", *columns), rows, align="llllr"),
    ]
    if data["scenarios"]:
        held = [
            (name, result["claim"], "; ".join(text for _, text in result["problems"]) or "yes")
            for name, result in sorted(data["scenarios"].items())
        ]
        lines += ["", markdown_table(("scenario", "what must hold", "holds"), held, align="l")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
