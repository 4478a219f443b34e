"""What the model benchmarks share: common options, the setting of a run, timing in turn, peak memory, tables."""

import argparse
import math
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.early_exit import in_turn
from hf_evidenceflow.report.run_record import git_revision


def make_parser(description: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options of all these benchmarks: output, threads and, where times are taken, rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="rounds of each table (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Set threads and seed, before anything is measured."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def setting(args: argparse.Namespace, name: str, argv: list[str] | None) -> dict[str, Any]:
    """Options, command, machine and versions, for the JSON file."""
    given = sys.argv[1:] if argv is None else argv
    return vars(args) | {
        "command": shlex.join(["python", f"benchmarks/{name}.py", *given]),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "git": git_revision(),
    }


def run_parts(
    parts: Mapping[str, Callable[[], dict]], results: dict[str, Any], output: Path | None, seconds: float = math.inf
) -> dict[str, Any]:
    """
    The results with what each part has found, written to `output` after each one. An error is what its part has
    found, and no part begins after so many seconds.
    """
    start, results = time.perf_counter(), {**results, "parts": {}}
    for name, part in parts.items():
        began = time.perf_counter() - start
        if began > seconds:
            results["parts"][name] = {"left_out": f"{began:.0f} seconds were over"}
            continue
        try:
            found = part()
        except Exception:  # one part must not take the others' results with it
            found = {"error": traceback.format_exc(limit=-4)}
        took = round(time.perf_counter() - start - began, 1)
        results["parts"][name] = {"seconds": took, "found": found}
        print(f"{name}: {took} seconds, {found}", flush=True)
        if output:
            atomic_write_json(output, results)
    return results


def has_failed(results: Mapping[str, Any]) -> bool:
    """Whether a part of [`run_parts`] ended with an error."""
    return any("error" in part.get("found", {}) for part in results["parts"].values())


def cpu_name() -> str:
    """Name of the processor; empty where the system does not tell."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def compare(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    units: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, dict[str, float]]:
    """
    Time candidates in turn, as [`in_turn`] does.

    Args:
        candidates (`Mapping[str, Callable[[], Any]]`):
            What to run by name; the first is what the others are compared with.
        rounds (`int`):
            Number of rounds.
        units (`int`, *optional*, defaults to `1`):
            What a run does, in the unit of which seconds are given: tokens that it decodes, say.
        clock (`Callable`, *optional*):
            Tells the seconds, as in [`in_turn`].

    Returns:
        `dict[str, dict[str, float]]`: `seconds` (median), and `ratio` (`ratio_min`, `ratio_max`): how many times as
        fast as the first candidate, median and range over the rounds; no ratio where there is one candidate only.
    """

    def counted(candidate):
        def run():
            candidate()
            return units

        return run

    speeds = in_turn({name: counted(candidate) for name, candidate in candidates.items()}, rounds, clock)
    rows = {name: {"seconds": 1 / speed.tokens_per_second} for name, speed in speeds.items()}
    if len(rows) > 1:
        for name, speed in speeds.items():
            for part in ("ratio", "ratio_min", "ratio_max"):
                rows[name][part] = round(getattr(speed, part), 3)
    return rows


def peak_memory(step: Callable[[], Any], size: int | None = None) -> int:
    """
    Bytes that the CPU allocator holds at most above the start of a step.

    Args:
        step (`Callable[[], Any]`):
            What to run.
        size (`int`, *optional*):
            Count blocks of exactly this many bytes only.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if size is None or abs(event.nbytes()) == size:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def print_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A title, and a line for each candidate."""
    print(f"\n{title}")
    for name, row in rows.items():
        line = f"  {name:36s} {1000 * row['seconds']:10.2f} ms"
        if "ratio" in row:
            line += f"   {row['ratio']:6.2f}x as fast ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        if "peak_mb" in row:
            line += f"   peak {row['peak_mb']:8.1f} MB {row['peak_ratio']:6.2f}x"
        print(line, flush=True)
