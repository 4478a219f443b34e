"""Layer-wise supervision as a callback of transformers' Trainer and TRL's SFTTrainer."""

import functools
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer

from ..run_folder.checkpointed_callback import CheckpointedCallback, checkpoint_of
from ..supervision.config import EvidenceFlowConfig, resolve_config
from ..supervision.evidence_flow import EvidenceFlow
from ..supervision.own_parameters import OwnParameters


LOG_NAME = "evidence_flow_log_{rank}.json"


class EvidenceFlowCallback(CheckpointedCallback):
    """
    Adds a layer-wise term to the loss that a Trainer trains.

    The hooks are on the model only from the start of a micro-batch to the end of its forward pass, so that none stays
    behind, however training ends; after a Ctrl-C in the middle of a forward pass they go at the next one, before they
    act, and with [`add_to`] at once. Evaluation, the saved model and inference are those of a run without it.

    Args:
        config ([`EvidenceFlowConfig`], *optional*):
            Settings.
        resume_from (`str`, *optional*):
            Checkpoint folder that holds the objective's own parameters (`nitp`, `deep_supervision`) when a run is
            resumed from somewhere else than its output folder.
        **overrides:
            Fields of the config.

    Raises:
        ValueError: when training begins, if the trainer takes no loss from the model, or the settings do not fit it.
        RuntimeError: before an optimizer step for which no term came into the loss.

    The terms come into `state.log_history` with each log: see [`TermLog.pop`]. Trainer puts reporters (wandb, ...)
    before callbacks that it is given: for them use [`add_to`].

    Example:

    ```python
    >>> trainer = Trainer(
    ...     model, args, train_dataset=dataset, callbacks=[EvidenceFlowCallback(objective="cross_entropy", weight=0.3)]
    ... )
    ```
    """

    def __init__(self, config: EvidenceFlowConfig | None = None, *, resume_from: str | None = None, **overrides):
        self.config = resolve_config(config, overrides)
        self.resume_from = resume_from
        self.flow: EvidenceFlow | None = None
        self._own: OwnParameters | None = None
        self._undo: Callable[[], None] | None = None

    def add_to(self, trainer: Trainer) -> "EvidenceFlowCallback":
        """
        Add the callback to a trainer before its reporters, so that they get the terms too, and wrap the trainer's
        `training_step`, so that the hooks come off whatever ends it. [`undo`] takes both back.

        Returns:
            [`EvidenceFlowCallback`]: itself.

        Raises:
            ValueError: if the trainer has a `compute_loss_func`.
        """
        if trainer.compute_loss_func is not None:
            raise ValueError(
                "The trainer has a `compute_loss_func`, so that it takes no loss from the model. Leave it out, or "
                "leave out the layer-wise supervision."
            )
        self.undo()
        trainer.callback_handler.callbacks.insert(0, self)
        before = vars(trainer).get("training_step")
        stock_step = trainer.training_step

        @functools.wraps(stock_step)
        def training_step(*args, **kwargs):
            try:
                if self.flow is not None:
                    self.flow.attach()
                return stock_step(*args, **kwargs)
            finally:
                if self.flow is not None:
                    self.flow.remove()

        def undo():
            trainer.pop_callback(self)
            # A wrapper that came later keeps calling this one, which does nothing any more
            if vars(trainer).get("training_step") is training_step:
                del vars(trainer)["training_step"]
                vars(trainer).update({} if before is None else {"training_step": before})

        vars(trainer)["training_step"] = training_step
        self._undo = undo
        return self

    def undo(self) -> None:
        """Take back what [`add_to`] did. Calling it again changes nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
            self._close()

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self._close()
        _refuse_own_losses(args)
        if args.n_gpu > 1:
            raise ValueError(
                f"The Trainer runs the model on {args.n_gpu} GPUs in threads (`nn.DataParallel`), whose forward "
                "passes would mix. Launch it with `accelerate launch` or `torchrun`, or make one GPU visible."
            )
        if self.config.weight == 0:
            return
        self.flow = EvidenceFlow(model, self.config, state.max_steps, once=True)
        self.flow.start_step(state.global_step)
        checkpoint = Path(self.resume_from or checkpoint_of(args, state))
        log = checkpoint / LOG_NAME.format(rank=args.process_index)
        if state.global_step and log.exists():
            self.flow.log.load(log, args.device)
        if self.flow.parameters():
            self._own = OwnParameters(self.flow.own_modules, optimizer)
            if state.global_step:
                self._own.load(checkpoint)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.flow is not None:
            self.flow.start_step(state.global_step)
            self._attach()

    def on_substep_end(self, args, state, control, **kwargs):
        if self.flow is not None:
            self._attach()

    def _attach(self):
        if self._undo is None:  # else the wrapper does
            self.flow.attach()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.flow is not None:
            self.flow.remove()
            self.flow.check_step()
        if self._own is not None:
            self._own.clip(args.max_grad_norm)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._own is not None:
            self._own.zero_grad()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.flow is not None and logs is not None and "loss" in logs:
            terms = self.flow.log.pop()
            logs.update(terms)
            state.log_history[-1].update(terms)

    def write_files(self, checkpoint, args):
        if self.flow is not None:
            self.flow.log.save(checkpoint / LOG_NAME.format(rank=args.process_index))
        if self._own is not None and args.should_save:
            self._own.save(checkpoint)

    def on_train_end(self, args, state, control, **kwargs):
        self._close()

    def _close(self):
        if self.flow is not None:
            self.flow.remove()
        if self._own is not None:
            self._own.leave()
        self.flow = self._own = None


def _refuse_own_losses(args):
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor={args.label_smoothing_factor}` makes the trainer compute its own loss from the "
            "logits, so that it takes none from the model. Set it to 0, or leave out the layer-wise supervision."
        )
    # TRL's other trainers call the decoder for log-probabilities, and their losses never pass the model
    configs = [cls.__name__ for cls in type(args).__mro__ if cls.__module__.startswith("trl.")]
    if configs and "SFTConfig" not in configs:
        raise ValueError(
            f"A trainer with {type(args).__name__} computes its own loss from log-probabilities and takes none from "
            "the model, so that no term can be added to it. Layer-wise supervision works with Trainer and SFTTrainer: "
            "train with it before the reinforcement learning, or leave it out."
        )
    if configs and args.loss_type != "nll":
        raise ValueError(
            f"`loss_type={args.loss_type!r}` weighs tokens by their probability, so that no term can ride with their "
            "log-probabilities. Set it to 'nll', or leave out the layer-wise supervision."
        )
