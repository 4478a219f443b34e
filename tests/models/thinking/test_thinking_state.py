"""The state machine of thinking by itself: rows at hand against all rows, ends, and what is fed."""

import pytest
import torch

from hf_evidenceflow.models.thinking.answer_marker import MarkerAutomaton
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.models.thinking.thinking_sources import StateSource, sparse_soft_state
from hf_evidenceflow.models.thinking.thinking_state import ThinkingState


ROWS, VOCABULARY, HIDDEN = 3, 11, 5
CPU = torch.device("cpu")
MARKER = 7  # twice in a row
EMBEDDING = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, MARKER, MARKER, 2], [MARKER, 3, MARKER, 4], [MARKER, MARKER, 5, MARKER]])


def make_state(mode="soft", marker=True):
    table = torch.zeros(3, VOCABULARY + 1, dtype=torch.long)
    table[:2, MARKER] = torch.tensor([1, 2])
    table[2] = 2
    source = StateSource(THINKING_METHODS[mode], EMBEDDING)
    return ThinkingState(mode, source, MarkerAutomaton(table) if marker else None, ROWS, CPU)


def test_a_row_thinks_until_its_marker_is_complete():
    state = make_state()
    masks = torch.stack([state.observe(tokens) for tokens in TOKENS.T], dim=1)
    assert masks.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]


def test_rows_at_hand_think_as_all_rows_do():
    expected, state = make_state(), make_state()
    for step, tokens in enumerate(TOKENS.T):
        masks = expected.observe(tokens)
        for rows in (torch.tensor([2, 0]), torch.tensor([1])):
            assert state.observe(tokens[rows], rows).tolist() == masks[rows].tolist(), step
        assert torch.equal(state.marker_state, expected.marker_state)


def test_a_row_that_stays_after_its_end_thinks_no_more_and_keeps_its_place_in_the_marker():
    state = make_state()
    state.observe(torch.full((ROWS,), MARKER))
    state.finish(torch.tensor([False, True, False]))
    assert state.observe(torch.full((ROWS,), 1)).tolist() == [True, False, True]
    assert state.marker_state.tolist() == [0, 0, 0]


def test_it_resumes_within_the_marker():
    state = make_state()
    state.resume((torch.tensor([0, 1, 2]), state.memory))
    assert state.thinking.tolist() == [True, True, False]
    assert state.observe(torch.full((ROWS,), MARKER)).tolist() == [True, False, False]


@pytest.mark.parametrize("mode", ["embedding", "soft"])
def test_on_a_cpu_only_rows_that_think_get_a_weighted_embedding(mode):
    state = make_state(mode)
    scores = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    everything = state.next_states(scores, None)
    state.finish(torch.tensor([False, True, False]))
    found = state.next_states(scores, None)
    torch.testing.assert_close(found[[0, 2]], everything[[0, 2]])
    assert everything.any(1).all() and not found[1].any()


def test_a_pass_in_which_no_row_thinks_computes_no_gates():
    states = torch.zeros(ROWS, 1, HIDDEN)
    assert set(make_state().inputs(states, torch.zeros(ROWS, 1, dtype=torch.bool))) == {"thinking_recorder"}
    mask = torch.tensor([[False], [True], [False]])
    assert make_state().inputs(states, mask)["thinking_mask"] is mask


def peaked_scores(vocabulary):
    scores = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(1))
    return scores.index_fill_(1, torch.tensor([2]), 13.5)


def average(vocabulary, approximate):
    embedding = torch.randn(vocabulary, HIDDEN, generator=torch.Generator().manual_seed(2))
    source = StateSource(THINKING_METHODS["soft"], embedding, approximate=approximate)
    state = ThinkingState("soft", source, None, ROWS, CPU)
    return state.next_states(peaked_scores(vocabulary), None), embedding


def test_a_weighted_embedding_is_exact_by_default():
    found, embedding = average(20_000, approximate=False)
    assert torch.equal(found, peaked_scores(20_000).softmax(-1) @ embedding)


def test_the_approximation_is_that_of_the_likely_tokens_bit_for_bit():
    found, embedding = average(20_000, approximate=True)
    probs = peaked_scores(20_000).softmax(-1)
    assert torch.equal(found, sparse_soft_state(probs, embedding, embedding.mean(0)))
    assert not torch.allclose(found, probs @ embedding, rtol=0, atol=1e-4)
