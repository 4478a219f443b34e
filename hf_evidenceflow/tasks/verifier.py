"""The process that compares expressions: started when first needed, used again, replaced when it dies."""

import atexit
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


logger = logging.getLogger(__name__)

CPU_SECONDS = 1.0  # for reading and comparing one pair; usual pairs take 5 to 100 ms, first ones up to 0.3 s
MEMORY_BYTES = 2**30
WALL_SECONDS = 5  # where there is no limit of CPU time

_WORKER = Path(__file__).with_name("verification_worker.py")


class WorkerDied(Exception):
    """The worker was killed from outside while it compared."""


class Verifier:
    """
    Compares expressions in a worker process, one pair at a time; safe in threads and after a fork.

    The worker ends with the process that started it. On systems without fork (Windows) the comparison runs in this
    process, under math-verify's own time-outs of `WALL_SECONDS`.

    Args:
        cpu_seconds (`float`, *optional*, defaults to `1.0`):
            CPU time for one comparison.
        memory (`int`, *optional*, defaults to 1 GiB):
            Address space of the worker, in bytes.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory: int = MEMORY_BYTES):
        self.cpu_seconds = cpu_seconds
        self.memory = memory
        self.over_limit = 0
        self._process = None
        self._sent = 0
        self._lock = threading.Lock()
        self._hooked = False

    def equal(self, gold: str, answer: str) -> bool | None:
        """
        Whether math-verify takes an answer for equal to the gold; `False` also for what cannot be read, `None` if the
        comparison went over the limits. A `RuntimeError` if the worker does not start.
        """
        if os.name != "posix":
            return _compare_here(gold, answer)
        with self._lock:
            for _ in range(2):
                try:
                    verdict = self._ask(gold, answer)
                    break
                except WorkerDied:
                    verdict = None
            if verdict is None:
                self.over_limit += 1
                if self.over_limit in (1, 10, 100, 1000, 10000):
                    logger.warning(
                        f"{self.over_limit} answers count as wrong, because comparing them took more than "
                        f"{self.cpu_seconds:g} s of CPU time or {self.memory / 2**30:g} GiB; the last is {answer!r}."
                    )
            return verdict

    def close(self) -> None:
        """Ends the worker; the next comparison starts another one."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the runner too
            process.stdin.close()
            process.stdout.close()
            process.wait()

    def _ask(self, gold, answer):
        process = self._started()
        self._sent += 1
        request = {"id": self._sent, "gold": gold, "answer": answer}
        try:
            _send(process.stdin, request)
            while True:
                reply = _receive(process.stdout)
                if reply["id"] == request["id"]:  # others are late answers to what nobody waits for any more
                    return reply["equal"]
        except (EOFError, BrokenPipeError):
            self.close()
            raise WorkerDied from None
        except BaseException:  # Ctrl-C in the middle of a message
            self.close()
            raise

    def _started(self):
        if self._process is None:
            settings = {
                "path": sys.path,
                "parent": os.getpid(),
                "cpu_seconds": self.cpu_seconds,
                "memory": self.memory,
            }
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the trainer, which ends the worker
            )
            if not self._hooked:
                self._hooked = True
                atexit.register(self.close)
                os.register_at_fork(after_in_child=self._forget)
            try:
                greeting = _receive(self._process.stdout)
            except EOFError:
                greeting = {"error": f"exit code {self._process.wait()}"}
            if "error" in greeting:
                self.close()
                raise RuntimeError(
                    f"The process that grades by math-verify did not start: {greeting['error']}. Check that "
                    f"`{sys.executable} -c 'import math_verify'` works."
                )
        return self._process

    def _forget(self):
        """In a forked child: the worker belongs to the parent."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # no child of this process


verifier = Verifier()


@functools.lru_cache(maxsize=2**14)
def equal(gold: str, answer: str) -> bool | None:
    """[`Verifier.equal`] by the worker that this process's graders share; answers of a group are often the same."""
    return verifier.equal(gold, answer)


def _compare_here(gold: str, answer: str) -> bool | None:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException  # no subclass of Exception

    try:
        expected, given = parse(gold, parsing_timeout=WALL_SECONDS), parse(answer, parsing_timeout=WALL_SECONDS)
        return bool(verify(expected, given, timeout_seconds=WALL_SECONDS))
    except TimeoutException:
        return None
    except Exception:  # whatever a model wrote, it is only a wrong answer
        return False


def _send(pipe, message: dict) -> None:
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[pipe.write(data) :]


def _receive(pipe) -> dict:
    return json.loads(_read(pipe, int.from_bytes(_read(pipe, 4), "little")))


def _read(pipe, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = pipe.read(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
