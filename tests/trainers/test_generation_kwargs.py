"""Entries of `generation_kwargs` do in rollouts what they say, or are refused at the start."""

import re

import pytest
import torch
from saved_rollouts_worker import RecordedTrainer, make_trainer
from transformers.generation import StopStringCriteria

from hf_evidenceflow import HRPOConfig
from hf_evidenceflow.trainers.generation_kwargs import check_generation_kwargs, stop_lengths
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer


STOPS = ["3", "b", "7"]  # in no special token


def trainer_that_stops(checkpoint, output, **settings):
    settings = {
        "max_completion_length": 30,
        "generation_kwargs": {"stop_strings": STOPS},
        "max_steps": 1,
        "save_strategy": "no",
        **settings,
    }
    return make_trainer(checkpoint, output, **settings)


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("mode", ["projection", "soft", "none", "ppo"])
def test_a_completion_ends_at_its_first_stop_string(plain_checkpoint, tmp_path, mode, engine):
    kind = {"trainer": PPOTrainer, "config": PPOConfig, "mode": "none"} if mode == "ppo" else {"mode": mode}
    trainer = trainer_that_stops(plain_checkpoint, tmp_path, use_rollout_engine=engine, **kind)
    prompts = [[5, 9], [7], [11, 12, 30], [40]] * 4
    torch.manual_seed(0)
    completions, _ = trainer._generate_single_turn(prompts, None, {}, 1)
    texts = [trainer.processing_class.decode(ids) for ids in completions]
    assert all(not any(stop in text[:-1] for stop in STOPS) for text in texts), texts
    ended = [text for text in texts if text[-1] in STOPS]
    assert len({len(text) for text in ended}) > 2  # at several lengths


def test_no_end_of_sequence_is_added_where_it_is_the_padding_too(plain_checkpoint, tmp_path):
    trainer = trainer_that_stops(plain_checkpoint, tmp_path, mode="none")
    trainer._tokenizer.pad_token = trainer._tokenizer.eos_token
    trainer.generation_config.pad_token_id = trainer._tokenizer.eos_token_id
    torch.manual_seed(0)
    completions, _ = trainer._generate_single_turn([[5, 9], [7]] * 8, None, {}, 1)
    texts = [trainer.processing_class.decode(ids, skip_special_tokens=True) for ids in completions]
    ended = [ids for ids, text in zip(completions, texts) if text and text[-1] in STOPS]
    assert ended and all(ids[-1] != trainer._tokenizer.eos_token_id for ids in ended)


def test_training_counts_stopped_completions_as_terminated_and_keeps_parity(plain_checkpoint, tmp_path):
    trainer = trainer_that_stops(plain_checkpoint, tmp_path, parity_check_steps=1)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["completions/clipped_ratio"] < 1
    assert 0 < logs["completions/min_terminated_length"] <= logs["completions/max_terminated_length"] <= 30
    assert logs["thinking/parity_gap"] < 1e-4


def test_a_stop_string_may_begin_in_the_prompt_or_inside_a_token(tokenizer):
    ids = {text: tokenizer(text)["input_ids"] for text in ("ab", "xc", "cda", "##")}
    criterion = StopStringCriteria(tokenizer, ["bc", "a#"])
    found = stop_lengths(criterion, [ids["ab"], ids["xc"]], [ids["cda"], [*ids["cda"], *ids["##"]]], pad_id=0)
    assert found == [1, 4]


def test_padding_after_a_shorter_row_ends_nothing(tokenizer):
    criterion = StopStringCriteria(tokenizer, ["<pad>"])
    a, b = tokenizer("a")["input_ids"], tokenizer("abcd")["input_ids"]
    assert stop_lengths(criterion, [a, a], [a, b], pad_id=0) == [None, None]


@pytest.mark.parametrize(
    "entries, mode, message",
    [
        ({"stop_string": ["a"]}, "none", "'stop_string', which `generate` does not know. Did you mean 'stop_strings'"),
        ({"temperature": 0.9}, "none", "contradicts `temperature=0.5`"),
        ({"max_new_tokens": 5}, "none", "Set `max_completion_length=5`"),
        ({"num_return_sequences": 2}, "none", "cannot work in rollouts: a prompt is in the batch once"),
        ({"return_dict_in_generate": True}, "none", "TRL reads the tokens as one tensor"),
        ({"token_healing": True}, "none", "it changes the prompts"),
        ({"num_beams": 3}, "soft", "asks for beam sample, and thinking models"),
        ({"prompt_lookup_num_tokens": 2}, "projection", "asks for assisted generation, and thinking models"),
    ],
)
def test_an_entry_that_cannot_work_is_refused_by_name(tmp_path, entries, mode, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_generation_kwargs(HRPOConfig(str(tmp_path), bf16=False, generation_kwargs=entries), mode)


def test_entries_that_work_are_accepted(tmp_path):
    entries = {"stop_strings": "a", "do_sample": False, "min_new_tokens": 2, "num_return_sequences": 1}
    check_generation_kwargs(HRPOConfig(str(tmp_path), bf16=False, generation_kwargs=entries), "projection")
    check_generation_kwargs(HRPOConfig(str(tmp_path), bf16=False, generation_kwargs={"num_beams": 2}), "none")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generation_kwargs": {"stop_strings": ["a", ""]}}, "`stop_strings` must be texts that are not empty"),
        ({"mask_truncated_completions": True}, "`mask_truncated_completions=True` with `stop_strings="),
    ],
)
def test_stop_strings_that_cannot_work_are_refused_by_the_constructor(plain_checkpoint, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer_that_stops(plain_checkpoint, tmp_path, **settings)


@pytest.mark.parametrize("mode", ["projection", "none"])
def test_another_end_of_sequence_ends_completions(plain_checkpoint, tmp_path, mode):
    ends = list(range(5, 25))
    settings = {"generation_kwargs": {"eos_token_id": ends}, "trainer": RecordedTrainer, "mode": mode}
    trainer = trainer_that_stops(plain_checkpoint, tmp_path, **settings)
    torch.manual_seed(0)
    completions, _ = trainer._generate_single_turn([[5, 9], [7]] * 4, None, {}, 1)
    assert all(token not in ends for ids in completions for token in ids[:-1])
    assert any(len(ids) < 30 for ids in completions)
