"""A Trainer whose run can be cut off at any moment and goes on as if it had not been."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.trainer_utils import SaveStrategy

from ..models.thinking.number_checks import refuse_non_finite
from .atomic_checkpoint import AtomicCheckpointMixin
from .changed_settings import check_changes, trajectory_settings
from .checkpointed_callback import CheckpointedCallback
from .random_state import kept_random_state
from .rank_agreement import RankAgreement
from .termination import Terminated, deferred, is_requested
from .unlogged_state import load_unlogged, read_unlogged, save_unlogged


@dataclass
class _Owed:
    """What is due at the step of a checkpoint when it is written, and is done when the run goes on."""

    evaluate: bool = False
    save: bool = False
    epoch_end: dict | None = None  # `grad_norm` and `learning_rate` of the step, for the epoch's log


class _EvaluationCut(Exception):
    """SIGTERM came during an evaluation inside training."""


class ResumableTrainerMixin(AtomicCheckpointMixin):
    """
    Resumes exactly and ends in time; put before a [`~transformers.Trainer`] class.

    - A run that has done its last step trains nothing more when it is resumed.
    - What the log has gathered since its last row is in the checkpoint, so that the next row and `train_loss` are
      those of a run that was not cut off.
    - After SIGTERM, inside [`~run_folder.training_run.training_run`], a checkpoint is saved at the end of the step
      and [`~run_folder.termination.Terminated`] is raised on all ranks.

    Attributes:
        kept_attributes (`tuple[str, ...]`):
            Names of further attributes, JSON values or dictionaries of lists, that the log depends on.
    """

    kept_attributes: tuple[str, ...] = ()

    _resumed_from = None
    _began = False
    _first_step = 0  # of the whole run, over all resumes
    _seen_step = _saved_step = None
    _train_loss = None
    _cuts_evaluation = False
    _ignore_keys_for_eval = None

    def _validate_args(self):
        """Differs from Trainer in refusing `enable_jit_checkpoint`, whose signal handler replaces ours."""
        if self.args.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint=True` would replace the handling of SIGTERM that saves a run's last "
                "checkpoint here. Leave it out: inside `hf_evidenceflow.run_folder.training_run.training_run`, as in "
                f"the recipes, {type(self).__name__} saves one at the end of the step without it."
            )
        super()._validate_args()

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial):
        """Differs from Trainer in remembering the checkpoint."""
        self._resumed_from, self._began, self._owed = resume_from_checkpoint, False, _Owed()
        self._seen_step = self._saved_step = self._train_loss = None
        self._ranks = RankAgreement()
        if resume_from_checkpoint is not None:
            before = read_unlogged(self, resume_from_checkpoint)
            if before is not None:
                now, warns = trajectory_settings(self), self.is_world_process_zero()
                check_changes(before["settings"], now, resume_from_checkpoint, warns)
        return super()._init_training_state(
            max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Differs from Trainer in refusing weights that are NaN or infinite."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        refuse_non_finite(self.model if model is None else model, f"`{resume_from_checkpoint}`")

    def _begin(self):
        """What Trainer has reset since the checkpoint was loaded; once for each training."""
        if self._began:
            return
        self._began, self._first_step = True, self.state.global_step
        kept = None if self._resumed_from is None else load_unlogged(self, self._resumed_from)
        if kept is not None:
            self._first_step, self._owed = kept["first_step"], _Owed(**kept["owed"])
        if self._resumed_from is not None:
            self._finish_rotation(Path(self._resumed_from))

    def _run_epoch(self, **kwargs):
        """Differs from Trainer in training nothing when the last step is done, and in waiting with SIGTERM."""
        self._begin()
        self._ignore_keys_for_eval = kwargs["ignore_keys_for_eval"]
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        with deferred() if self.args.save_strategy != SaveStrategy.NO else nullcontext():
            super()._run_epoch(**kwargs)

    def _load_rng_state(self, checkpoint):
        """Differs from Trainer in doing then what was due at the checkpoint's step."""
        super()._load_rng_state(checkpoint)
        owed, self._owed = self._owed, _Owed()
        numbers = owed.epoch_end or {"grad_norm": None, "learning_rate": None}

        def log_save_evaluate():
            self._maybe_log_save_evaluate(
                self._tr_loss,
                numbers["grad_norm"],
                self.model_wrapped,
                None,
                self.state.epoch,
                self._ignore_keys_for_eval,
                None,
                learning_rate=numbers["learning_rate"],
            )

        if owed.evaluate:
            self.control.should_log, self.control.should_evaluate, self.control.should_save = False, True, owed.save
            log_save_evaluate()
        if owed.epoch_end is not None and self._is_end_of_epoch():
            self._seen_step = self.state.global_step
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            log_save_evaluate()

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Differs from Trainer in what it says of a checkpoint of another model."""
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise ValueError(
                f"The optimizer's state in `{checkpoint}` does not fit the parameters that are trained: {error}. "
                "Resume with the model, adapter and frozen modules that the run began with."
            ) from error

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        """Differs from Trainer in `eval_on_start`: a resumed run has done it."""
        if skip_scheduler and self._resumed_from is not None:
            return None
        self._cuts_evaluation = True
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        finally:
            self._cuts_evaluation = False

    def prediction_step(self, *args, **kwargs):
        """Differs from Trainer in stopping for SIGTERM."""
        if self._cuts_evaluation and self._ranks.any(is_requested()):
            raise _EvaluationCut
        return super().prediction_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, *args, learning_rate=None):
        """Differs from Trainer in ending the run after SIGTERM, with a checkpoint; an evaluation is done later."""
        self._owed = _Owed()
        if self._epoch_ends_next():
            norm = None if grad_norm is None else float(grad_norm)
            self._owed.epoch_end = {"grad_norm": norm, "learning_rate": learning_rate}
        self._seen_step = self.state.global_step
        if stop := self._stops():
            self._owed.evaluate, self._owed.save = self.control.should_evaluate, self.control.should_save
            self.control.should_evaluate, self.control.should_save = False, True
        training = self.model.training
        random_state = kept_random_state() if self.control.should_evaluate else None
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, learning_rate=learning_rate)
        except _EvaluationCut:
            random_state.restore()
            self.model.train(training)
            self._owed.evaluate, self._owed.save = True, self.control.should_save
            self._save_checkpoint(model, None)
            raise Terminated from None
        if stop or (self._saved_step == self.state.global_step and self._stops()):
            raise Terminated

    def _epoch_ends_next(self):
        # Trainer calls the above at each step, and once more at the end of an epoch
        ends = self.control.should_training_stop or self._is_end_of_epoch()
        return self._seen_step != self.state.global_step and ends

    def _is_end_of_epoch(self):
        return self.state.global_step >= self.state.max_steps or float(self.state.epoch).is_integer()

    def _stops(self):
        return self.args.save_strategy != SaveStrategy.NO and self._ranks.any(is_requested())

    def _save_checkpoint(self, model, trial):
        """Differs from Trainer in noting the step."""
        super()._save_checkpoint(model, trial)
        self._saved_step = self.state.global_step

    def _save_own_state(self, folder: Path) -> None:
        further = {"first_step": self._first_step, "owed": asdict(self._owed), "settings": trajectory_settings(self)}
        save_unlogged(self, folder, further)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, CheckpointedCallback):
                callback.write_files(folder, self.args)

    def _finalize_training(self, *args, **kwargs):
        """Differs from Trainer in `train_loss`: over all steps, also those before the run was resumed."""
        self._begin()
        if self._resumed_from is not None and self.state.global_step == self._initial_global_step:
            self._load_rng_state(self._resumed_from)
        steps = self.state.global_step - self._first_step
        self._train_loss = (self._total_loss_scalar + self._tr_loss.item()) / max(steps, 0.001)
        output = super()._finalize_training(*args, **kwargs)
        return output._replace(training_loss=self._train_loss)

    def log(self, logs, start_time=None):
        """Differs from Trainer in `train_loss`, see above."""
        if "train_loss" in logs and self._train_loss is not None:
            logs["train_loss"] = self._train_loss
        super().log(logs, start_time)
