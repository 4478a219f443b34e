"""Rewards: what they read and log; and data sets are checked for golds that a reward cannot grade by."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from datasets import Dataset

from hf_evidenceflow.tasks import check_golds, gsm8k_reward, math_reward, multiple_choice_reward, open_qa_reward


GOLDS = {
    gsm8k_reward: ["5", "2 + 3 = 5\n#### 5"],
    math_reward: ["5", "so $\\boxed{5}$"],
    multiple_choice_reward: ["B", "(b)"],
    open_qa_reward: [["Paris"], ["Rome", "Roma"]],
}


def rows(golds):
    return Dataset.from_dict({"prompt": ["?"] * len(golds), "answer": golds})


@pytest.mark.parametrize("reward", GOLDS)
def test_readable_golds_pass(reward):
    check_golds(reward, rows(GOLDS[reward]), {"test": rows(GOLDS[reward])}, None)


@pytest.mark.parametrize("reward", GOLDS)
def test_first_gold_that_cannot_be_graded_by_is_named_with_its_row(reward):
    with pytest.raises(ValueError, match="Column `answer` of row 2 cannot be graded by: it is None"):
        check_golds([len, "reward/model", partial(reward)], rows([*GOLDS[reward], None]))


def test_column_of_an_evaluation_set_is_missed_before_it_is_needed():
    with pytest.raises(
        ValueError, match="no column `answer`, by which `gsm8k_reward` grades; it has prompt, solution"
    ):
        check_golds(gsm8k_reward, rows(["5"]), {"test": rows(["5"]).rename_column("answer", "solution")})


def test_stream_is_not_read_but_must_have_the_column():
    stream = rows(["none"]).to_iterable_dataset()
    check_golds(gsm8k_reward, stream)
    with pytest.raises(ValueError, match="no column `answer`"):
        check_golds(gsm8k_reward, stream.rename_column("answer", "solution"))


def test_rewards_of_other_makers_are_passed_over():
    check_golds([len, "reward/model"], rows([None]))


def test_numbers_of_a_numpy_data_set_are_golds():
    check_golds(gsm8k_reward, rows(np.arange(3)).with_format("numpy"))


def test_reward_takes_strings():
    assert gsm8k_reward(completions=["#### 5", "#### 6"], answer=["5", "5"]) == [1.0, 0.0]


def test_reward_takes_chat_messages():
    chat = [{"role": "assistant", "content": "2 + 3 = 5 #### 5"}]
    assert gsm8k_reward(completions=[chat], answer=["5"]) == [1.0]


def test_reward_takes_messages_of_text_parts():
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "#### "}, {"type": "text", "text": "5"}]}]
    assert gsm8k_reward(completions=[chat], answer=["5"]) == [1.0]


def test_reward_reads_the_assistant_only():
    chat = [{"role": "tool", "content": "#### 5"}, {"role": "assistant", "content": "six"}]
    assert gsm8k_reward(completions=[chat], answer=["5"]) == [0.0]


def test_marker_in_two_messages_counts_twice():
    chat = [{"role": "assistant", "content": "#### 5"}, {"role": "assistant", "content": "#### 5"}]
    assert gsm8k_reward(completions=[chat], answer=["5"]) == [0.0]


def test_reward_ignores_the_other_columns_of_a_trainer():
    assert gsm8k_reward(
        completions=["#### 5"], answer=["5"], prompts=["?"], completion_ids=[[1]], trainer_state=None
    ) == [1.0]


def test_reward_logs_the_share_of_unparsable_completions():
    logged = {}
    gsm8k_reward(["#### 5", "5", "#### 1/0", "#### 6"], ["5"] * 4, log_metric=logged.__setitem__)
    assert logged == {"unparsable": 0.5}


def test_reward_logs_the_extracted_answers():
    logged = {}
    gsm8k_reward(["#### $70,000", "5"], ["5", "5"], log_extra=logged.__setitem__)
    assert logged == {"extracted_answer": ["70000", "[unparsable]"]}


def test_reward_of_an_empty_batch_logs_no_share():
    logged = {}
    assert gsm8k_reward([], [], log_metric=logged.__setitem__) == [] and logged == {}


def test_reward_without_one_gold_for_each_completion_is_an_error():
    with pytest.raises(ValueError, match="got 2 completions and 1 answers"):
        gsm8k_reward(["#### 5", "#### 6"], ["5"])


@pytest.mark.parametrize("reward", GOLDS)
@pytest.mark.parametrize("move", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_reward_can_be_sent_to_another_process_and_still_checks_its_golds(reward, move):
    with pytest.raises(ValueError, match=f"by which `{reward.__name__}` grades"):
        check_golds(move(reward), Dataset.from_dict({"prompt": ["?"]}))
