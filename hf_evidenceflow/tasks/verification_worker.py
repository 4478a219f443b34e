"""
Compares expressions by math-verify, as a process of its own: `python -I verification_worker.py <settings as JSON>`.

It imports nothing of this package. A supervisor imports math-verify once and forks a runner, to which it gives one
request after the other. A runner that goes over its limit of CPU time is killed by the kernel, whatever it computes,
and the next one is forked within milliseconds. Time spent waiting for a busy machine does not count.

Messages are JSON after their length in 4 bytes: `{"id", "gold", "answer"}` in, `{"id", "equal"}` out, where `null` is
"over the limit".
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys


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
    runner, taken = Runner(settings), 0
    while (request := runner.next_request(requests)) is not None:
        if taken == REQUESTS_OF_A_RUNNER:
            runner.end()
            runner, taken = Runner(settings), 0
        equal, lost = runner.ask(request)
        if lost:
            runner.end()
            runner = Runner(settings)
            equal, lost = runner.ask(request)
        if equal is None:
            runner.end()
            runner, taken = Runner(settings), 0
        taken += 1
        send(replies, {"id": request["id"], "equal": equal})
    runner.end()


class Runner:
    """A forked process that compares, with pipes of its own, so that none outlives what one runner left in them."""

    def __init__(self, settings):
        self.parent = settings["parent"]
        its_requests, self.requests = os.pipe()
        self.replies, its_replies = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.requests)
                os.close(self.replies)
                code = run(its_requests, its_replies, settings)
            finally:
                os._exit(code)
        os.close(its_requests)
        os.close(its_replies)

    def ask(self, request):
        """The verdict, `None` if the runner is gone, and whether something else than the limits ended it."""
        try:
            send(self.requests, request)
            self.wait_for(self.replies)
            reply = receive(self.replies)
        except BrokenPipeError:
            reply = None
        if reply is not None:
            return reply["equal"], False
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return None, os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGPROF

    def next_request(self, requests):
        self.wait_for(requests)
        return receive(requests)

    def wait_for(self, descriptor):
        """Until there is something to read. Ends both processes when the one that started them is gone."""
        while not select.select([descriptor], [], [], 1.0)[0]:
            if os.getppid() != self.parent:
                self.end()
                os._exit(0)

    def end(self):
        os.close(self.requests)
        os.close(self.replies)
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def run(requests, replies, settings):
    """Takes requests until their end, and returns the exit code."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = settings["memory"] if hard == resource.RLIM_INFINITY else min(settings["memory"], hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the limit of CPU time bounds the memory too
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills
    while (request := receive(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, settings["cpu_seconds"])
        try:
            equal = compare(request["gold"], request["answer"])
        except MemoryError:
            return 1
        except Exception:  # whatever a model wrote, it is only a wrong answer
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(replies, {"equal": equal})
    return 0


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
