"""Named faults, each with what must hold. Most of them are a small run, a fault, and the same command again."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from chaos_cases import newest_step
from chaos_compare import checkpoints, differences, read_run
from chaos_processes import Outcome, Stop, run_job
from chaos_settings import STEPS, make_job, read_json, requeue_options


SCENARIOS: dict[str, tuple[str, Callable]] = {}


def scenario(claim: str):
    """Add a function to the scenarios, with what must hold."""

    def add(function):
        SCENARIOS[function.__name__] = (claim, function)
        return function

    return add


class Scene:
    """A folder, the outcomes in it, and what does not hold."""

    def __init__(self, folder: Path, work: Path):
        self.folder, self.work, self.output = folder, work, folder / "output"
        self.count = 0
        self.problems: list[list[str]] = []

    def run(
        self, *further: str, setting="clm", kind="fork", processes=1, stop=None, paused=None, limit=200.0
    ) -> Outcome:
        """Run the one command, with further options; `paused` is called when the run has stopped itself."""
        options = [*requeue_options(setting), *further]
        job = make_job(self.work, setting, kind, processes, self.output, *options)
        self.count += 1
        log, trace = self.folder / f"{self.count}.log", self.folder / f"{self.count}.trace"
        return run_job(job, log, trace, stop, limit, paused)

    @property
    def log(self) -> str:
        """What the last run has printed."""
        return (self.folder / f"{self.count}.log").read_text(errors="replace")

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.problems.append(["does not hold", text])

    def ends_well(self, outcome: Outcome) -> None:
        self.check(outcome.returncode == 0 and not outcome.hung, f"run {self.count} exits {outcome.returncode}")
        self.check(not outcome.left, f"left alive: {outcome.left}")
        record = read_json(self.output / "run.json") if (self.output / "run.json").exists() else {}
        self.check(record.get("status") == "finished", f"run.json says {record.get('status')!r}")
        self.check(newest_step(self.output) == STEPS, f"the last checkpoint is {newest_step(self.output)}")

    def equals_uninterrupted(self) -> None:
        like = self.work / "uninterrupted-clm-1"
        if self.problems:
            return
        found = differences(read_run(self.output), read_run(like), (str(self.output), str(like)))
        for line in found[:4]:
            self.problems.append(["different", line])

    def says(self, *texts: str) -> None:
        """The last run ended with an error whose last lines hold these texts, and without a traceback."""
        last = "\n".join(self.log.strip().splitlines()[-4:])
        for text in texts:
            self.check(text in last, f"{text!r} is not in the last words {last[-300:]!r}")
        self.check("Traceback" not in self.log, "a traceback is printed")


def at(phase: str, number: int = signal.SIGKILL, occurrence: int = 0, event: int = 0, target: str = "group") -> Stop:
    return Stop(phase, number, target, occurrence, event)


def run_scenario(name: str, work: Path) -> dict:
    """Run one; its folder is kept if anything does not hold."""
    claim, function = SCENARIOS[name]
    folder = work / "scenarios" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scene, start = Scene(folder, work), time.monotonic()
    try:
        note = function(scene)
    except Exception as error:
        scene.problems.append(["crashed", f"{type(error).__name__}: {error}"])
        note = None
    if not scene.problems:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - start, 1)
    return {"name": name, "claim": claim, "note": note, "problems": scene.problems, "seconds": seconds}


@scenario("The clock set back an hour: rotation goes by step, and the end is that of an uninterrupted run.")
def clock_back(scene):
    scene.run(stop=at("step", occurrence=6))
    later = time.time() + 3600
    for path in checkpoints(scene.output).values():
        for entry in [path, *path.iterdir()]:
            os.utime(entry, (later, later))
    scene.ends_well(scene.run())
    scene.equals_uninterrupted()


@contextmanager
def small_disk(scene, size: int):
    """A file system of `size` bytes as output folder."""
    scene.output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", scene.output], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", scene.output], check=True)
        kept = scene.folder / "kept"
        shutil.copytree(scene.output, kept)
    finally:
        subprocess.run(["umount", "--lazy", scene.output], check=True)
    scene.output.rmdir()
    kept.rename(scene.output)


def needs_root(function):
    def run(scene):
        return function(scene) if os.geteuid() == 0 else "not run: mounting needs root"

    run.__name__ = function.__name__
    return run


@scenario("A full disk: an error that names the file, no broken checkpoint; with room again, the end is the same.")
@needs_root
def full_disk(scene):
    whole = sum(entry.stat().st_size for entry in (scene.work / "uninterrupted-clm-1/checkpoint-10").iterdir())
    with small_disk(scene, int(2.4 * whole)) as remount:
        outcome = scene.run()
        scene.check(outcome.returncode == 1, f"exit {outcome.returncode} instead of 1")
        scene.says("checkpoint-", str(scene.output))
        scene.check(list(checkpoints(scene.output)) != [], "the earlier checkpoints are gone")
        remount("size=100m")
        scene.ends_well(scene.run())
        scene.equals_uninterrupted()


@scenario("A read-only folder: an error that names it before anything is trained; writable again, the run goes on.")
@needs_root
def read_only_folder(scene):
    with small_disk(scene, 100_000_000) as remount:
        scene.run(stop=at("step", occurrence=4))
        remount("ro")
        outcome = scene.run()
        refused = outcome.returncode == 1 and not outcome.steps
        scene.check(refused, f"exit {outcome.returncode}, trains {outcome.steps}")
        scene.says(str(scene.output))
        remount("rw")
        scene.ends_well(scene.run())
        scene.equals_uninterrupted()


@scenario("Two processes in one folder: the second is refused with the first one's id, and the first goes on.")
def two_processes(scene):
    def second(pid):
        other = Scene(scene.folder / "second", scene.work)
        other.folder.mkdir()
        other.output = scene.output
        outcome = other.run()
        refused = outcome.returncode == 1 and not outcome.steps
        other.check(refused, f"exit {outcome.returncode}, trains {outcome.steps}")
        other.says(str(pid), str(scene.output))
        scene.problems += other.problems

    scene.ends_well(scene.run(stop=at("step", signal.SIGSTOP, 5), paused=second))
    scene.equals_uninterrupted()


@scenario("The folder deleted under the run: it ends with an error that names the folder.")
def folder_deleted(scene):
    outcome = scene.run(stop=at("step", signal.SIGSTOP, 5), paused=lambda pid: shutil.rmtree(scene.output))
    if outcome.returncode == 0:  # or it makes the folder again, and what is there is whole
        scene.ends_well(outcome)
        return
    scene.check(outcome.returncode == 1 and not outcome.hung, f"exit {outcome.returncode}")
    scene.says(str(scene.output))


@scenario("A finished run called again trains nothing and changes no weight.")
def finished_again(scene):
    scene.run()
    again = scene.run()
    scene.check(not again.steps, f"trains {again.steps}")
    scene.ends_well(again)
    scene.equals_uninterrupted()


@scenario("A flipped byte in the newest checkpoint: the older one is taken with a warning, and the end is the same.")
def flipped_byte(scene):
    scene.run(stop=at("step", occurrence=7))
    path = checkpoints(scene.output)[6] / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = scene.run()
    scene.check(outcome.steps[:1] == [3], f"trains {outcome.steps}")
    scene.check("optimizer.pt" in scene.log, "no warning names optimizer.pt")
    scene.ends_well(outcome)
    scene.equals_uninterrupted()


@scenario("SIGTERM several times at once: a checkpoint of the step, exit code 143 and the status interrupted.")
def repeated_sigterm(scene):
    def signals(pid):
        for _ in range(3):  # as a launcher and a scheduler would, together
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)

    outcome = scene.run(stop=at("step", signal.SIGSTOP, 5), paused=signals)
    scene.check(outcome.returncode == 143, f"exit {outcome.returncode}")
    scene.check(newest_step(scene.output) == 6, f"the newest checkpoint is {newest_step(scene.output)}, not 6")
    scene.check(read_json(scene.output / "run.json")["status"] == "interrupted", "run.json does not say interrupted")
    scene.ends_well(scene.run())
    scene.equals_uninterrupted()


@scenario(
    "SIGINT and SIGTERM to `accelerate launch` of one process: nothing is left alive; SIGTERM saves a checkpoint."
)
def launcher_signals(scene):
    longer = ("--max_steps", "3000", "--save_steps", "3000")  # the launcher takes its time to end
    for number in (signal.SIGINT, signal.SIGTERM):
        outcome = scene.run(*longer, kind="launch", stop=at("step", number, 3, target="launcher"))
        scene.check(not outcome.left, f"left alive after {signal.Signals(number).name}: {outcome.left}")
        status = read_json(scene.output / "run.json")["status"]
        scene.check(status == "interrupted", f"{signal.Signals(number).name}: run.json says {status!r}")
    scene.check(newest_step(scene.output) > 0, "no checkpoint after SIGTERM")


def _change(scene, changed: str | None, *further: str, before=1, after=1) -> None:
    scene.run(setting="hrpo", processes=before, stop=at("step", occurrence=7))
    newest = newest_step(scene.output)
    outcome = scene.run(*further, setting="hrpo", processes=after)
    scene.check(outcome.steps[:1] == [newest], f"trains {outcome.steps[:1]} on checkpoint {newest}")
    scene.ends_well(outcome)
    if changed is not None:
        scene.check(changed in scene.log, f"no warning names {changed!r}")


@scenario("Two processes where there was one: goes on from the checkpoint, with a warning about the rollouts.")
def more_processes(scene):
    _change(scene, "process", before=1, after=2)


@scenario("One process where there were two: goes on from the checkpoint, with a warning about the rollouts.")
def fewer_processes(scene):
    _change(scene, "process", before=2, after=1)


@scenario("Another `steps_per_generation`: goes on from the checkpoint, with a warning that names it.")
def changed_steps_per_generation(scene):
    _change(scene, "steps_per_generation", "--steps_per_generation", "2")


@scenario("`beta` switched on: goes on from the checkpoint, with a warning that names it.")
def changed_beta(scene):
    _change(scene, "beta", "--beta", "0.05")


@scenario("Another batch size: goes on from the checkpoint, with a warning that names it.")
def changed_batch_size(scene):
    _change(scene, "per_device_train_batch_size", "--per_device_train_batch_size", "8")


@scenario("SIGKILL to the runner of an experiment alone: when its runs are gone, the same command finishes.")
def runner_killed(scene):
    stop = Stop("step", signal.SIGKILL, "launcher", 2)
    scene.run(setting="experiment", kind="experiment", stop=stop)
    outcome = scene.run(setting="experiment", kind="experiment", limit=300.0)
    scene.check(outcome.returncode == 0, f"exit {outcome.returncode}: {scene.log[-300:]!r}")
