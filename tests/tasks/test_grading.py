"""Data sets are checked for golds that a reward cannot grade by, before a training."""

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
