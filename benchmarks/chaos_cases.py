"""The runs that are stopped: in which phases, by which signals; and what must hold after each stop and at the end."""

import shutil
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from chaos_compare import (
    SHOWN,
    broken_checkpoints,
    checkpoints,
    differences,
    read_experiment,
    read_run,
)
from chaos_processes import Outcome, Stop, run_job
from chaos_settings import STEPS, make_job, read_json, requeue_options


SIGNALS = {"K": signal.SIGKILL, "T": signal.SIGTERM}
SAVES = (3, 6, 9, STEPS)
EVALUATIONS = (4, 8, STEPS)
IN_TRAINING = ("step", "rollout", "save", "rotation")
TRIES = 4
# Setting, kind of start, processes, and the stops of each run: K is SIGKILL, T is SIGTERM
SCHEDULE = {
    ("hrpo", "fork", 1): (
        "K:random K:save",
        "K:random T:random K:rotation",
        "T:step K:end",
        "K:rollout K:save K:plots",
        "K:rotation T:final_save",
        "K:step K:random K:final_save",
    ),
    ("hrpo_lora", "fork", 1): (
        "K:save K:rotation",
        "T:rollout K:random",
        "K:random K:step K:save",
        "T:save K:rotation T:plots",
        "K:random K:rotation K:end",
    ),
    ("hrpo", "fork", 2): ("K:random K:save", "T:step K:rotation", "T:random K:final_save", "K:step T:end"),
    ("clm", "fork", 1): (
        "K:random K:random K:random",
        "K:save K:rotation K:evaluation",
        "T:step K:save K:rotation",
        "K:evaluation",
        "T:evaluation K:final_save K:plots",
        "K:random K:save K:save",
        "T:rotation K:end",
        "K:rotation K:random",
    ),
    ("clm", "fork", 2): ("K:save K:rotation K:evaluation", "T:step K:random", "T:save K:plots", "K:random"),
    ("clm", "launch", 1): ("T:step K:save",),
    ("clm", "launch", 2): ("K:step T:random", "T:save K:rotation"),
    ("hrpo", "launch", 2): ("K:save T:step",),
    ("experiment", "experiment", 1): ("K:random T:random", "T:step K:save", "K:step K:plots", "K:random K:rotation"),
}


@dataclass
class Case:
    """One run and its stops, `"K:save"` and the like."""

    name: str
    setting: str
    kind: str
    processes: int
    stops: list[str]


@dataclass
class Result:
    """`problems`: `[kind, text]`, of the kinds lost, different, broken, alive and signal."""

    case: dict
    stops: list[dict] = field(default_factory=list)
    problems: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, text: str) -> None:
        self.problems.append([kind, text])


def all_cases() -> list[Case]:
    """The schedule, the longest first."""
    cases = [
        Case(f"{setting}-{kind}-{processes}-{number}", setting, kind, processes, stops.split())
        for (setting, kind, processes), runs in SCHEDULE.items()
        for number, stops in enumerate(runs, 1)
    ]
    return sorted(cases, key=lambda case: ("fork", "launch", "experiment").index(case.kind), reverse=True)


