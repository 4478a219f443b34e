"""Starts a recipe as a job and stops it: forked from this process, which has everything imported, or by a launcher."""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from chaos_tracer import Tracer


ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300.0  # of one attempt; beyond it the job hangs
RANK_SECONDS = 40.0  # for the other ranks when one has ended with an error
LEAVE_SECONDS = 30.0  # for what a launcher had started, when it is gone
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Stop:
    """A signal, either at a point inside a phase or (`seconds`) so long after the start; see [`Tracer`]."""

    phase: str
    signal: int
    target: str
    occurrence: int = 0
    event: int = 0
    rank: int = 0
    seconds: float | None = None


@dataclass
class Job:
    """`kind`: `fork`, `launch` (`accelerate launch`, `torchrun`), or `experiment` (forked; its runs are not)."""

    recipe: str
    arguments: list[str]
    kind: str = "fork"
    processes: int = 1


@dataclass
class Outcome:
    """How an attempt ended; `steps` are those that it began to train, `left` the processes that outlived the job."""

    returncode: int
    seconds: float
    stopped: dict | None
    steps: list[int]
    left: list[str]
    hung: bool


def adopt_orphans() -> None:
    """Become the parent of processes whose parent ends, so that none can be left unseen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_job(
    job: Job,
    log: Path,
    trace: Path,
    stop: Stop | None = None,
    limit: float = LIMIT_SECONDS,
    paused: Callable[[int], None] | None = None,
) -> Outcome:
    """
    Start the job, stop it as asked, and wait until it has ended with all that it started. With `paused` the stop is a
    SIGSTOP: it is called with the process id of the job, which then goes on.
    """
    trace.unlink(missing_ok=True)
    traced = None if stop is None or stop.seconds is not None else asdict(stop)
    start, earlier = time.monotonic(), {process.pid for process in _descendants()}
    wait = _launch(job, log, trace, traced) if job.kind == "launch" else _fork(job, log, trace, traced)
    sent, hung, code = None, False, None
    while (code := wait()) is None:
        passed = time.monotonic() - start
        if stop is not None and stop.seconds is not None and sent is None and passed >= stop.seconds:
            sent = {"stop": "random", "event": f"{stop.seconds:.2f} s", "signal": int(stop.signal), "at_step": None}
            _send(wait.pid, stop)
        if paused is not None and trace.exists() and '"stop"' in trace.read_text():
            paused(wait.pid)
            paused = None
            os.killpg(wait.pid, signal.SIGCONT)
        if passed > limit:
            hung = True
            for process in _descendants(earlier):
                process.kill()
        time.sleep(0.002 if sent is None else 0.02)
    seconds = time.monotonic() - start
    left = [] if hung else _leftovers(earlier)
    lines = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
    if traced is not None:
        sent = next((line for line in lines if "stop" in line), None)
    return Outcome(code, round(seconds, 2), sent, [line["step"] for line in lines if "step" in line], left, hung)


def _send(pid: int, stop: Stop) -> None:
    if stop.target == "group":
        os.killpg(pid, stop.signal)
        return
    below = psutil.Process(pid).children(recursive=True) if stop.target == "all" else []
    for process in [psutil.Process(pid), *below]:
        process.send_signal(stop.signal)


def _descendants(without: set[int] = frozenset()) -> list[psutil.Process]:
    found = [child for child in psutil.Process().children(recursive=True) if child.pid not in without]
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _leftovers(earlier: set[int]) -> list[str]:
    deadline = time.monotonic() + LEAVE_SECONDS
    while (alive := _descendants(earlier)) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = []
    for process in alive:
        command = process.cmdline()[:4]
        names.append(f"{process.pid} {command}")
        process.kill()
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
    return names


class _Waiter:
    def __init__(self, pid: int):
        self.pid = pid

    def __call__(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else os.waitstatus_to_exitcode(status)


def _launch(job: Job, log: Path, trace: Path, stop: dict | None) -> _Waiter:
    if job.processes == 1:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--num_cpu_threads_per_process", "1"]
    else:  # `accelerate launch` starts several processes on a CPU by MPI alone
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(job.processes)]
        command += ["--master_port", str(_free_port())]
    command += [str(ROOT / "benchmarks/chaos_traced.py"), str(ROOT / job.recipe), *job.arguments]
    environment = os.environ | {"CHAOS_TRACER": json.dumps({"trace": str(trace), "stop": stop})}
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    process.returncode = 0  # it is waited for by its id
    return _Waiter(process.pid)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _fork(job: Job, log: Path, trace: Path, stop: dict | None) -> _Waiter:
    port = _free_port()
    pid = os.fork()
    if pid:
        return _Waiter(pid)
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, descriptor), (2, descriptor)):
            os.dup2(source, number)
        code = _as_process(job, trace, stop) if job.processes == 1 else _as_launcher(job, trace, stop, port)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _as_launcher(job: Job, trace: Path, stop: dict | None, port: int) -> int:
    """The ranks, each of which gets a group's signals itself, as under `srun`."""
    ranks = []
    for rank in range(job.processes):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"ACCELERATE_USE_CPU": "true"}
            code = 70
            try:
                code = _as_process(job, trace, stop)
            finally:
                os._exit(code)
        ranks.append(pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    codes, deadline = [], None
    while ranks:
        for pid in list(ranks):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ranks.remove(pid)
                code = os.waitstatus_to_exitcode(status)
                codes.append(code if code >= 0 else 128 - code)
        if any(codes) and deadline is None:
            deadline = time.monotonic() + RANK_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            print(f"ranks {ranks} had to be killed", file=sys.stderr)
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.01)
    return next((code for code in codes if code), 0)


def _as_process(job: Job, trace: Path, stop: dict | None) -> int:
    script = str(ROOT / job.recipe)
    sys.argv = [script, *job.arguments]
    sys.path[0] = os.path.dirname(script)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    if job.kind == "experiment":
        _trace_children(trace, stop)
        stop = stop if stop is not None and stop["phase"] == "plots" else None
    try:
        if job.kind == "experiment" and stop is not None:
            stop = stop | {"target": "self"}
        Tracer(str(trace), stop).install()
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def _trace_children(trace: Path, stop: dict | None) -> None:
    """Let the runs that an experiment starts be traced as well."""
    wrapper, original = str(ROOT / "benchmarks/chaos_traced.py"), subprocess.Popen

    class Popen(original):
        def __init__(self, command, *args, **kwargs):
            if isinstance(command, list) and len(command) > 1 and str(command[1]).startswith("recipes/"):
                command = [command[0], wrapper, *command[1:]]
            super().__init__(command, *args, **kwargs)

    subprocess.Popen = Popen
    os.environ["CHAOS_TRACER"] = json.dumps({"trace": str(trace), "stop": stop})
