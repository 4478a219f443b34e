from types import SimpleNamespace

import pytest

from hf_evidenceflow.recipes.command_line.number_checks import (
    check_least,
    check_positive,
    check_share,
    check_training,
)
from hf_evidenceflow.trainers.hrpo_config import HRPOConfig


ARGUMENTS = SimpleNamespace(rows=1, steps=None, top_p=0.5, temperature=0.0)


def test_numbers_in_their_ranges_and_those_not_given_pass():
    check_least(ARGUMENTS, rows=1, steps=2)
    check_positive(ARGUMENTS, "rows", "steps")
    check_share(ARGUMENTS, "top_p", "steps")


def test_a_number_outside_its_range_is_named_with_its_value():
    with pytest.raises(ValueError, match="`rows` must be at least 2, got 1"):
        check_least(ARGUMENTS, top_p=0, rows=2)
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got 0\.0"):
        check_positive(ARGUMENTS, "rows", "temperature")
    with pytest.raises(ValueError, match=r"`temperature` must be in \(0, 1\], got 0\.0"):
        check_share(ARGUMENTS, "temperature")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": -1.0}, r"`learning_rate` must be at least 0, got -1\.0"),
        ({"max_completion_length": 0}, "`max_completion_length` must be at least 1, got 0"),
        ({"temperature": 0.0}, r"`temperature` must be above 0, got 0\.0"),
    ],
)
def test_settings_that_a_training_cannot_have_are_refused(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_training(HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **setting))


def test_adapters_have_a_rank_and_quantized_weights_need_one():
    check_training(SimpleNamespace(load_in_4bit=True, use_peft=True, lora_r=None))
    with pytest.raises(ValueError, match="`lora_r` must be at least 1, got 0"):
        check_training(SimpleNamespace(lora_r=0))
    with pytest.raises(ValueError, match="`load_in_4bit` leaves no weight to train. Give `--use_peft true`"):
        check_training(SimpleNamespace(load_in_4bit=True, use_peft=False))
