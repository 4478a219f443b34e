"""`vllm serve` with a stock OpenAI client: nothing but the package has to be installed."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


pytest.importorskip("vllm")

import engines
from openai import OpenAI


pytestmark = pytest.mark.slow
START = 400  # seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", checkpoint(), "--port", str(port)]
    for name, value in {**engines.ON_CPU, "max_model_len": 256, "host": "127.0.0.1"}.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [flag, str(value)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        for _ in range(START):
            assert server.poll() is None, log.read_text()[-3000:]
            if answers(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        else:
            raise AssertionError(f"No answer after {START} s: {log.read_text()[-3000:]}")
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def answers(url) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def complete(client, prompts, new_tokens=engines.NEW_TOKENS):
    response = client.completions.create(
        model=client.models.list().data[0].id,
        prompt=prompts,
        max_tokens=new_tokens,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return [choice.token_ids for choice in response.choices]


def test_a_served_model_thinks_in_all_turns(client, checkpoint, reference):
    prompts = engines.make_prompts()
    first = complete(client, prompts)
    assert first == reference()
    turns = [[*prompt, *tokens, 7, 11, 5] for prompt, tokens in zip(prompts, first)]
    assert complete(client, turns, 16) == engines.reference_tokens(checkpoint(), turns, 16)
