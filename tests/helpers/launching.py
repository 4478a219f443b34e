"""Starts scripts in processes of their own, forked from one that has imported what takes long."""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repository import HELPERS


_SECONDS = 240
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([f"hf_evidenceflow.trainers.{name}_trainer" for name in ("hrpo", "latent_sft")])


def run_ranks(worker, *arguments, processes=2, **environment):
    """A worker of this folder as the ranks of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    job |= {"LOCAL_WORLD_SIZE": str(processes)} | environment
    return _run(worker, arguments, [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)])


def launch(worker, *arguments, processes=2, **environment):
    """By torchrun's agent, which starts ranks that end again."""
    # By default the launcher's store keeps the addresses of dead processes, and gloo waits for those
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment}
    return _run("elastic_agent.py", [processes, HELPERS / worker, *arguments], [environment])


def fork_script(script, arguments, environment=os.environ, stdout=os.devnull, stderr=os.devnull):
    """A started process that runs a script, or a module by its name, as Python would; it appends to two files."""
    strings = [str(script), [str(argument) for argument in arguments], dict(environment), str(stdout), str(stderr)]
    process = _SERVER.Process(target=_run_script, args=strings)
    process.start()
    return process


class ForkedScript:
    """In the place of the `subprocess.Popen` of a Python script whose output goes to one file."""

    def __init__(self, command, *, stdout, env, **options):
        self._process = fork_script(command[1], command[2:], env, stdout.name, stdout.name)
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode


def _run_script(script, arguments, environment, stdout, stderr):
    gc.freeze()  # accelerate collects after each training: what was imported would be looked through and copied
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    run = runpy.run_path if script.endswith(".py") else runpy.run_module
    run(script, run_name="__main__")


def _run(worker, arguments, environments):
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        running = [
            fork_script(HELPERS / worker, arguments, {**os.environ, "OMP_NUM_THREADS": "1", **environment}, *files)
            for environment in environments
        ]
        code = _first_failure(running)
        result = subprocess.CompletedProcess([worker, *arguments], code, *(file.read_text() for file in files))
    result.check_returncode()
    return result


def _first_failure(running):
    """0, or the exit code of the process that failed first, at which the others are killed."""
    deadline = time.monotonic() + _SECONDS
    try:
        while running:
            ended = multiprocessing.connection.wait([p.sentinel for p in running], deadline - time.monotonic())
            if not ended:
                raise TimeoutError(f"no end within {_SECONDS} seconds")
            for process in [process for process in running if process.sentinel in ended]:
                running.remove(process)
                process.join()
                if process.exitcode:
                    return process.exitcode
        return 0
    finally:
        for process in running:
            process.kill()
            process.join()
