"""The stages of latent training."""

from types import SimpleNamespace

import pytest

from hf_evidenceflow.callbacks.latent_curriculum import LatentCurriculum


@pytest.mark.parametrize(
    "each, max_steps, expected",
    [(2, 99, [0, 0, 2, 2, 1, 1, 1]), (None, 7, [0, 0, 0, 2, 2, 2, 1]), (None, 2, [0, 2, 1, 1, 1, 1, 1])],
)
def test_stages_follow_the_steps(each, max_steps, expected):
    """The last one goes on; without a length the run is split evenly."""
    curriculum = LatentCurriculum([0, 2, 1], each)
    assert [curriculum.at(step, max_steps) for step in range(7)] == expected


def test_a_stage_ends_at_a_logged_loss():
    curriculum = LatentCurriculum([0, 1, 2], until_loss=0.5)
    found = []
    for logs in ({"loss": 0.6}, {"loss": 0.5}, {"eval_loss": 0.1}, {"loss": 0.7}, {"loss": 0.4}, {"loss": 0.0}, None):
        curriculum.on_log(None, None, None, logs)
        found.append(curriculum.at(0, 9))
    assert found == [0, 1, 1, 1, 2, 2, 2]


def optimizer():
    return SimpleNamespace(state={"moments": 1})


@pytest.mark.parametrize("resets", [True, False])
def test_the_moments_are_forgotten_once_when_a_stage_begins(resets):
    curriculum, found = LatentCurriculum([0, 1], 2, reset_optimizer=resets), []
    for step in range(4):
        state = optimizer()
        curriculum.at(step, 9)
        curriculum.on_step_begin(None, None, None, optimizer=state)
        found.append(bool(state.state))
    assert found == [True, True, not resets, True]


def test_its_state_goes_on_at_the_border_of_a_stage():
    """Saved when the loss has ended a stage whose first step is still to come."""
    before = LatentCurriculum([0, 1], until_loss=1.0, reset_optimizer=True)
    before.on_log(None, None, None, {"loss": 0.5})
    after, state = LatentCurriculum([0, 1], until_loss=1.0, reset_optimizer=True), optimizer()
    after.load_state_dict(before.state_dict())
    assert after.at(0, 9) == 1
    after.on_step_begin(None, None, None, optimizer=state)
    assert not state.state


@pytest.mark.parametrize(
    "arguments, match",
    [
        (([],), "needs stages"),
        (([1, -1],), r"at least 0 thoughts each, got \[1, -1\]"),
        (([0, 1], 2, 0.5), "not by both"),
        (([0, 1], 0), "`steps_per_stage` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        LatentCurriculum(*arguments)
