"""Rollouts in checkpoints: a resumed run uses up what was left of them, or goes on with fresh ones at their place."""

import hashlib
import json
import os

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset


logger = get_logger(__name__)

_NAME = "rollouts_{rank}.pt"
_MISSING = "the file is missing"
_SAMPLED_ROWS = 64


class SavedRolloutsMixin:
    """
    Keeps the rollouts that are not used up in the checkpoint; put before a class derived from [`~trl.GRPOTrainer`].

    They are stored with the settings that they depend on. A resumed run takes them on all processes or on none: after
    a changed setting, or if the file of a process is missing or damaged, it says so once and generates afresh.
    """

    # Arguments on which the shape or the content of a rollout depends
    _rollout_arguments: tuple[str, ...] = (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations"),
        *("num_generations", "beta", "max_completion_length", "pad_to_multiple_of", "temperature", "top_p", "top_k"),
        *("min_p", "repetition_penalty", "generation_kwargs", "chat_template_kwargs", "use_vllm", "reward_weights"),
        *("scale_rewards", "multi_objective_aggregation", "mask_truncated_completions", "shuffle_dataset", "seed"),
    )

    def _rollout_settings(self) -> dict[str, str]:
        """What the rollouts at hand depend on, as JSON."""
        settings = {name: getattr(self.args, name) for name in self._rollout_arguments}
        settings |= {
            "number of processes": self.accelerator.num_processes,
            "global_step": self.state.global_step,
            "reward_funcs": self.reward_func_names,
            "train_dataset": dataset_fingerprint(self.train_dataset),
        }
        return {name: json.dumps(value, default=str, sort_keys=True) for name, value in settings.items()}

    @property
    def _steps_of_a_rollout(self):
        return self.args.steps_per_generation * self.num_iterations

    def _rollout_path(self, checkpoint):
        return os.path.join(checkpoint, _NAME.format(rank=self.args.process_index))

    def _save_rng_state(self, output_dir):
        """Differs from Trainer in saving the rollouts that are not used up."""
        super()._save_rng_state(output_dir)
        if self._buffered_inputs is not None and self._step % self._steps_of_a_rollout:
            os.makedirs(output_dir, exist_ok=True)
            saved = {"settings": self._rollout_settings(), "step": self._step, "batches": self._buffered_inputs}
            torch.save(saved, self._rollout_path(output_dir))

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        """
        Differs from Trainer in starting GRPO's count of steps, by which rollouts come, where the data starts, and in
        restoring the rollouts that were not used up.
        """
        place = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        self._step, self._buffered_inputs = place[1], None
        if checkpoint is not None:
            self._restore_rollouts(checkpoint)
        return place

    def _restore_rollouts(self, checkpoint):
        saved, problem = _read_rollouts(self._rollout_path(checkpoint), self._rollout_settings())
        problems = gather_object([problem])
        if not any(problems):
            self._step = saved["step"]
            self._buffered_inputs = send_to_device(saved["batches"], self.accelerator.device)
        elif set(problems) != {_MISSING} or self._step % self._steps_of_a_rollout:
            rank = next(rank for rank, problem in enumerate(problems) if problem)
            logger.warning(
                f"The run goes on with fresh rollouts, not with those of `{checkpoint}`: {problems[rank]} "
                f"(`{_NAME.format(rank=rank)}`). Its next steps differ from those of the run that was stopped."
            )


def _read_rollouts(path: str, settings: dict[str, str]) -> tuple[dict | None, str | None]:
    """What a file holds, and why it is of no use."""
    if not os.path.isfile(path):
        return None, _MISSING
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        before, _, _ = saved["settings"], saved["step"], saved["batches"]
        changed = [name for name in settings if before.get(name) != settings[name]]
    except Exception as error:  # damaged files raise errors of many kinds
        reason = next(iter(str(error).splitlines()), "")
        return None, f"the file cannot be read, {type(error).__name__}: {reason}"
    if changed:
        reasons = [f"`{name}` was {before.get(name)} and is {settings[name]}" for name in changed]
        return None, ", ".join(reasons)
    return saved, None


def dataset_fingerprint(dataset) -> str | None:
    """
    Number of rows and a digest of some prompts, the same in each process; `None` for a stream, which is not read.
    """
    if not isinstance(dataset, Dataset):
        return None
    prompts = []
    if "prompt" in dataset.column_names:
        prompts = dataset.select(range(0, len(dataset), len(dataset) // _SAMPLED_ROWS + 1))["prompt"][:]
    text = json.dumps(prompts, default=lambda value: type(value).__name__, sort_keys=True)
    return f"{len(dataset)} rows, {hashlib.sha256(text.encode()).hexdigest()[:12]}"
