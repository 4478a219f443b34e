"""
HRPOTrainer with rollouts on `vllm serve`, `use_vllm=True, vllm_mode="server"`. TRL sends weights by NCCL, which needs
GPUs: here nothing is sent, and nothing is learned.
"""

import pytest
import torch


pytest.importorskip("vllm")

from datasets import Dataset
from quiet_training import STEP_BY_STEP
from serving import served
from transformers import AutoTokenizer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.integrations.vllm.server_rollouts import ThinkingServerGeneration, request_name
from hf_evidenceflow.integrations.vllm.worker import WORKER


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    flags = ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--worker-extension-cls", WORKER]
    with served(checkpoint(), log, *flags, VLLM_SERVER_DEV_MODE="1") as address:
        yield address


@pytest.fixture
def make_trainer(checkpoint, server, tmp_path, monkeypatch):
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)

    def make(mode="projection", **overrides):
        args = {
            "output_dir": str(tmp_path / "out"),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "max_completion_length": 9,
            "temperature": 0.9,
            "save_strategy": "no",
            "parity_check_steps": 1,
            "learning_rate": 0.0,
            "beta": 0.0,
            "seed": 3,
            "num_generations": 4,
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": server,
        }
        return HRPOTrainer(
            load_thinking_model(checkpoint(), thinking_mode=mode, dtype=torch.float32),
            lambda completions, **kwargs: [float(len(text) % 3) for text in completions],
            args=HRPOConfig(**{**args, **overrides}),
            train_dataset=Dataset.from_list([{"prompt": text} for text in ("Tom has 3", "Ann?", "7+2=", "abc") * 4]),
            processing_class=AutoTokenizer.from_pretrained(checkpoint()),
        )

    return make


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_log_probabilities_of_a_servers_rollouts_are_those_of_the_training_forward(make_trainer):
    trainer = make_trainer()
    trainer.train()
    gaps = history(trainer, "thinking/parity_gap")
    assert len(gaps) == 2 and max(gaps) <= 1e-4
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert 0 < history(trainer, "thinking/gate_mean")[0] < 1
    assert trainer.vllm_generation._call("thinking_stats")[0]["left"] == 0


def test_states_of_another_row_stop_the_run(make_trainer, monkeypatch):
    take = ThinkingServerGeneration._take

    def turned(self, *args):
        rows = take(self, *args)
        return [*rows[1:], rows[0]]

    monkeypatch.setattr(ThinkingServerGeneration, "_take", turned)
    with pytest.raises(RuntimeError, match="Parity check failed at step 0"):
        make_trainer().train()


def test_a_server_that_thinks_otherwise_is_refused(make_trainer):
    with pytest.raises(ValueError, match="thinks in mode 'projection', and the model that is trained in 'soft'"):
        make_trainer("soft")


def test_one_completion_of_a_prompt_has_no_number():
    assert [request_name("a", row, 1) for row in (0, 1)] == ["cmpl-a-0", "cmpl-a-1"]
    assert [request_name("a", row, 2) for row in (0, 1, 2)] == ["0_cmpl-a-0", "1_cmpl-a-0", "0_cmpl-a-1"]
