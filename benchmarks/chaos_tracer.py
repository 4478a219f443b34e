"""
Sees where a training process is, from inside it, and sends a signal at an exact point of a phase.

Phases: `step` (forward and backward), `rollout`, `save` (a checkpoint up to its publication), `rotation` (what follows
in the same save), `evaluation`, `final_save` (the model), `plots`, `end` (what follows the final save). A point is the
n-th event of a phase: its start, a file operation (audit hook of Python, so that nothing of the product is replaced),
an fsync, a batch of an evaluation, or its end.
"""

import functools
import json
import os
import sys
import threading

import psutil


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class Tracer:
    """
    Args:
        trace (`str`):
            File that gets a JSON line for each training step (`{"step": 3}`, of rank 0) and for the stop.
        stop (`dict`, *optional*):
            `phase`, `occurrence` (from 0), `event` (from 0), `signal`, `rank` and `target`: `group` (the process
            group), `self`, `launcher` (the parent) or `all` (the parent and everything below it).
    """

    def __init__(self, trace: str, stop: dict | None):
        self.descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.rank = int(os.environ.get("RANK", "0"))
        self.stop = stop if stop is not None and stop["rank"] == self.rank else None
        self.thread = threading.get_ident()
        self.launcher = os.getppid()
        self.phases: list[str] = []
        self.begun: dict[str, int] = {}
        self.events = 0
        self.trainer = None

    def install(self) -> None:
        """Wrap the entries of the phases, in this process only."""
        from matplotlib.figure import Figure
        from transformers import Trainer
        from trl import GRPOTrainer

        from hf_evidenceflow import HRPOTrainer
        from hf_evidenceflow.trainers.pretraining_trainer import CausalLMEvaluationMixin

        saver = next(parent for parent in HRPOTrainer.__mro__ if "_save_checkpoint" in vars(parent))
        self._wrap(Trainer, "training_step", "step")
        self._wrap(GRPOTrainer, "_generate_single_turn", "rollout")
        self._wrap(saver, "_save_checkpoint", "save")
        self._wrap(Trainer, "evaluate", "evaluation")
        self._wrap(CausalLMEvaluationMixin, "prediction_step", None)
        self._wrap(Trainer, "save_model", "final_save")
        self._wrap(Figure, "savefig", "plots")
        original = os.fsync

        def fsync(descriptor):
            self.event("fsync")
            original(descriptor)

        os.fsync = fsync
        sys.addaudithook(self._audit)

    def event(self, name: str) -> None:
        """Count an event of the phase at hand; at the chosen one, stop."""
        if not self._is_due():
            return
        if self.events >= self.stop["event"]:
            self._fire(name)
        self.events += 1

    def _is_due(self) -> bool:
        stop = self.stop
        if stop is None or not self.phases or self.phases[-1] != stop["phase"]:
            return False
        return threading.get_ident() == self.thread and (
            stop["phase"] == "rotation" or self.begun[stop["phase"]] > stop["occurrence"]
        )

    def write(self, **line) -> None:
        os.write(self.descriptor, (json.dumps(line) + "\n").encode())

    def _fire(self, name: str) -> None:
        stop, self.stop = self.stop, None
        if os.getppid() != self.launcher:
            return  # another run of the same launcher has stopped it already
        step = None if self.trainer is None else self.trainer.state.global_step
        self.write(stop=stop["phase"], event=f"{name} {self.events}", at_step=step, signal=stop["signal"])
        for pid in self._targets(stop["target"]):
            os.kill(pid, stop["signal"])
        if stop["target"] == "group":
            os.killpg(0, stop["signal"])

    @staticmethod
    def _targets(target: str) -> list[int]:
        if target == "group":
            return []
        if target == "self":
            return [os.getpid()]
        if target == "launcher":
            return [os.getppid()]
        below = [child.pid for child in psutil.Process(os.getppid()).children(recursive=True)]
        return [os.getppid(), *(pid for pid in below if pid != os.getpid()), os.getpid()]

    def _wrap(self, owner, name: str, phase: str | None) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(instance, *args, **kwargs):
            if phase is None or (phase == "final_save" and self.phases):
                self.event(name)
                return original(instance, *args, **kwargs)
            self._begin(phase, instance)
            try:
                return original(instance, *args, **kwargs)
            finally:
                self._end(phase)

        setattr(owner, name, wrapper)

    def _begin(self, phase: str, instance) -> None:
        if phase != "plots":  # of a figure
            self.trainer = instance
        if phase == "step" and self.rank == 0:
            self.write(step=instance.state.global_step)
        self.phases.append(phase)
        self.begun[phase] = self.begun.get(phase, 0) + 1
        self.event("start")

    def _end(self, phase: str) -> None:
        # Fewer events than the chosen one: its end is the point. A rotation without any event has not taken place
        if self._is_due() and sys.exc_info()[0] is None and (self.phases[-1] != "rotation" or self.events):
            self.stop["event"] = 0
            self.event("end")
        while self.phases.pop() != phase:
            pass
        if phase == "final_save":
            self.phases.append("end")
            self.begun["end"] = 1

    def _audit(self, name: str, args: tuple) -> None:
        if name not in FILE_EVENTS or self.stop is None or not self.phases:
            return
        if name == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        self.event(f"{name} {os.path.basename(os.fsdecode(args[0])) if not isinstance(args[0], int) else args[0]}")
        published = f"checkpoint-{self.trainer.state.global_step}" if self.trainer is not None else None
        if name == "os.rename" and self.phases[-1] == "save" and os.path.basename(os.fsdecode(args[1])) == published:
            self.phases.append("rotation")


def install_from_environment() -> None:
    """Install the tracer that `CHAOS_TRACER` describes."""
    setting = json.loads(os.environ["CHAOS_TRACER"])
    Tracer(setting["trace"], setting["stop"]).install()
