"""The sweeps measure what truncated and adaptive passes give; the timing compares within a round."""

import pytest
import torch
import torch.nn.functional as F

from hf_evidenceflow.early_exit import (
    EarlyExitConfig,
    GreedyDecoding,
    SelfSpeculation,
    confidence,
    exit_at,
    exit_sweep,
    in_turn,
    relative_change,
    threshold_sweep,
)


@pytest.fixture
def batches():
    """Two padded batches, the second with labels that leave out its first row."""
    torch.manual_seed(2)
    first = {"input_ids": torch.randint(3, 97, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    first["attention_mask"][0, 4:] = 0
    second = {"input_ids": torch.randint(3, 97, (2, 5))}
    second["labels"] = second["input_ids"].clone()
    second["labels"][0] = -100
    return [first, second]


@torch.no_grad()
def logits_and_labels(model, batches):
    """Logits and right next tokens of all valid positions."""
    logits, labels = [], []
    for batch in batches:
        target = batch.get("labels", batch["input_ids"]).clone()
        if "attention_mask" in batch:
            target[batch["attention_mask"] == 0] = -100
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        valid = target[:, 1:] != -100
        logits.append(model(**inputs).logits[:, :-1][valid])
        labels.append(target[:, 1:][valid])
    return torch.cat(logits), torch.cat(labels)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_row_of_the_sweep_is_the_truncated_model(make_model, batches, family):
    model = make_model(family)
    rows = exit_sweep(model, batches, chunk_size=5)
    full, labels = logits_and_labels(model, batches)
    assert [row.depth for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        with exit_at(model, int(row.depth)):
            logits, _ = logits_and_labels(model, batches)
        choice = logits.argmax(-1)
        assert row.tokens == len(labels) == 3 + 6 + 6 + 4
        assert row.perplexity == pytest.approx(F.cross_entropy(logits, labels).exp().item(), rel=1e-5)
        assert row.accuracy == pytest.approx((choice == labels).double().mean().item())
        assert row.agreement == pytest.approx((choice == full.argmax(-1)).double().mean().item())


def test_the_last_exit_agrees_with_the_model_everywhere(make_model, batches):
    assert exit_sweep(make_model("qwen2"), batches, layers="last:1")[0].agreement == 1.0


def test_a_threshold_that_is_never_met_is_full_depth(trained, batches):
    (never,) = threshold_sweep(trained, batches, [EarlyExitConfig(layers="last:1")])
    (full,) = exit_sweep(trained, batches, layers="last:1")
    assert (never.depth, never.agreement, never.accuracy) == (5.0, 1.0, full.accuracy)
    assert never.perplexity == pytest.approx(full.perplexity, rel=1e-5)


def test_a_threshold_that_is_always_met_is_the_first_layer(trained, batches):
    (always,) = threshold_sweep(trained, batches, [EarlyExitConfig(threshold=0.0)], prompt_length=0)
    (first,) = exit_sweep(trained, batches, layers=[0])
    assert (always.depth, always.agreement, always.accuracy) == (1.0, first.agreement, first.accuracy)
    assert always.perplexity == pytest.approx(first.perplexity, rel=1e-5)


def test_a_higher_threshold_goes_deeper(trained, prompts):
    rows = threshold_sweep(trained, [prompts], [EarlyExitConfig(threshold=value) for value in (0.03, 0.3, 0.99)])
    assert rows[0].depth < rows[1].depth < rows[2].depth


def test_batches_without_a_target_are_refused(make_model):
    with pytest.raises(ValueError, match="no token"):
        exit_sweep(make_model("llama"), [{"input_ids": torch.tensor([[3]])}])


def test_confidence_is_the_top_probability_in_chunks():
    torch.manual_seed(0)
    states, head = torch.randn(7, 3), torch.randn(3, 11)
    expected = (states @ head).softmax(-1).amax(-1)
    torch.testing.assert_close(confidence(states, lambda chunk: chunk @ head, chunk_size=2), expected)


def test_relative_change_is_the_step_by_the_norm_before():
    before, after = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 5.0], [1.0, 3.0]])
    torch.testing.assert_close(relative_change(before, after), torch.tensor([0.2, 3.0]))


def test_candidates_take_turns_and_are_compared_within_a_round(monkeypatch):
    clock, calls = [0.0], []
    seconds = {"full": [0.0, 2.0, 4.0, 8.0], "early": [0.0, 1.0, 2.0, 2.0]}  # the first one untimed
    monkeypatch.setattr("hf_evidenceflow.early_exit.speed.time.perf_counter", lambda: clock[0])

    def candidate(name):
        clock[0] += seconds[name][calls.count(name)]
        calls.append(name)
        return 8

    speeds = in_turn({name: lambda name=name: candidate(name) for name in seconds}, rounds=3)
    assert calls == ["full", "early", "full", "early", "early", "full", "full", "early"]
    assert (speeds["full"].ratio, speeds["full"].tokens_per_second) == (1.0, 2.0)
    assert (speeds["early"].ratio, speeds["early"].ratio_min, speeds["early"].ratio_max) == (2.0, 2.0, 4.0)


@pytest.mark.parametrize("candidates, rounds", [({}, 3), ({"full": lambda: 1}, 0)])
def test_nothing_to_time_is_refused(candidates, rounds):
    with pytest.raises(ValueError, match=f"rounds={rounds}"):
        in_turn(candidates, rounds)


def test_all_ways_of_decoding_count_their_tokens(trained, prompts):
    decoding = GreedyDecoding(trained, [prompts["input_ids"][1:2]] * 2, 5)
    expected = sum(map(len, decoding.outputs()))
    assert decoding.full() == decoding.stock(2) == decoding.speculative(SelfSpeculation(trained, 2)) == expected
    assert decoding.truncated(5) == decoding.adaptive(EarlyExitConfig(layers="last:1")) == expected


def test_the_interval_of_an_exit_is_over_the_rows(make_model, batches):
    (row,) = exit_sweep(make_model("llama"), batches, layers=[0])
    low, high = row.perplexity_95
    assert low < row.perplexity < high
    assert row.agreement_95[0] <= row.agreement <= row.agreement_95[1]
