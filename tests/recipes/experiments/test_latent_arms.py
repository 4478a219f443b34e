"""The arms of the latent study: what their rows hold and how the trainer is set."""

import pytest

from hf_evidenceflow.recipes.experiments.latent_arms import LATENT_ARMS, training_rows
from hf_evidenceflow.tasks import generate_set_problems, set_runs


PROBLEMS = generate_set_problems(6, cups=5, moves=3, optional=1)


def rows(arm):
    return training_rows(PROBLEMS, LATENT_ARMS[arm], 0, set_runs)


@pytest.mark.parametrize("arm", LATENT_ARMS)
def test_all_arms_read_the_same_prompts_and_answers(arm):
    assert [(row["prompt"], row["answer"]) for row in rows(arm)] == [
        (problem["prompt"], problem["answer"]) for problem in PROBLEMS
    ]


def test_the_pause_control_has_the_targets_of_the_latent_arms():
    assert rows("pause_soft") == rows("latent_soft") == rows("token_feedback")
    assert rows("latent_soft")[0]["thought_targets"] == PROBLEMS[0]["thought_targets"]


def test_lotus_is_its_control_with_loops():
    lotus, control = LATENT_ARMS["lotus"], LATENT_ARMS["pause_steps"]
    assert rows("lotus") == rows("pause_steps") and rows("lotus")[0]["steps"] == PROBLEMS[0]["steps"]
    assert lotus.trainer_settings(5, 10) == control.trainer_settings(5, 10) and lotus.loops and not control.loops


@pytest.mark.parametrize("arm", ["none", "pause", "discrete", "mixed", "coconut", "codi"])
def test_other_arms_see_no_targets(arm):
    assert all("thought_targets" not in row for row in rows(arm))


def test_every_second_row_of_the_mixed_arm_is_any_legal_run():
    steps = [row["steps"] for row in rows("mixed")]
    assert steps[::2] == [problem["steps"] for problem in PROBLEMS[::2]]
    assert steps[1::2] == [set_runs(problem, 1, 0)[0] for problem in PROBLEMS[1::2]]


@pytest.mark.parametrize(
    ("arm", "stages"), [("none", [0]), ("discrete", [0]), ("pause", [5]), ("coconut", [0, 2, 4, 5])]
)
def test_the_stages_of_an_arm(arm, stages):
    assert LATENT_ARMS[arm].trainer_settings(thoughts=5, steps=10)["latent_curriculum"] == stages


@pytest.mark.parametrize("arm", ["pause", "pause_soft", "lotus", "coconut", "codi"])
def test_modes_that_count_get_the_number_of_thoughts(arm):
    assert LATENT_ARMS[arm].trainer_settings(thoughts=5, steps=10)["thinking_count"] == 5
