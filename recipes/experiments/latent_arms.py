"""The arms of the latent study as one table: what a row of training data holds, and the settings of the trainer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


CHAINS = ("none", "right", "mixed")
_WIDE_GATES = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.2}


@dataclass(frozen=True)
class LatentArm:
    """
    One arm.

    Args:
        chain (`str`, *optional*, defaults to `"none"`):
            The chain of steps in the data: `"none"`; `"right"`, one that leads to the answer; `"mixed"`, for every
            second row any legal one instead.
        targets (`bool`, *optional*, defaults to `False`):
            Whether rows hold the oracle's distribution for each thought.
        counted (`bool`, *optional*, defaults to `False`):
            Whether the number of thoughts is fixed in the model.
        settings (`Mapping`, *optional*):
            Fields of [`LatentSFTConfig`].
        curriculum (`str`, *optional*, defaults to `"none"`):
            Stages of the objective `"answer"`: `"none"`, no step is a thought; `"all"`, each is one from the start;
            `"growing"`, from none to all, two more a stage.
        loops (`Mapping`, *optional*):
            Fields of [`LoopedLlamaConfig`] of a model that loops at its thoughts alone.
    """

    chain: str = "none"
    targets: bool = False
    counted: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    curriculum: str = "none"
    loops: Mapping[str, Any] = field(default_factory=dict)

    def trainer_settings(self, thoughts: int, steps: int) -> dict[str, Any]:
        """Fields of [`LatentSFTConfig`] for problems of so many thoughts and a training of so many steps."""
        settings = dict(self.settings)
        if self.counted:
            settings["thinking_count"] = thoughts
        if settings["objective"] == "answer":
            stages = {"none": [0], "all": [thoughts], "growing": [*range(0, thoughts, 2), thoughts]}[self.curriculum]
            settings |= {"latent_curriculum": stages, "latent_steps_per_stage": -(-steps // len(stages))}
        return settings


def _soft(mode: str, **settings) -> LatentArm:
    return LatentArm(targets=True, settings={"thinking_mode": mode, "objective": "soft_targets", **settings})


def _answer(mode: str, **fields) -> LatentArm:
    return LatentArm(settings={"thinking_mode": mode, "objective": "answer"}, **fields)


# Half of the steps feed the states, or tokens, of the targets in one parallel pass, then the model feeds itself
_TAUGHT = {"teacher_forcing_steps": 0.5}

# LOTUS: the input of a loop is the token embedding and the last hidden state, as many loops as there are moves
_LOTUS = {"num_loops": 8, "loop_norm": True, "loop_injection": True}
_PAUSE = {"thinking_mode": "pause", "objective": "soft_targets"}

LATENT_ARMS = {
    "latent_soft": _soft("soft", **_TAUGHT),
    "discrete": _answer("none", chain="right"),
    "mixed": _answer("none", chain="mixed"),
    "pause_soft": LatentArm(targets=True, counted=True, settings=_PAUSE),
    "pause_steps": LatentArm(chain="right", counted=True, settings=_PAUSE),
    "lotus": LatentArm(chain="right", counted=True, settings=_PAUSE, loops=_LOTUS),
    "lotus_soft": LatentArm(targets=True, counted=True, settings=_PAUSE, loops=_LOTUS),
    "none": _answer("none"),
    "pause": _answer("pause", counted=True, curriculum="all"),
    "latent_embedding": _soft("embedding", thinking_settings=_WIDE_GATES, **_TAUGHT),
    "latent_projection": _soft("projection", thinking_settings=_WIDE_GATES),
    "token_feedback": _soft("none", **_TAUGHT),
    "coconut": _answer("coconut", chain="right", counted=True, curriculum="growing"),
    "codi": LatentArm(chain="right", counted=True, settings={"thinking_mode": "codi", "objective": "distill"}),
}


def training_rows(
    problems: Sequence[Mapping[str, Any]], arm: LatentArm, seed: int, runs: Callable[..., list[list[str]]]
) -> list[dict[str, Any]]:
    """
    Rows of [`LatentSFTTrainer`] for an arm, in the order of the problems.

    Args:
        problems (`Sequence[Mapping]`):
            Rows with `prompt`, `answer`, `steps` and `thought_targets`.
        arm ([`LatentArm`]):
            The arm.
        seed (`int`):
            Seed of the legal chains of a mixed arm.
        runs (`Callable`):
            Draws legal chains of a problem, such as [`set_runs`], from the problem, their number and a seed.
    """
    rows = []
    for place, problem in enumerate(problems):
        row = {"prompt": problem["prompt"], "answer": problem["answer"], "steps": []}
        if arm.chain == "mixed" and place % 2:
            row["steps"] = runs(problem, 1, seed)[0]
        elif arm.chain != "none":
            row["steps"] = problem["steps"]
        if arm.targets:
            row["thought_targets"] = problem["thought_targets"]
        rows.append(row)
    return rows
