"""Which layer calls a config asks for, and what it refuses."""

import pytest

from hf_evidenceflow import LoopedLlamaConfig


def make(**fields):
    return LoopedLlamaConfig(hidden_size=16, num_attention_heads=2, **fields)


def test_calls_are_prelude_loops_and_coda_in_order():
    config = make(num_unique_layers=5, loop_blocks=[[1, 3]], num_loops=2)
    assert [call.layer for call in config.layer_calls()] == [0, 1, 2, 1, 2, 3, 4]
    assert [call.loop for call in config.layer_calls()] == [0, 0, 0, 1, 1, 0, 0]
    assert config.num_hidden_layers == 7


def test_several_blocks_loop_where_they_stand():
    config = make(num_unique_layers=4, loop_blocks=[[0, 1], [2, 4]], num_loops=2)
    assert [call.layer for call in config.layer_calls()] == [0, 0, 1, 2, 3, 2, 3]


def test_layers_of_a_plain_config_are_those_with_weights():
    config = make(num_hidden_layers=3, num_loops=4)
    assert (config.num_unique_layers, config.num_hidden_layers) == (3, 12)


def test_the_config_comes_back_as_it_was_saved(tmp_path):
    config = make(num_unique_layers=5, loop_blocks=((1, 3),), num_loops=2, loop_damping=True)
    config.save_pretrained(tmp_path)
    again = LoopedLlamaConfig.from_pretrained(tmp_path)
    assert again.layer_calls() == config.layer_calls() and again.num_hidden_layers == 7


@pytest.mark.parametrize("blocks", [[[3, 2]], [[0, 2], [1, 3]], [[0]], [[0, 1.5]], [4], [[-1, 2]]])
def test_blocks_that_are_none_are_refused(blocks):
    with pytest.raises(ValueError, match="`loop_blocks` must be pairs"):
        make(num_unique_layers=4, loop_blocks=blocks)


def test_a_block_behind_the_last_layer_is_refused():
    with pytest.raises(ValueError, match="end behind the last of the 4 layers"):
        make(num_unique_layers=4, loop_blocks=[[2, 5]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_loops": 0}, "`num_loops` must be at least 1, got 0"),
        ({"early_exit_threshold": 0.5}, "needs `exit_gate=True`"),
        ({"exit_gate": True, "loop_blocks": [[0, 2]]}, "one looped block that ends the model"),
        ({"early_exit_mode": "skip"}, "'freeze', 'select', got 'skip'"),
        ({"exit_gate": True, "early_exit_threshold": -0.1}, "at least 0"),
        ({"loop_damping": True, "loop_injection": True}, "Leave one out"),
        ({"loop_token_id": 5}, "chooses what `loop_injection` adds"),
        ({"loop_token_id": 5, "loop_injection": True, "exit_gate": True}, "leave `exit_gate` out"),
        ({"loop_adapter": True, "loop_injection": True}, "leave out `loop_damping`"),
        ({"loop_start_noise": 0.5}, "needs `loop_adapter=True`"),
        ({"num_loop": 2}, "did you mean `num_loops`"),
    ],
)
def test_fields_out_of_their_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(num_unique_layers=4, **fields)


def test_a_number_of_loops_that_is_refused_changes_nothing():
    config = make(num_unique_layers=4, num_loops=2)
    with pytest.raises(ValueError):
        config.set_num_loops(0)
    assert (config.num_loops, config.num_hidden_layers) == (2, 8)
