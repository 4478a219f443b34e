"""`vllm serve` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import engines


START = 400  # seconds


@contextmanager
def served(folder, log, *flags, **environment):
    """Serves a checkpoint on CPU, and yields the address; what the server says goes to the file `log`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder, "--port", str(port), *flags]
    for name, value in {**engines.ON_CPU, "max_model_len": 256, "host": "127.0.0.1"}.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [flag, str(value)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment}
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        for _ in range(START):
            assert server.poll() is None, log.read_text()[-3000:]
            if _answers(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        else:
            raise AssertionError(f"No answer after {START} s: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(url) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False
