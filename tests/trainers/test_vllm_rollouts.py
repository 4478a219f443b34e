"""The trainer's side of rollouts on vLLM, without vLLM."""

import importlib.util

import pytest

from hf_evidenceflow import HRPOConfig
from hf_evidenceflow.trainers.vllm_rollouts import cuts_distribution, thinking_generation


def make_args(tmp_path, **kwargs):
    return HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **kwargs)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_missing_vllm_is_reported_with_the_command(tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'hf-evidenceflow\[vllm\]'"):
        thinking_generation(make_args(tmp_path, use_vllm=True), "projection")


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.9},
        {"top_k": 7},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"generation_kwargs": {"min_tokens": 3}},
    ],
)
def test_log_probabilities_of_a_cut_distribution_are_not_compared(tmp_path, fields):
    assert cuts_distribution(make_args(tmp_path, **fields))
    assert not cuts_distribution(make_args(tmp_path, generation_kwargs={"seed": 3}))


def test_arguments_of_the_engine_are_read_from_json(tmp_path):
    assert make_args(tmp_path, vllm_engine_kwargs='{"dtype": "float32"}').vllm_engine_kwargs == {"dtype": "float32"}
