"""The store of thinking states, without vLLM."""

import pytest
import torch

from hf_evidenceflow.integrations.vllm.records import HostCopies, RecordStore, outer_id


WIDTH = 3


def make_store(spare=2, keeps=False):
    return RecordStore(HostCopies(4, WIDTH, torch.float32, torch.device("cpu")), spare, keeps)


def push(store, step, *ids):
    """A step whose state of each row is `10 * step + row`, and whose automaton is in state `step`."""
    states = 10.0 * step + torch.arange(len(ids))[:, None].expand(-1, WIDTH)
    store.push(states, torch.full((len(ids),), step), list(ids))


def test_rows_of_a_batch_that_changes_go_to_their_requests():
    store = make_store(keeps=True)
    for name in ("0-aaaaaaaa", "1-bbbbbbbb"):
        store.begin(name, 0)
    push(store, 1, "0-aaaaaaaa", None)  # the other row is in the middle of its prompt
    push(store, 2, "1-bbbbbbbb", "0-aaaaaaaa")
    store.end("0-aaaaaaaa")
    taken = store.take({"0": 2, "1": 1}, WIDTH)
    assert taken["0"][0][:, 0].tolist() == [10.0, 21.0] and taken["0"][1].tolist() == [1, 2]
    assert taken["1"][0][:, 0].tolist() == [20.0] and taken["1"][1].tolist() == [2]
    assert not store.live and not store.left


def test_a_buffer_that_is_written_again_does_not_change_a_record():
    store = make_store(keeps=True)
    store.begin("0", 0)
    states = torch.zeros(1, WIDTH)
    store.push(states, torch.tensor([1]), ["0"])
    states += 1
    assert store.take({"0": 1}, WIDTH)["0"][0].sum() == 0


def test_a_request_that_comes_back_has_its_record_cut_to_the_known_tokens():
    store = make_store()
    store.begin("0", 0)
    for step in (1, 2, 3):
        push(store, step, "0")
    store.end("0")
    record = store.begin("0", 2)
    assert record.markers == [1, 2] and record.states(2)[:, 0].tolist() == [10.0, 20.0]
    push(store, 7, "0")
    assert store.live["0"].markers == [1, 2, 7]


def test_a_request_that_comes_back_without_its_record_is_an_error():
    store = make_store(spare=1)
    for name in ("0", "1"):
        store.begin(name, 0)
        push(store, 1, name)
        store.end(name)
    with pytest.raises(RuntimeError, match="0 comes back with 1 completion tokens, and thinking states of 0 are"):
        store.begin("0", 1)
    assert store.begin("1", 1).markers == [1]


@pytest.mark.parametrize("keeps, left", [(False, 2), (True, 5)])
def test_of_requests_that_have_left_few_records_stay_unless_they_are_asked_for(keeps, left):
    store = make_store(keeps=keeps)
    for name in "abcde":
        store.begin(name, 0)
        store.end(name)
    assert list(store.left) == list("abcde")[-left:]
    store.clear()
    assert not store.left


def test_a_completion_of_another_length_than_recorded_is_an_error():
    store = make_store(keeps=True)
    store.begin("0", 0)
    with pytest.raises(KeyError, match="2 thinking states of the request '0' were asked for, and 0 are recorded"):
        store.take({"0": 2}, WIDTH)
    with pytest.raises(KeyError, match="and none are recorded"):
        store.take({"0": 2}, WIDTH)


@pytest.mark.parametrize("inner, outer", [("17-1a2b3c4d", "17"), ("3_17-1a2b3c4d", "3_17"), ("17", "17")])
def test_random_characters_of_an_id_are_dropped(inner, outer):
    assert outer_id(inner) == outer
