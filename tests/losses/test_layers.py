"""Which layers are supervised, how strongly, and on which features."""

import pytest

from hf_evidenceflow.losses import LAYER_WEIGHTS, layer_selection, layer_weights, released_features
from hf_evidenceflow.losses.layers import enabled_layers, layer_skip_weights


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


def test_layer_skip_weights_by_hand():
    weights, last = layer_skip_weights([0, 1, 3], 5, scale=0.5)
    # Published: 0.5 * (0, 1, 3, 6) for the early layers, 4 + 0.5 * 6 for the last
    total = 0.5 + 3.0 + 7.0
    assert weights == pytest.approx({0: 0.0, 1: 0.5 / total, 3: 3.0 / total}) and last == pytest.approx(7.0 / total)
    with pytest.raises(ValueError, match="leave it out of `layers`"):
        layer_skip_weights([3, 4], 5, scale=0.5)


def test_the_rotation_enables_each_layer_once_in_a_period():
    steps = [enabled_layers("rotational:3", range(7), 8, step, 100) for step in range(4)]
    assert steps == [[0, 3, 6], [1, 4], [2, 5], [0, 3, 6]]


def test_the_gradual_curriculum_goes_from_the_last_layer_down():
    counts = [enabled_layers("gradual", range(4), 5, step, 20) for step in range(0, 12, 2)]
    assert counts == [[], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


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
