import torch

from hf_evidenceflow.rollouts.draws import TableDraws, draw_inverse_cdf


def test_a_token_is_drawn_where_its_share_of_the_unit_interval_lies():
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(5, 4)
    uniform = torch.tensor([0.0, 0.24, 0.25, 0.74, 0.75])
    assert draw_inverse_cdf(probs, uniform).tolist() == [0, 0, 2, 2, 3]


def test_a_token_without_weight_is_never_drawn():
    largest = 1 - 2**-24
    for scale in (1.0, 0.3, 7.0):
        probs = scale * torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(2, 5)
        assert draw_inverse_cdf(probs, torch.tensor([0.0, largest])).tolist() == [1, 3]


def test_weights_need_not_sum_to_one():
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(0))
    probs = torch.rand(50, 7, generator=torch.Generator().manual_seed(1))
    scaled = draw_inverse_cdf(probs * 5, uniform)
    assert scaled.tolist() == draw_inverse_cdf(probs / probs.sum(-1, keepdim=True), uniform).tolist()


def test_a_row_and_step_have_one_number_whenever_they_are_drawn():
    probs = torch.ones(1, 1000)
    late, early = [TableDraws(3, torch.device("cpu")) for _ in range(2)]
    torch.manual_seed(0)
    first = late.draw(probs, torch.tensor([2]), torch.tensor([70]), 70)
    torch.manual_seed(0)
    for step in range(70):
        early.draw(probs, torch.tensor([1]), torch.tensor([step]), step)
    assert early.draw(probs, torch.tensor([2]), torch.tensor([70]), 70).tolist() == first.tolist()
