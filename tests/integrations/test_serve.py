"""A thinking model behind `transformers serve`, asked by the real OpenAI client."""

import contextlib
import socket
import time
import urllib.request
from urllib.error import URLError

import pytest
import torch
from decoder_families import DAY_ONE, SETTINGS, save_plain
from launching import fork_script
from transformers import AutoTokenizer

from hf_evidenceflow import load_thinking_model


MESSAGES = [{"role": "user", "content": "Tom has 3 apples."}]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@contextlib.contextmanager
def serving(*arguments):
    """A client of a server of ours."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--port", port, "--device", "cpu", "--dtype", "float32"]
    server = fork_script("hf_evidenceflow.integrations.serve", [*arguments, *options])
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health")
                break
            except URLError:
                assert server.is_alive(), "the server has ended"
                time.sleep(0.5)
        yield OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.join(timeout=20)
        assert server.exitcode is not None


def save_for_chat(model, tokenizer, folder):
    model.generation_config.max_new_tokens = 16
    model.save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(plain_checkpoint, tmp_path_factory):
    """Client, folder and model: gates wide open, so that thinking changes the text."""
    folder = str(tmp_path_factory.mktemp("served"))
    torch.manual_seed(7)
    model = load_thinking_model(plain_checkpoint, thinking_residual_r_min=0.05, thinking_residual_r_max=0.1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint)
    save_for_chat(model, tokenizer, folder)
    with serving(folder) as client:
        yield client, folder, model, tokenizer


def greedy_text(model, tokenizer, mode):
    ids = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    model.config.thinking_mode = mode
    output = model.generate(**ids, tokenizer=tokenizer, do_sample=False, max_new_tokens=16)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_a_served_model_thinks(served):
    client, folder, model, tokenizer = served
    answer = client.chat.completions.create(model=folder, messages=MESSAGES, temperature=0.0, max_tokens=16)
    assert answer.choices[0].message.content == greedy_text(model, tokenizer, "projection")
    assert answer.choices[0].message.content != greedy_text(model, tokenizer, "none")


@pytest.mark.slow
def test_a_served_model_thinks_while_it_is_streamed(served):
    client, folder, model, tokenizer = served
    stream = client.chat.completions.create(
        model=folder, messages=MESSAGES, temperature=0.0, max_tokens=16, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == greedy_text(model, tokenizer, "projection")


@pytest.fixture(scope="module")
def server_of_all():
    with serving() as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("family", DAY_ONE)
def test_each_family_is_served(family, server_of_all, tokenizer, tmp_path):
    save_plain(family, tokenizer, tmp_path / "plain")
    model = load_thinking_model(str(tmp_path / "plain"), **SETTINGS).eval()
    chatting = AutoTokenizer.from_pretrained(tmp_path / "plain")
    folder = str(tmp_path / "thinking")
    save_for_chat(model, chatting, folder)
    answer = server_of_all.chat.completions.create(model=folder, messages=MESSAGES, temperature=0.0, max_tokens=16)
    assert answer.choices[0].message.content == greedy_text(model, chatting, "projection")
