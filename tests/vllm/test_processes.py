"""Engines whose core and workers are processes of their own."""

import pytest


pytest.importorskip("vllm")

import engines
from training_forward import compare

from hf_evidenceflow.integrations.vllm.worker import WORKER, read_thinking


pytestmark = pytest.mark.slow


@pytest.fixture
def far_engine(monkeypatch, checkpoint):
    """Makes an engine with its core in another process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    made = []

    def make(**kwargs):
        made.append(engines.make_engine(checkpoint(), worker_extension_cls=WORKER, **kwargs))
        return made[-1]

    yield make
    for llm in made:
        engines.close(llm)


def test_an_engine_core_in_another_process_hands_its_states_over(far_engine, reference):
    llm = far_engine()
    llm.collective_rpc("record_thinking", args=(True,))
    outputs = engines.run(llm, engines.make_prompts())
    assert engines.tokens_of(outputs) == reference()
    assert llm.collective_rpc("thinking_stats") == [{"live": 0, "left": 24}]
    lengths = engines.lengths_of(outputs)
    taken = read_thinking(llm.collective_rpc("take_thinking", args=(lengths,))[0])
    assert {name: len(states) for name, (states, _) in taken.items()} == lengths
    assert sum(mask.all().item() for _, mask in taken.values()) > 20
    assert llm.collective_rpc("thinking_stats") == [{"live": 0, "left": 0}]


@pytest.mark.parametrize("mode", ["projection", "embedding"])
def test_two_tensor_parallel_workers_think_as_one(far_engine, checkpoint, mode):
    llm = far_engine(tensor_parallel_size=2, hf_overrides={"thinking_mode": mode})
    llm.collective_rpc("record_thinking", args=(True,))
    outputs = engines.run(llm, engines.make_prompts(8))
    taken = read_thinking(llm.collective_rpc("take_thinking", args=(engines.lengths_of(outputs),))[0])
    model = engines.load(checkpoint(), thinking_mode=mode)
    for output in outputs:
        gap, offset = compare(model, output, output.outputs[0], *taken[output.request_id], {})
        assert gap <= 1e-4 and offset <= 1e-4, (gap, offset)
