"""Which tokens have a target, and which layers and features are supervised."""

import pytest
import torch
import torch.nn.functional as F

from hf_evidenceflow.losses import (
    LAYER_WEIGHTS,
    layer_selection,
    layer_weights,
    next_token_targets,
    released_features,
)


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


@pytest.mark.parametrize(
    "spec, layers",
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("every:1", [0, 1, 2, 3, 4, 5, 6]),
        ("every:3", [2, 5]),
        ("every:7", [6]),
        ("last:1", [6]),
        ("last:3", [4, 5, 6]),
        ("last:7", [0, 1, 2, 3, 4, 5, 6]),
        ([0], [0]),
        ([5, 1], [1, 5]),
        ((2, 6), [2, 6]),
    ],
)
def test_layer_selection(spec, layers):
    assert layer_selection(spec, 7) == layers


@pytest.mark.parametrize(
    "spec",
    [
        *("", "al", "every", "every:", "every:0", "every:8", "every:-1", "last:8", "last:02", "first:2", "3"),
        *([], [7], [-1], [1, 1], [True], [1.0], ["1"], 3, None),
    ],
)
def test_a_bad_layer_selection_is_an_error_that_says_what_is_right(spec):
    with pytest.raises(ValueError, match=r"'all', 'every:k' or 'last:k' with k from 1 to 7, or a list .* 0 to 6, got"):
        layer_selection(spec, 7)


@pytest.mark.parametrize("kind", LAYER_WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_layer_weights_have_a_mean_of_one(kind, count):
    weights = layer_weights(kind, count)
    assert len(weights) == count
    assert sum(weights) / count == pytest.approx(1.0)


def test_layer_weights_by_hand():
    assert layer_weights("uniform", 3) == [1.0, 1.0, 1.0]
    assert layer_weights("linear", 3) == pytest.approx([0.5, 1.0, 1.5])
    first, _, _, fourth = layer_weights("drift", 4)
    assert fourth / first == pytest.approx(2.0)


def test_bad_layer_weights_are_errors():
    with pytest.raises(ValueError, match="must be one of 'uniform', 'linear', 'drift', got 'cosine'"):
        layer_weights("cosine", 3)
    with pytest.raises(ValueError, match="at least 1 layer to weigh, got 0"):
        layer_weights("linear", 0)


@pytest.mark.parametrize("num_layers, hidden_size", [(1, 5), (3, 24), (5, 24), (7, 7)])
def test_released_features_share_out_all_dimensions_without_overlap(num_layers, hidden_size):
    blocks = [range(hidden_size)[released_features(num_layers, i, hidden_size)] for i in range(num_layers)]
    assert [feature for block in blocks for feature in block] == list(range(hidden_size))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_features_that_cannot_be_shared_out_are_errors():
    with pytest.raises(ValueError, match="8 layers cannot have a block each of 7 features"):
        released_features(8, 0, 7)
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=f"`layer` must be from 0 to 2, got {layer}"):
            released_features(3, layer, 24)