def newest_step(output: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    return max(checkpoints(output), default=0)


def draw_stop(case: Case, text: str, newest: int, reference: float, generator: Random) -> Stop:
    """A point of the phase for a run that goes on from step `newest`."""
    letter, phase = text.split(":")
    if newest >= STEPS and phase in (*IN_TRAINING, "evaluation"):
        phase = "final_save"
    target = "group"
    if case.kind != "fork":
        targets = ("launcher", "all") if letter == "T" else ("launcher", "all", "self")
        # The runs of an experiment's runner that is killed alone go on, and the next one says so
        target = generator.choice(targets[1:] if case.kind == "experiment" and letter == "K" else targets)
    stop = Stop(phase, SIGNALS[letter], target)
    if phase == "random":
        share = 0.3 + 0.7 * (STEPS - newest) / STEPS
        stop.seconds = round(generator.uniform(0.05, 0.9) * share * reference, 3)
        if target == "self":
            stop.target = "all"
    elif phase in ("step", "save", "evaluation"):
        points = {"step": range(1, STEPS + 1), "save": SAVES, "evaluation": EVALUATIONS}[phase]
        stop.occurrence = generator.randrange(sum(point > newest for point in points))
    events = {"step": 2, "rollout": 2, "save": 45, "rotation": 14, "evaluation": 6, "final_save": 12}
    stop.event = generator.randrange(events.get(phase, 4))
    return stop


def run_case(case: Case, work: Path, reference: dict, seed: int) -> dict:
    """Run, stop and resume until the end; the folder is kept if anything is wrong."""
    for attempt in range(TRIES):
        result = _run_once(case, work, reference, Random(f"{seed} {case.name} {attempt}"))
        if len(result.stops) == len(case.stops) or result.problems:
            break  # else the run was faster than a random moment: again, with other ones
    return asdict(result)


def _run_once(case: Case, work: Path, reference: dict, generator: Random) -> Result:
    folder = work / "cases" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output, like = folder / "output", Path(reference["output"])
    result = Result(asdict(case))
    job = make_job(work, case.setting, case.kind, case.processes, output, *requeue_options(case.setting))
    for number, text in enumerate([*case.stops, None]):
        newest = newest_step(output)
        resumable = {newest, *(step for part in output.glob("_*") for step in checkpoints(part) if step > newest)}
        stop = text and draw_stop(case, text, newest, reference["seconds"], generator)
        outcome = run_job(job, folder / f"{number}.log", folder / f"{number}.trace", stop)
        result.seconds = round(result.seconds + outcome.seconds, 2)
        if outcome.left:
            result.add("alive", f"attempt {number}: {outcome.left}")
        if outcome.hung:
            result.add("lost", f"attempt {number} hangs")
            return result
        if case.setting != "experiment" and outcome.steps and outcome.steps[0] not in resumable:
            result.add("lost", f"attempt {number} began at step {outcome.steps[0]}, the newest checkpoint is {newest}")
        if outcome.stopped is None:
            if outcome.returncode:
                last = (folder / f"{number}.log").read_text(errors="replace").strip().splitlines()[-1:]
                result.add("lost", f"attempt {number} ended with {outcome.returncode}: {last}")
                return result
            break
        result.stops.append({"phase": stop.phase, "target": stop.target} | outcome.stopped)
        _check_stop(case, output, like, outcome, newest, result)
    _check_end(case, output, like, result)
    if not result.problems:
        shutil.rmtree(folder)
    return result


def runs_of(case: Case, output: Path, like: Path) -> list[tuple[Path, Path]]:
    """The output folders of training runs, each with the uninterrupted one."""
    if case.setting != "experiment":
        return [(output, like)]
    return [(output / "runs" / path.name, path) for path in sorted((like / "runs").iterdir()) if path.is_dir()]


def _check_stop(case: Case, output: Path, like: Path, outcome: Outcome, newest: int, result: Result) -> None:
    stopped, place = outcome.stopped, f"after {outcome.stopped}"
    for run, whole in runs_of(case, output, like):
        good = list(checkpoints(whole).values())[-1]
        for problem in broken_checkpoints(run, good):
            result.add("broken", f"{place}: {run.name}: {problem}")
    now = newest_step(output)
    if now < newest:
        result.add("lost", f"{place}: the newest checkpoint is {now}, it was {newest}")
    if stopped["signal"] != signal.SIGTERM:
        return
    if outcome.returncode == 0:  # it came when nothing was left to do but the end
        if case.setting != "experiment" and now != STEPS:
            result.add("signal", f"{place}: exit 0 at step {now}")
        return
    if outcome.returncode not in (143, -signal.SIGTERM) and case.kind != "launch":
        result.add("signal", f"{place}: exit {outcome.returncode} instead of 143")
    if not outcome.steps:
        return  # it was still being started
    for run, _ in runs_of(case, output, like):
        record = read_json(run / "run.json") if (run / "run.json").exists() else {"status": "interrupted"}
        if record["status"] not in ("interrupted", "finished"):
            result.add("signal", f"{place}: {run.name} says {record['status']!r}")
    if case.setting != "experiment":
        at = outcome.steps[-1] if stopped["at_step"] is None else stopped["at_step"]
        # A launcher takes its time to pass the signal on
        if not at <= now <= (STEPS if case.kind == "launch" else at + 1):
            result.add("signal", f"{place}: the newest checkpoint is {now}, the run was at step {at}")


def _check_end(case: Case, output: Path, like: Path, result: Result) -> None:
    try:
        read = read_experiment if case.setting == "experiment" else read_run
        found, expected = read(output), read(like)
    except (OSError, ValueError, KeyError) as error:
        result.add("lost", f"what it left cannot be read: {type(error).__name__}: {error}")
        return
    for run, _ in runs_of(case, output, like):
        if (status := read_json(run / "run.json")["status"]) != "finished":
            result.add("lost", f"{run.name} says {status!r} at the end")
    found_differences = differences(found, expected, (str(output), str(like)))
    for line in found_differences[:SHOWN]:
        result.add("different", line)
    if len(found_differences) > SHOWN:
        result.add("different", f"and {len(found_differences) - SHOWN} more")
