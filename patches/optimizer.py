"""Learning rates by parameter name, for a Trainer that somebody else made.

Instance patch: one object stands in for `trainer.create_optimizer`, calls the original and regroups what it made. All
patches of a trainer share that object, so they can be undone in any order.
"""

import logging
from collections.abc import Mapping
from difflib import get_close_matches

from accelerate.utils.deepspeed import DummyOptim

from hf_evidenceflow.callbacks.parameter_group_watch import ParameterGroupWatch
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.trainers.parameter_groups import (
    ParameterGroupSpec,
    apply_parameter_groups,
    has_stepped,
    match_parameter_groups,
    unwrap_optimizer,
)
from hf_evidenceflow.trainers.thinking_groups import thinking_group_specs


logger = logging.getLogger(__name__)


def patch_parameter_group_lrs(
    trainer, rates: Mapping[str, float | Mapping[str, float] | None]
) -> "ParameterGroupPatch":
    """
    Gives the parameters of any Trainer learning rates by name, and watches that they train.

    The optimizer is still made by the trainer's own `create_optimizer`; afterwards the matched parameters move into
    groups of their own, which keep every other option, such as the weight decay or its absence. When training begins a
    table of all groups is printed, and [`ParameterGroupWatch`] stops the run if a group does not train. A resumed run
    takes the rates from its checkpoint, as Trainer does with `learning_rate`.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, before its optimizer exists.
        rates (`Mapping[str, float | Mapping[str, float] | None]`):
            Regular expression (`re.search` on the parameter's name) -> peak learning rate, or `{"lr": ...,
            "weight_decay": ...}`. A rate of `None` skips the pattern.

    Raises:
        ValueError: if a pattern matches no trainable parameter, two patterns (here or in another active patch) match
        the
            same one, or a rate is negative or no number.
        RuntimeError: if the trainer has its optimizer already.

    Example:

    ```python
    >>> with patch_parameter_group_lrs(trainer, {"lora_A": 1e-4, "lora_B": {"lr": 1.6e-3, "weight_decay": 0.0}}):
    ...     trainer.train()
    ```
    """
    return ParameterGroupPatch(trainer, [_spec(pattern, rate) for pattern, rate in rates.items()])


def patch_trainer_optimizer(
    trainer,
    lr_thinking_residual_gate: float | None = 1e-4,
    lr_thinking_residual_Lambda: float | None = 1e-3,
    lr_thinking_projection: float | None = 1e-4,
    weight_decay_thinking_residual_Lambda: float | None = 0.0,
) -> "ParameterGroupPatch":
    """
    Gives the thinking modules of a model under any Trainer the learning rates of HRPO, see [`HRPOConfig`]; errors are
    those of [`patch_parameter_group_lrs`].

    Groups that the model's `thinking_mode` does not use are skipped: the projection in mode `embedding`, all in
    `none`. [`HRPOTrainer`] has these rates as arguments and needs no patch.

    Source: arXiv 2505.18454; the projection and its rate are this project's own.

    Example:

    ```python
    >>> handle = patch_trainer_optimizer(trainer, lr_thinking_projection=3e-4)
    >>> trainer.train()
    >>> handle.undo()
    ```
    """
    # A model without a mode is asked for every group, and the error says what it lacks.
    method = getattr(getattr(trainer.model, "config", None), "thinking_method", THINKING_METHODS["projection"])
    specs = thinking_group_specs(
        method,
        lr_gate=lr_thinking_residual_gate,
        lr_Lambda=lr_thinking_residual_Lambda,
        lr_projection=lr_thinking_projection,
        weight_decay_Lambda=weight_decay_thinking_residual_Lambda,
    )
    if method == THINKING_METHODS["none"]:
        logger.warning(
            "`thinking_mode` is 'none': no thinking module trains, so all their learning rates are skipped."
        )
    return ParameterGroupPatch(trainer, specs)


