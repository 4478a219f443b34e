"""The number of thoughts that a latent run settles, and what it says where there is none."""

from types import SimpleNamespace

import pytest

from hf_evidenceflow.trainers.latent_rows import compose
from hf_evidenceflow.trainers.latent_setup import thought_count


def arguments(objective="answer", **given):
    fields = {"thinking_count": None, "latent_curriculum": None, "thinking_token_policy": None}
    return SimpleNamespace(objective=objective, **{**fields, "latent_tokens_per_step": 1, **given})


def rows(*lengths):
    return {"step_ids": [[[3]] * length for length in lengths], "target_ids": [[[3]] * length for length in lengths]}


def test_a_given_count_is_the_most_that_a_stage_of_answer_has():
    args = arguments(latent_curriculum=[1, 2, 99], latent_tokens_per_step=2, thinking_count=4)
    row = {"prompt_ids": [7], "step_ids": [[11], [12], [13]], "answer_ids": [14], "answer_prefix": 0}
    row |= {"target_ids": [], "target_weights": []}
    composed = [compose(row, stage, args, 0, 4) for stage in args.latent_curriculum]
    assert [(one.thoughts, one.text) for one in composed] == [(2, [12, 13, 14]), (4, [13, 14]), (4, [14])]
    assert thought_count("coconut", args, rows(3)) == 4


def test_unequal_chains_of_answer_are_shown_the_curriculum_that_takes_them():
    with pytest.raises(ValueError, match=r"the rows have 2, 6\..*`latent_curriculum=\[3\]`: rows with fewer steps"):
        thought_count("coconut", arguments(latent_tokens_per_step=2), rows(3, 1))


def test_unequal_targets_are_shown_a_mode_that_ends_by_itself():
    with pytest.raises(ValueError, match=r"`latent_curriculum=\[1\]`, or choose a mode that ends"):
        thought_count("pause", arguments("soft_targets"), rows(3, 1))


def test_a_count_that_the_rows_do_not_train_is_an_error():
    with pytest.raises(ValueError, match="`thinking_count` is 5, and the rows train 3 thoughts"):
        thought_count("soft", arguments("soft_targets", thinking_count=5), rows(3, 3))
