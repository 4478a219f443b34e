"""Loads saved models with their own code in a process that can't import the package."""

import atexit
import json
import subprocess
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path


# It forks a process for each script, which has imported what loading a model imports, and says how that one ended
_SERVER = """
import json, os, sys, traceback
sys.modules["hf_evidenceflow"] = None  # cannot be imported
import peft, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
torch.set_num_threads(1)  # as in the test's process: sums round otherwise with more
for line in sys.stdin:
    script, folder = json.loads(line)
    if not (pid := os.fork()):
        code = 1
        try:
            os.chdir(folder)
            os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(1, 2)
            exec(script, {"torch": torch})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@cache
def _server():
    home = tempfile.TemporaryDirectory()
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"HF_HOME": home.name, "HF_HUB_OFFLINE": "1", "PATH": ""},
    )

    @atexit.register
    def end():
        server.communicate()
        home.cleanup()

    return server


def run_without_package(script: str, folder) -> None:
    """Run a script, which leaves a `model` behind, in a folder; its asserts fail the test."""
    tail = '\nprint("loaded", type(model).__module__)\n'
    server = _server()
    server.stdin.write(json.dumps([textwrap.dedent(script) + tail, str(folder)]) + "\n")
    server.stdin.flush()
    status = server.stdout.readline().strip()
    output = Path(folder, "output").read_text()
    assert status == "0", output[-3000:]
    assert "loaded transformers_modules" in output
