"""Requests that lose their cache blocks come back with the states that are recorded of them."""

import pytest


pytest.importorskip("vllm")

import engines


pytestmark = pytest.mark.slow


# Completions of all seats need about twice as many blocks of 32 tokens
SMALL = {"num_gpu_blocks_override": 20, "max_num_seqs": 12}


@pytest.fixture
def count_replays(monkeypatch):
    """Completion tokens of requests that have come back."""
    from hf_evidenceflow.integrations.vllm.records import RecordStore

    counts, begin = [], RecordStore.begin

    def counting(self, request_id, count):
        counts.append(count)
        return begin(self, request_id, count)

    monkeypatch.setattr(RecordStore, "begin", counting)
    return counts


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_preempted_requests_go_on_with_their_recorded_states(
    engine, checkpoint, reference, count_replays, caching, ahead
):
    llm = engine(checkpoint(), enable_prefix_caching=caching, async_scheduling=ahead, **SMALL)
    assert engines.tokens_of(engines.run(llm, engines.make_prompts())) == reference()
    assert sum(count_replays) > 50


def test_without_replay_a_preempted_request_goes_wrong(engine, checkpoint, reference, count_replays, monkeypatch):
    from hf_evidenceflow.integrations.vllm.model_state import ThinkingModelState

    monkeypatch.setattr(ThinkingModelState, "_replay", lambda *args: None)
    llm = engine(checkpoint(), enable_prefix_caching=False, **SMALL)
    tokens = engines.tokens_of(engines.run(llm, engines.make_prompts()))
    assert sum(count_replays) > 50
    assert tokens != reference()


def test_a_preempted_request_without_records_is_an_error(engine, checkpoint, monkeypatch):
    llm = engine(checkpoint(), enable_prefix_caching=False, **SMALL)
    store = engines.model_state(llm).records
    monkeypatch.setattr(store, "spare", 0)
    with pytest.raises(Exception, match="comes back with .* completion tokens, and thinking states of 0 are recorded"):
        engines.run(llm, engines.make_prompts())
