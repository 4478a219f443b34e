"""Data that could not be rolled out or rewarded is refused with its row or column before the first rollout."""

import functools
from types import SimpleNamespace

import pytest
from datasets import Dataset
from saved_rollouts_worker import make_trainer

from hf_evidenceflow.tasks import gsm8k_reward
from hf_evidenceflow.trainers.data_checks import check_columns, check_prompts
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer


def reward(completions, solution, **kwargs):
    return [0.0] * len(completions)


async def judge(prompts, completions, rubric, level=1, **kwargs):
    return [0.0] * len(completions)


class Grader:
    def __call__(self, completions, target, log_metric):
        return [0.0] * len(completions)


@pytest.mark.parametrize(
    "function, column",
    [(reward, "solution"), (judge, "rubric"), (Grader(), "target"), (functools.partial(judge, level=2), "rubric")],
)
def test_a_column_that_a_reward_takes_must_be_there(function, column):
    data = Dataset.from_list([{"prompt": "ab", "answer": "3"}])
    with pytest.raises(ValueError, match=f"no column `{column}`, which the reward .* needs; it has prompt, answer"):
        check_columns([function], [data, None])
    check_columns([function], data.add_column(column, ["x"]))


def test_prompts_must_be_there_and_columns_must_not_be_removed():
    data = Dataset.from_list([{"question": "ab", "solution": "3"}])
    with pytest.raises(ValueError, match="no column `prompt`, which the rollout needs; it has question, solution"):
        check_columns([reward], data)
    with pytest.raises(ValueError, match="`remove_unused_columns=True` removes the column `solution`"):
        check_columns([reward], data.rename_column("question", "prompt"), remove_unused_columns=True)


def test_optional_arguments_and_what_the_trainer_gives_need_no_column():
    def free(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, weight=1.0, **kwargs):
        return [0.0] * len(completions)

    check_columns([free, max, SimpleNamespace()], {"a": Dataset.from_list([{"prompt": "ab"}])})


USER = {"role": "user", "content": "ab"}


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "Row 1 of the data set has an empty prompt"),
        ([], "Row 1 of the data set has an empty prompt"),
        ([{"role": "user", "content": ""}], "Row 1 of the data set has an empty prompt"),
        (None, r"Row 1 .* neither a text nor a list of chat messages: None \(NoneType\)"),
        (7, r"Row 1 .* neither a text nor a list of chat messages: 7 \(int\)"),
        (["ab"], r"Row 1 .* neither a text nor a list of chat messages: \['ab'\] \(list\)"),
        ([{"content": "ab"}], r"Row 1 .* neither a text nor a list of chat messages"),
    ],
)
def test_a_prompt_that_cannot_be_rolled_out_is_refused_with_its_row(tokenizer, prompt, message):
    column = [prompt if isinstance(prompt, str) or prompt is None else [USER], prompt]
    column[0] = "ab" if isinstance(prompt, str) or prompt is None else column[0]
    if isinstance(prompt, int) or prompt == ["ab"]:
        column = [prompt] * 2
        message = message.replace("Row 1", "Row 0")
    with pytest.raises(ValueError, match=message):
        check_prompts(Dataset.from_dict({"prompt": column}), tokenizer)


def test_white_space_is_a_prompt_if_it_has_tokens(tokenizer):
    check_prompts({"test": Dataset.from_dict({"prompt": [" ", "ab"]})}, tokenizer)


@pytest.mark.parametrize("trainer", [{}, {"trainer": PPOTrainer, "config": PPOConfig, "mode": "none"}])
@pytest.mark.parametrize(
    "data, function, message",
    [
        ([{"prompt": "ab"}, {"prompt": ""}], None, "Row 1 of the data set has an empty prompt"),
        (
            [{"prompt": "ab", "solution": "#### 3"}],
            gsm8k_reward,
            "no column `answer`, by which `gsm8k_reward` grades",
        ),
    ],
)
def test_the_constructor_refuses(plain_checkpoint, tmp_path, trainer, data, function, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(plain_checkpoint, tmp_path, data=Dataset.from_list(data * 8), reward=function, **trainer)


def test_a_stream_is_checked_while_it_is_read(plain_checkpoint, tmp_path):
    data = Dataset.from_list([{"prompt": "ab"}, {"prompt": ""}] * 8).to_iterable_dataset()
    trainer = make_trainer(plain_checkpoint, tmp_path, data=data, save_strategy="no")
    with pytest.raises(ValueError, match="A row of the data set has an empty prompt"):
        trainer.train()
