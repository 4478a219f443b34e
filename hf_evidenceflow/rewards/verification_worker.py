"""
Compares expressions by math-verify, as a process of its own: `python -I verification_worker.py <settings as JSON>`.

It imports nothing of this package. A supervisor imports math-verify once and forks a runner, which takes one request
after the other. A runner that goes over its limit of CPU time is killed by the kernel, whatever it computes, and the
next one is forked within milliseconds. Time spent waiting for a busy machine does not count.

Messages are JSON after their length in 4 bytes: `{"id", "gold", "answer"}` in, `{"id", "equal"}` out, where `null` is
"over the limit".
"""

import json
import mmap
import os
import resource
import select
import signal
import sys


RECYCLED = 3  # exit code of a runner that makes room for a fresh one
REQUESTS_OF_A_RUNNER = 1000  # bounds what sympy's caches hold


def main():
    settings = json.loads(sys.argv[1])
    sys.path[:] = settings["path"]
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a library that prints must not disturb the messages
        os.dup2(null, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        compare("\\frac{1}{2}", "0.5")  # imports all that sympy imports late
    except Exception as error:
        send(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    send(replies, {"ready": True})
    supervise(requests, replies, settings)


def supervise(requests, replies, settings):
    at_work = mmap.mmap(-1, 8)  # id of the request that the runner is at, shared with it
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        runner = os.fork()
        if runner == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(run(requests, replies, at_work, settings))
        signal.set_wakeup_fd(wake)
        status = wait(runner, woken, settings["parent"])
        signal.set_wakeup_fd(-1)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:  # the end of the requests
            return
        request = int.from_bytes(at_work[:8], "little")
        at_work[:8] = bytes(8)
        if request:
            send(replies, {"id": request, "equal": None})


def wait(runner, woken, parent):
    """The exit status of a runner. Ends both processes when the one that started them is gone."""
    while True:
        pid, status = os.waitpid(runner, os.WNOHANG)
        if pid:
            return status
        if os.getppid() != parent:
            os.kill(runner, signal.SIGKILL)
            os._exit(0)
        if select.select([woken], [], [], 1.0)[0]:
            os.read(woken, 4096)


def run(requests, replies, at_work, settings):
    """Takes requests until their end, and returns the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory"], settings["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills
    for _ in range(REQUESTS_OF_A_RUNNER):
        request = receive(requests)
        if request is None:
            return 0
        at_work[:8] = request["id"].to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, settings["cpu_seconds"])
        try:
            equal = compare(request["gold"], request["answer"])
        except MemoryError:
            return 1
        except Exception:  # whatever a model wrote, it is only a wrong answer
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(replies, {"id": request["id"], "equal": equal})
        at_work[:8] = bytes(8)
    return RECYCLED


def compare(gold, answer):
    from math_verify import parse, verify

    # The time-outs of math-verify are wall-clock
    expected, given = parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None)
    return bool(verify(expected, given, timeout_seconds=None))


def receive(descriptor):
    """The next message; `None` at the end."""
    length = read_exactly(descriptor, 4)
    body = read_exactly(descriptor, int.from_bytes(length, "little")) if length else b""
    return json.loads(body) if body else None


def read_exactly(descriptor, count):
    parts = b""
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            return b""
        parts += part
    return parts


def send(descriptor, message):
    body = json.dumps(message).encode()
    message = len(body).to_bytes(4, "little") + body
    while message:
        message = message[os.write(descriptor, message) :]


if __name__ == "__main__":
    main()
