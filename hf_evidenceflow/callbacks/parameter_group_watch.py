"""Shows the optimizer's parameter groups, and stops a run in which a named group does not train."""

import logging

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


logger = logging.getLogger(__name__)


def parameter_group_table(optimizer: torch.optim.Optimizer) -> str:
    """
    The optimizer's groups as text, one line per group with parameters: name (`base` without a `"name"`), tensors,
    parameters, learning rate (the peak, if a scheduler scales it) and weight decay.
    """
    rows = [("group", "tensors", "parameters", "learning rate", "weight decay")]
    for group in optimizer.param_groups:
        if group["params"]:
            numbers = sum(parameter.numel() for parameter in group["params"])
            rates = (group.get("initial_lr", group["lr"]), group.get("weight_decay", 0.0))
            cells = (len(group["params"]), f"{numbers:,}", *(f"{float(rate):g}" for rate in rates))
            rows.append((group.get("name", "base"), *map(str, cells)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    template = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(template.format(*row) for row in rows)


class ParameterGroupWatch(TrainerCallback):
    """
    Prints the parameter groups when training begins, and stops the run if a named group does not train.

    A group is proven once it had a gradient and moved in the same step; from then on a step costs the look at one
    small gradient. Until then its tensors are copied for the time of each optimizer step. What stops the run, for a
    group that is not proven:

    - no gradient at all (all `None`) while other parameters have one, before the group ever had one: at once.
    - no movement by a gradient in `patience` steps in which the loss had a gradient and the group's rate was above 0.
      Gradients of exactly zero get this long, because they can be right at first: LoRA's A has them while B is zero.

    Steps without any gradient at all (in GRPO: rewards without variance) and steps that a loss scaler skipped prove
    nothing and count for nothing here. DeepSpeed keeps the gradients to itself, so with it only the table is printed.

    Attributes:
        steps_without_gradient (`int`):
            Optimizer steps of this run in which no parameter had a gradient.
        group_steps_without_gradient (`dict[str, int]`):
            Per group, steps in which it had no gradient (all `None`, or exactly zero before it was proven) while
            another parameter had one.

    Raises:
        RuntimeError: if a group does not train, naming the group, a parameter, its dtype and its rate.
    """

    def __init__(self, patience: int = 5):
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1, got {patience}.")
        self.patience = patience
        self._reset()

    def _reset(self):
        self.steps_without_gradient = 0
        self.group_steps_without_gradient = {}
        self._steps = 0
        self._parameters = []
        self._witness = None
        self._groups = {}

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self._reset()
        if state.is_world_process_zero:
            print(parameter_group_table(optimizer), flush=True)
        if isinstance(optimizer, DeepSpeedOptimizerWrapper):
            logger.warning("DeepSpeed keeps gradients to itself: nothing checks that each parameter group trains.")
            return
        for group in optimizer.param_groups:
            # FSDP leaves a rank that holds nothing of a parameter with an empty tensor
            parameters = [parameter for parameter in group["params"] if parameter.numel() > 0]
            self._parameters += parameters
            if parameters and "name" in group:
                self._groups.setdefault(group["name"], _WatchedGroup(group["name"])).parameters += parameters
        self._parameters.sort(key=torch.Tensor.numel)  # the search for a gradient reads the small ones first
        self.group_steps_without_gradient = dict.fromkeys(self._groups, 0)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if not self._parameters:
            return
        self._steps += 1
        if not self._any_gradient():
            self.steps_without_gradient += 1
            if self.steps_without_gradient == 1:
                logger.warning(
                    f"Step {state.global_step + 1} has no gradient at all. In GRPO that is a batch whose rewards have "
                    "no variance. Such steps are counted, and the count is logged when training ends."
                )
            return
        for group in self._groups.values():
            has_gradient = group.before_step(_learning_rate(optimizer, group.name))
            if not has_gradient:
                self.group_steps_without_gradient[group.name] += 1
                if not group.was_connected:
                    raise RuntimeError(group.describe(model) + _NO_GRADIENT.format(step=state.global_step + 1))

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        skipped = isinstance(optimizer, AcceleratedOptimizer) and optimizer.step_was_skipped
        for group in self._groups.values():
            group.after_step(skipped)
            if group.idle_steps == self.patience:
                raise RuntimeError(group.describe(model) + group.why_unmoved(self.patience))

    def on_train_end(self, args, state, control, **kwargs):
        if self.steps_without_gradient:
            logger.warning(f"{self.steps_without_gradient} of {self._steps} steps had no gradient at all.")
        for name, count in self.group_steps_without_gradient.items():
            if count:
                logger.warning(f"The parameter group {name!r} had no gradient in {count} of {self._steps} steps.")
        self._parameters, self._witness, self._groups = [], None, {}

    def _any_gradient(self):
        # The parameter that had a gradient last time mostly has one again: one look per step.
        if self._witness is None or not _has_gradient(self._witness):
            self._witness = next(filter(_has_gradient, self._parameters), None)
        return self._witness is not None


class _WatchedGroup:
    """What is known so far about one named group."""

    def __init__(self, name):
        self.name = name
        self.parameters = []
        self.was_connected = False  # a gradient, be it zero, has reached the group
        self.had_gradient = False
        self.proven = False
        self.idle_steps = 0
        self.lr = 0.0
        self._before = None  # list: a step is under way that ought to move the group

    def before_step(self, lr):
        connected = [parameter for parameter in self.parameters if parameter.grad is not None]
        self.was_connected |= bool(connected)
        if self.proven:
            return bool(connected)
        has_gradient = any(map(_has_gradient, connected))
        self.had_gradient |= has_gradient
        self.lr = lr
        if lr > 0:
            # Without a gradient only weight decay moves it, which proves nothing
            self._before = [(p, p.detach().clone()) for p in connected] if has_gradient else []
        return has_gradient

    def after_step(self, skipped):
        before, self._before = self._before, None
        if before is None or skipped:
            return
        self.proven = any(not torch.equal(parameter, value) for parameter, value in before)
        self.idle_steps += not self.proven

    def describe(self, model):
        ids = {id(parameter) for parameter in self.parameters}
        names = [name for name, parameter in model.named_parameters() if id(parameter) in ids]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"The parameter group {self.name!r} ({shown}) does not train: "

    def why_unmoved(self, steps):
        if not self.had_gradient:
            return (
                f"its gradient was exactly zero in {steps} steps in which other parameters had one. Look for a factor "
                "of zero or an empty mask between it and the loss."
            )
        dtypes = {parameter.dtype for parameter in self.parameters}
        cause = (
            f"no value changed in {steps} steps with a gradient in the loss, at a learning rate of {self.lr:g} in "
            f"{', '.join(sorted(map(str, dtypes)))}."
        )
        if dtypes <= {torch.float32, torch.float64}:
            return f"{cause} Raise the rate, and see that nothing restores or copies over these weights."
        worst = max(torch.finfo(dtype).eps for dtype in dtypes)
        return (
            f"{cause} There a step below about {worst / 2:g} of a value is rounded away. Keep these parameters in "
            "float32 (`module.float()` before training), or raise the rate."
        )


_NO_GRADIENT = (
    "it has no gradient at step {step}, while other parameters have one. The loss does not reach it: look for "
    "`no_grad`, `detach` or a branch that is not taken, or give it no learning rate of its own (None)."
)


def _has_gradient(parameter):
    if parameter.grad is None:
        return False
    peak = torch.linalg.vector_norm(parameter.grad, float("inf"))
    # Sharded: each rank sees its own part, and all must come to the same verdict
    return bool(peak.full_tensor() if isinstance(peak, DTensor) else peak)


def _learning_rate(optimizer, name):
    return max(float(group["lr"]) for group in optimizer.param_groups if group.get("name") == name)
