"""The worker process that compares expressions: its limits, and how it lives and dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import math_verify
import pytest
from math_verify.errors import TimeoutException

from hf_evidenceflow.tasks import verifier as verifier_module
from hf_evidenceflow.tasks.math import math_reward
from hf_evidenceflow.tasks.verifier import Verifier


HALF = ("\\boxed{\\frac{1}{2}}", "\\boxed{0.5}")
ENDLESS = ("\\boxed{3}", "\\boxed{\\binom{685715878}{962248}}")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the worker needs fork")


@pytest.fixture(scope="module")
def shared():
    verifier = Verifier(cpu_seconds=0.5)
    yield verifier
    verifier.close()


@pytest.fixture
def verifier():
    verifier = Verifier()
    yield verifier
    verifier.close()


def ends(pid, seconds=10):
    """Whether a process is gone, or a zombie, within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_comparison_over_the_limit_of_cpu_time_is_no_verdict_and_the_next_one_is_right(shared):
    assert shared.equal(*ENDLESS) is None and shared.equal(*HALF) is True and shared.equal("5", "6") is False


@pytest.mark.parametrize(
    "answer",
    ["\\sin(1000)^{1268}", "\\sum_{n=1}^{100} n^{6274}", "9^{9^{9^9}}", "\\int_0^{100} x^{999} \\sin(x)^{99} dx"],
)
def test_bomb_costs_about_the_limit(shared, answer):
    start = os.times()
    assert not shared.equal("\\boxed{3}", f"\\boxed{{{answer}}}")
    shared.close()  # so that its time shows here
    end = os.times()
    assert end.children_user + end.children_system - start.children_user - start.children_system < 5


def runner_of(verifier):
    supervisor = verifier._process.pid
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_runner_killed_between_two_comparisons_is_replaced(shared):
    assert shared.equal(*HALF)
    os.kill(runner_of(shared), signal.SIGKILL)
    assert shared.equal(*HALF) is True and shared.equal("5", "6") is False and shared.equal(*HALF) is True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_runner_killed_in_a_comparison_is_no_verdict_on_the_answer(verifier):
    assert verifier.equal(*HALF)
    runner = runner_of(verifier)
    os.kill(runner, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (runner, signal.SIGKILL))
    killer.start()
    assert verifier.equal(*HALF) is True and verifier.over_limit == 0
    killer.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_that_compares_has_a_limit_of_memory(shared):
    assert shared.equal(*HALF)
    limits = Path(f"/proc/{runner_of(shared)}/limits").read_text()
    assert f"Max address space {shared.memory}" in " ".join(limits.split())


def test_time_in_which_the_worker_does_not_run_does_not_count(verifier):
    assert verifier.equal(*HALF)
    group = verifier._process.pid
    os.killpg(group, signal.SIGSTOP)
    wake = threading.Timer(2 * verifier.cpu_seconds, os.killpg, (group, signal.SIGCONT))
    wake.start()
    assert verifier.equal("\\boxed{(x+1)^2}", "\\boxed{x^2+2x+1}") is True
    wake.join()


def test_killed_worker_is_replaced(verifier):
    assert verifier.equal(*HALF)
    os.killpg(verifier._process.pid, signal.SIGKILL)
    assert verifier.equal(*HALF) is True and verifier.over_limit == 0


def test_threads_get_the_verdicts_of_their_own_pairs(shared):
    verdicts = {}

    def compare(number):
        verdicts[number] = [shared.equal(f"\\boxed{{{number}}}", f"\\boxed{{{other}}}") for other in range(4)]

    threads = [threading.Thread(target=compare, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: [other == number for other in range(4)] for number in range(4)}


def test_warning_and_metric_count_what_went_over_the_limit(caplog, monkeypatch):
    monkeypatch.setattr("hf_evidenceflow.tasks.verifier.verifier.cpu_seconds", 0.3)
    monkeypatch.setattr("hf_evidenceflow.tasks.verifier.verifier._process", None)
    monkeypatch.setattr("hf_evidenceflow.tasks.verifier.verifier.over_limit", 0)
    logged = {}
    answers = ["#### \\binom{685715878}{962248}", "#### 3", "none", "#### 4"]
    assert math_reward(answers, ["3"] * 4, log_metric=logged.__setitem__) == [0.0, 1.0, 0.0, 0.0]
    assert logged == {"unparsable": 0.25, "unverified": 0.25}
    assert "1 answers count as wrong" in caplog.text and "685715878" in caplog.text


def test_worker_that_does_not_start_is_an_error_that_names_the_reason(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(RuntimeError, match="did not start: ModuleNotFoundError: .*math_verify"):
        Verifier().equal(*HALF)


@pytest.mark.parametrize(
    ("error", "verdict"), [(TimeoutException, None), (RecursionError, False), (ValueError, False)]
)
def test_systems_without_fork_compare_in_this_process(monkeypatch, error, verdict):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_evidenceflow.tasks.verifier.os.name", "nt")
    assert Verifier().equal("5", "5.0") is True
    monkeypatch.setattr(math_verify, "verify", fail)
    assert Verifier().equal("5", "5.0") is verdict


# The module is loaded without the package, which takes seconds to import
SCRIPT = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("verifier", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
verifier = module.verifier
assert verifier.equal("5", "5.0") is True
{action}
"""
FORKS = """
child = os.fork()
if child == 0:
    right = verifier._process is None and verifier.equal("5", "5.0") is True
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0 and verifier.equal("6", "6.0") is True
print(verifier._process.pid, flush=True)
"""
DIES = """
print(verifier._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
DIES_WHILE_A_CHILD_LIVES = """
if os.fork():
    print(verifier._process.pid, flush=True)
    os.kill(os.getpid(), 9)
os.close(1)
import time
time.sleep(20)
"""


@pytest.mark.parametrize("action", [FORKS, DIES, DIES_WHILE_A_CHILD_LIVES], ids=["forks", "dies", "dies with a child"])
def test_worker_serves_one_process_and_ends_with_it(action):
    code = SCRIPT.format(path=verifier_module.__file__, action=action)
    process = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120)
    assert process.stdout and ends(int(process.stdout))