class ParameterGroupPatch:
    """Handle of one patch, active from its construction until `undo()` or the end of its `with` block."""

    def __init__(self, trainer, specs: list[ParameterGroupSpec]):
        if trainer.optimizer is not None:
            raise RuntimeError(
                f"The trainer has its optimizer already ({type(unwrap_optimizer(trainer.optimizer)).__name__}), whose "
                "groups are fixed. Patch before `train()` and do not pass `optimizers`; after a finished run set "
                "`trainer.optimizer = None` for a fresh one."
            )
        installed = vars(trainer).get("create_optimizer")
        stand_in = installed if isinstance(installed, _GroupedCreateOptimizer) else _GroupedCreateOptimizer(trainer)
        match_parameter_groups(trainer.model.named_parameters(), [*stand_in.specs, *specs])
        self.specs = specs
        self._stand_in = stand_in
        stand_in.add(self)

    def undo(self) -> None:
        """
        Takes the patch back; a second call does nothing.

        An optimizer made under the patch is dropped if it has no state (it has not stepped, or is SGD without
        momentum), so that the trainer makes it anew. One with state stays, groups included, because the state would be
        lost: set `trainer.optimizer = None` to be rid of it. Not for use inside `train()`.
        """
        if self._stand_in is not None:
            stand_in, self._stand_in = self._stand_in, None
            stand_in.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.undo()


class _GroupedCreateOptimizer:
    """Stands in for one trainer's `create_optimizer`, on behalf of all its active patches."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.original = trainer.create_optimizer
        self.shadowed = vars(trainer).get("create_optimizer")  # another tool's instance patch
        self.patches = []
        self.created = None
        self.watch = None

    @property
    def specs(self):
        return [spec for patch in self.patches for spec in patch.specs]

    def __call__(self, model=None):
        trainer = self.trainer
        existing = trainer.optimizer
        optimizer = self.original() if model is None else self.original(model)
        if existing is None:
            self.created = optimizer
            named_parameters = (trainer.model if model is None else model).named_parameters()
            apply_parameter_groups(optimizer, named_parameters, self.specs)
        else:
            self._check_grouped(existing)
        return optimizer

    def add(self, patch):
        if not self.patches:
            self.trainer.create_optimizer = self
            if not any(isinstance(cb, ParameterGroupWatch) for cb in self.trainer.callback_handler.callbacks):
                self.watch = ParameterGroupWatch()
                self.trainer.add_callback(self.watch)
        self.patches.append(patch)

    def remove(self, patch):
        self.patches.remove(patch)
        self._drop_unused_optimizer()
        if self.patches:
            return
        if self.watch is not None:
            self.trainer.pop_callback(self.watch)
        # With another tool's wrapper on top this object must stay, and then passes through
        if vars(self.trainer).get("create_optimizer") is self:
            if self.shadowed is None:
                del self.trainer.create_optimizer
            else:
                self.trainer.create_optimizer = self.shadowed

    def _check_grouped(self, optimizer):
        # DeepSpeed's placeholder stands for an optimizer of its configuration file
        groups = [] if isinstance(optimizer, DummyOptim) else optimizer.param_groups
        present = {group.get("name") for group in groups}
        missing = [spec.pattern for spec in self.specs if spec.lr is not None and spec.pattern not in present]
        if missing:
            raise RuntimeError(
                f"The trainer's optimizer ({type(unwrap_optimizer(optimizer)).__name__}) was not made by "
                f"`create_optimizer`, so the learning rates of {missing} would be ignored. Do not set "
                "`trainer.optimizer`, and leave `optimizer` out of the DeepSpeed configuration."
            )

    def _drop_unused_optimizer(self):
        trainer = self.trainer
        optimizer = trainer.optimizer
        if optimizer is None or unwrap_optimizer(optimizer) is not self.created or has_stepped(self.created):
            return
        if trainer.lr_scheduler is not None and trainer.lr_scheduler.optimizer is optimizer:
            trainer.lr_scheduler = trainer.callback_handler.lr_scheduler = None
        trainer.optimizer = trainer.callback_handler.optimizer = self.created = None


def _spec(pattern, rate):
    if not isinstance(rate, Mapping):
        return ParameterGroupSpec(pattern, rate)
    for key in rate:
        if key not in ("lr", "weight_decay"):
            near = get_close_matches(str(key), ("lr", "weight_decay"), n=1, cutoff=0)[0]
            raise ValueError(f"The group {pattern!r} has the unknown key {key!r}; did you mean {near!r}?")
    if "lr" not in rate:
        raise ValueError(f"The group {pattern!r} has no key 'lr', got {dict(rate)}. Give a rate, or None to skip it.")
    return ParameterGroupSpec(pattern, **rate)
