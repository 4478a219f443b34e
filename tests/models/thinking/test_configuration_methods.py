"""Fields that change parts of a way of thinking: what they give, and what is refused."""

import json

import pytest

from hf_evidenceflow import ThinkingQwen2Config
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


@pytest.mark.parametrize("mode", THINKING_METHODS)
def test_a_mode_without_fields_is_its_row(mode):
    config = ThinkingQwen2Config(
        thinking_mode=mode, thinking_count=2, thinking_placeholder_id=3, thinking_start_id=4, thinking_end_id=5
    )
    assert config.thinking_method is THINKING_METHODS[mode] or config.thinking_method == THINKING_METHODS[mode]


def test_fields_change_the_parts_of_a_mode_and_survive_saving(tmp_path):
    parts = {"source": "fusion", "mixer": "gated", "schedule": "entropy", "noise": "dropout"}
    config = ThinkingQwen2Config(thinking_mode="soft", **{f"thinking_{name}": part for name, part in parts.items()})
    config.save_pretrained(tmp_path)
    method = ThinkingQwen2Config.from_pretrained(tmp_path).thinking_method
    assert {name: getattr(method, name) for name in parts} == parts


def test_mode_none_stays_the_base_model_whatever_the_fields_are():
    config = ThinkingQwen2Config(thinking_mode="none", thinking_mixer="replace", thinking_noise="gaussian")
    assert config.thinking_method == THINKING_METHODS["none"]


def test_a_config_saved_before_these_fields_gives_what_it_gave(tmp_path):
    config = ThinkingQwen2Config(thinking_mode="coconut", thinking_count=2, thinking_placeholder_id=3)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    new = [name for name in saved if name.startswith("thinking_") and name not in OLD]
    path.write_text(json.dumps({name: value for name, value in saved.items() if name not in new}))
    loaded = ThinkingQwen2Config.from_pretrained(tmp_path)
    assert len(new) > 10 and loaded.thinking_method == THINKING_METHODS["coconut"]
    assert loaded.averaged_tokens is None and loaded.thinking_temperature == 1 and not loaded.thinking_has_head


OLD = ("thinking_mode", "thinking_count", "thinking_placeholder_id", "thinking_token_policy", "thinking_answer_start")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_source": "mean"}, "`thinking_source` must be one of 'mean_embedding', .* or None, got 'mean'"),
        ({"thinking_schedule": "never"}, "`thinking_schedule` must be one of 'until_marker'"),
        ({"thinking_noise": "white"}, "`thinking_noise` must be one of 'none', 'gaussian'"),
        ({"thinking_top_k": 0}, "`thinking_top_k` must be an integer of at least 1, got 0"),
        ({"thinking_temperature": 0}, "`thinking_temperature` must be above 0, got 0"),
        ({"thinking_sigma": -0.1}, "`thinking_sigma` must be a number of at least 0, got -0.1"),
        ({"thinking_noise_dropout": 1.0}, r"`thinking_noise_dropout` must be in \[0, 1\), got 1.0"),
        ({"thinking_fusion": 1.2}, "`thinking_fusion` must be a number of at least 0 and at most 1, got 1.2"),
        ({"thinking_max_blocks": -1}, "`thinking_max_blocks` must be an integer of at least 0, got -1"),
        ({"thinking_mode": "pause", "thinking_count": 1, "thinking_mixer": "add"}, "has none: set `thinking_source`"),
        ({"thinking_mode": "pause", "thinking_count": 1, "thinking_noise": "gaussian"}, "is noise on a state"),
        ({"thinking_noise": "gumbel"}, "needs the source 'mean_embedding' or .*, got 'projection'"),
        ({"thinking_mode": "later"}, "thinks a fixed number of tokens: set `thinking_count`"),
        ({"thinking_mode": "switch"}, "set `thinking_start_id` and `thinking_end_id` to two different ids, got None"),
        ({"thinking_mode": "switch", "thinking_start_id": 4, "thinking_end_id": 4}, "two different ids, got 4 and 4"),
        (
            {"thinking_mode": "soft", "thinking_token_policy": "drawn"},
            "needs `thinking_noise='gumbel'`, got 'none'",
        ),
        ({"thinking_token_policy": "placeholder"}, "never draws a token that could end the thinking"),
        ({"thinking_mode": "later", "thinking_count": 2}, "set `thinking_placeholder_id`"),
    ],
)
def test_fields_that_do_not_exist_or_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ThinkingQwen2Config(**fields)


def test_a_part_that_is_assigned_later_is_checked_when_the_model_is_used():
    config = ThinkingQwen2Config(thinking_mode="soft")
    config.thinking_noise = "loud"
    with pytest.raises(ValueError, match="`thinking_noise` must be one of"):
        config.check_thinking()
