import math

import pytest
import torch
import torch.nn.functional as F

from hf_evidenceflow.probe.measures import (
    drift_rate,
    effective_depth,
    effective_rank,
    lens_measures,
    state_measures,
)


@pytest.fixture
def lens():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11) * 3, torch.tensor([0, 3, 10, 7, 7])
    return logits, labels, lens_measures(logits, labels, top_k=4)


def test_the_lens_loss_is_the_cross_entropy(lens):
    logits, labels, found = lens
    assert torch.allclose(found.loss, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-6)


def test_the_rank_is_the_place_in_the_sorted_logits(lens):
    logits, labels, found = lens
    order = logits.argsort(dim=-1, descending=True).tolist()
    assert found.rank.tolist() == [row.index(label) + 1 for row, label in zip(order, labels.tolist())]


def test_equal_logits_rank_by_id_so_that_no_information_is_no_hit():
    assert lens_measures(torch.zeros(2, 7), torch.tensor([0, 4])).rank.tolist() == [1, 5]


def test_the_entropy_is_in_nats_and_greatest_for_equal_logits():
    assert lens_measures(torch.zeros(1, 7), torch.tensor([2])).entropy.item() == pytest.approx(math.log(7))


def test_logits_of_minus_infinity_give_no_nan():
    found = lens_measures(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]))
    assert found.entropy.item() == pytest.approx(math.log(2)) and found.log_odds.item() == pytest.approx(0, abs=1e-6)


def test_log_odds_keep_their_digits_for_a_label_that_is_sure():
    found = lens_measures(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([0]))
    assert found.log_odds.item() == pytest.approx(40 - math.log(2), rel=1e-6)


def test_the_top_tokens_come_best_first_and_never_exceed_the_vocabulary():
    found = lens_measures(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0]), top_k=5)
    assert found.top_ids.tolist() == [[1, 2, 0]] and found.top_probabilities.sum().item() == pytest.approx(1)


def test_a_step_is_measured_against_the_norm_before_it():
    before, after = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 6.0]])
    found = state_measures(after, before, before, before)
    assert found["step_norm"].item() == pytest.approx(2) and found["relative_step"].item() == pytest.approx(2 / 5)


def test_the_embedding_has_no_step():
    states = torch.ones(2, 3)
    assert state_measures(states, None, states, states)["relative_step"].isnan().all()


def test_the_two_cosines_are_to_the_two_rows():
    states, target, output_row = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[-3.0, 0.0]])
    found = state_measures(states, None, target, output_row)
    assert found["cosine_to_target"].item() == 0 and found["cosine_to_output_row"].item() == -1


@pytest.mark.parametrize("directions", [1, 3])
def test_equal_singular_values_give_their_number(directions):
    states = torch.eye(5)[:directions].repeat(4, 1) * 7
    assert effective_rank(states) == pytest.approx(directions, rel=1e-5)


def test_unequal_singular_values_count_by_their_entropy():
    weights = torch.tensor([0.5, 0.25, 0.25])
    expected = math.exp(-sum(w * math.log(w) for w in weights.tolist()))
    assert effective_rank(torch.diag(weights) * 9) == pytest.approx(expected, rel=1e-5)


def test_states_of_zero_have_rank_zero_and_infinite_ones_none():
    assert effective_rank(torch.zeros(3, 4)) == 0
    assert math.isnan(effective_rank(torch.full((3, 4), torch.inf)))


def test_the_drift_rate_is_the_slope_whatever_the_start():
    depth = torch.arange(4.0).unsqueeze(1)  # [L, 1]
    evidence = torch.tensor([2.0, -0.5]) * depth + torch.tensor([-30.0, 5.0])
    assert torch.allclose(drift_rate(evidence), torch.tensor([2.0, -0.5]))


def test_the_drift_rate_is_the_least_squares_one():
    from scipy.stats import linregress

    evidence = torch.tensor([-4.0, 1.0, 0.5, 3.0, 2.0])
    expected = linregress(range(5), evidence.tolist()).slope
    assert drift_rate(evidence.unsqueeze(1)).item() == pytest.approx(expected, rel=1e-6)


def test_the_effective_depth_counts_layers_above_the_threshold():
    steps = torch.tensor([[0.5, 0.01], [0.05, 0.02], [0.3, torch.nan]])  # [L, N]
    assert effective_depth(steps, 0.1).tolist() == [2, 0]
