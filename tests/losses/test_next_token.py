"""Which tokens have a target."""

import pytest
import torch
import torch.nn.functional as F

from hf_evidenceflow.losses import next_token_targets


def test_a_state_is_paired_with_the_label_of_the_next_position():
    index, labels = next_token_targets(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    assert index.tolist() == [0, 1, 3, 4]
    assert labels.tolist() == [6, 7, 9, 10]


def test_ignored_labels_have_no_state():
    index, labels = next_token_targets(torch.tensor([[-100, -100, 7, -100, 9]]))
    assert index.tolist() == [1, 3]
    assert labels.tolist() == [7, 9]


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_on_either_side_is_left_out(dtype):
    labels = torch.tensor([[3, 4, 5, 0, 0], [0, 0, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).to(dtype)
    index, labels = next_token_targets(labels, attention_mask=mask)
    assert index.tolist() == [0, 1, 7, 8]
    assert labels.tolist() == [4, 5, 7, 8]


def test_borders_of_packed_sequences_are_left_out():
    labels = torch.tensor([[10, 11, 12, 13, 14, 15]])
    index, labels = next_token_targets(labels, position_ids=torch.tensor([[0, 1, 2, 0, 0, 1]]))
    assert index.tolist() == [0, 1, 4]
    assert labels.tolist() == [11, 12, 15]


def test_positions_of_one_row_hold_for_all_rows():
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    index, labels = next_token_targets(labels, position_ids=torch.tensor([[0, 1, 0, 1]]))
    assert index.tolist() == [0, 2, 4, 6]
    assert labels.tolist() == [2, 4, 6, 8]


def test_a_batch_without_targets_gives_none():
    for labels in (torch.full((2, 3), -100), torch.tensor([[4], [5]]), torch.zeros(2, 0, dtype=torch.long)):
        index, targets = next_token_targets(labels)
        assert index.tolist() == targets.tolist() == []


def test_the_next_index_is_the_targets_own_position():
    labels = torch.tensor([[3, 4, -100], [5, 6, 7]])
    index, targets = next_token_targets(labels)
    assert labels.flatten()[index + 1].tolist() == targets.tolist() == [4, 6, 7]


def test_the_labels_stay_as_they_are():
    labels, mask = torch.tensor([[3, 4, 0]]), torch.tensor([[1, 1, 0]])
    next_token_targets(labels, mask, torch.tensor([[0, 1, 0]]))
    assert labels.tolist() == [[3, 4, 0]]


def test_alignment_is_that_of_a_transformers_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=23, **sizes))
    labels = torch.randint(23, (2, 5))
    outputs = model(labels, labels=labels.masked_fill(labels % 3 == 0, -100))
    index, targets = next_token_targets(labels.masked_fill(labels % 3 == 0, -100))
    torch.testing.assert_close(F.cross_entropy(outputs.logits.flatten(0, 1)[index], targets), outputs.loss)


def test_other_shapes_are_errors():
    labels = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`labels` must be \[B, T\], got \(5,\)"):
        next_token_targets(labels[0])
    with pytest.raises(ValueError, match=r"`attention_mask` must be .* \(2, 5\), got \(2, 1, 5, 5\)"):
        next_token_targets(labels, attention_mask=torch.ones(2, 1, 5, 5))
    with pytest.raises(ValueError, match=r"`position_ids` must be .* \(2, 5\), or \[1, T\], got \(3, 2, 5\)"):
        next_token_targets(labels, position_ids=torch.zeros(3, 2, 5))
