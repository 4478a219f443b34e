"""
Runs a worker of this folder as the ranks of one job: `python fork_ranks.py <ranks> <worker> <arguments>`.

What takes long to import is imported once, before the ranks are forked.
"""

import os
import runpy
import signal
import socket
import sys

import torch  # noqa: F401
import trl  # noqa: F401

import hf_evidenceflow.trainers.hrpo_trainer  # noqa: F401


def main() -> int:
    ranks, worker, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
    running = {fork_rank(rank, worker, arguments) for rank in range(ranks)}
    code = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not code:
            code = 1
            for other in running:
                os.kill(other, signal.SIGKILL)
    return code


def fork_rank(rank: int, worker: str, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.argv = [worker, *arguments]
        runpy.run_path(worker, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.exit(main())
