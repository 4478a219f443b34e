"""Learning rates by parameter name: regroups the optimizer that a Trainer made.

A new part next to pretrained weights needs a rate of its own, and a rate that reaches nothing looks just like one that
works. So every mistake here is an error, and [`~hf_evidenceflow.ParameterGroupWatch`] then checks that each group
trains.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from accelerate.optimizer import AcceleratedOptimizer


# These update inside the backward pass with rates of their own and never read `param_groups` again.
_FUSED_BACKWARD_OPTIMIZERS = {"LayerWiseDummyOptimizer", "Lomo", "AdaLomo"}


@dataclass(frozen=True)
class ParameterGroupSpec:
    """
    The learning rate of all parameters whose name matches a pattern.

    Args:
        pattern (`str`):
            Regular expression, found anywhere in the parameter's name (`re.search`). It also names the group.
        lr (`float` or `None`):
            Peak learning rate, at least 0; the scheduler scales it like every other. `None` skips the group: its
            parameters stay where the Trainer put them.
        weight_decay (`float` or `None`, *optional*, defaults to `None`):
            Weight decay of the whole group, at least 0. `None` keeps the Trainer's split into parameters with decay
            and without (biases and norms).

    Raises:
        ValueError: if the pattern is no regular expression, or a number is negative, not finite or not a number.
    """

    pattern: str
    lr: float | None
    weight_decay: float | None = None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"`pattern` must be a regular expression, got {self.pattern!r}: {error}.") from error
        for field in ("lr", "weight_decay"):
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                hint = " YAML reads 1e-4 as text: write 1.0e-4." if isinstance(value, str) else ""
                raise ValueError(
                    f"`{field}` of the parameter group {self.pattern!r} must be None or a finite number >= 0, "
                    f"got {value!r}.{hint}"
                )


def match_parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], specs: Sequence[ParameterGroupSpec]
) -> dict[str, ParameterGroupSpec]:
    """
    Finds the trainable parameters of each group, by name; groups with `lr=None` are skipped.

    Raises:
        ValueError: if two patterns match one parameter, or a pattern matches no trainable parameter.
    """
    trainable, frozen = [], []
    for name, parameter in named_parameters:
        (trainable if parameter.requires_grad else frozen).append(name)
    matched = {}
    for spec in specs:
        if spec.lr is None:
            continue
        names = [name for name in trainable if re.search(spec.pattern, name)]
        if not names:
            raise ValueError(_nothing_matched(spec.pattern, trainable, frozen))
        for name in names:
            if name in matched:
                raise ValueError(_claimed_twice(name, matched[name].pattern, spec.pattern))
            matched[name] = spec
    return matched


def apply_parameter_groups(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    specs: Sequence[ParameterGroupSpec],
) -> None:
    """
    Moves the matched parameters of a fresh optimizer into groups with their own learning rates, in place.

    A new group keeps every other option of the group that its parameters leave, so a pattern that matches weights and
    biases makes two groups, one with weight decay and one without. New groups come last. Groups without parameters go,
    since sharded checkpoints take one of them at most; only the first, whose rate Trainer logs, stays in any case.
    Each new group holds its pattern under the key `"name"`, which is saved with the optimizer's state; loading a state
    of other groups is an error that names both.

    Args:
        optimizer (`torch.optim.Optimizer`):
            An optimizer that has taken no step and has no scheduler yet.
        named_parameters (`Iterable[tuple[str, torch.nn.Parameter]]`):
            What `model.named_parameters()` gives, for the model that the optimizer was made for.
        specs (`Sequence[ParameterGroupSpec]`):
            The groups; those with `lr=None` are skipped. Without any other nothing changes.

    Raises:
        ValueError: if two patterns, here or in an earlier call, match one parameter, or one matches no trainable one.
        RuntimeError: if the optimizer's groups cannot be split, or do not hold each trainable parameter exactly once.

    Example:

    ```python
    >>> optimizer = trainer.create_optimizer()
    >>> apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec(r"gate", lr=1e-4)])
    ```
    """
    specs = [spec for spec in specs if spec.lr is not None]
    if not specs:
        return
    optimizer = unwrap_optimizer(optimizer)
    named_parameters = list(named_parameters)
    matched = match_parameter_groups(named_parameters, specs)
    names = {id(parameter): name for name, parameter in named_parameters if parameter.requires_grad}
    _check_can_be_split(optimizer)
    _check_each_in_one_group(optimizer, names)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if "name" in group and name in matched:
                raise ValueError(
                    f"{_claimed_twice(name, group['name'], matched[name].pattern)} The first is applied already: if "
                    "the trainer itself gives this parameter a rate, set that one."
                )

    for spec in specs:
        for group in list(optimizer.param_groups):
            moves = [matched.get(names.get(id(parameter))) is spec for parameter in group["params"]]
            if not any(moves):
                continue
            taken = {**group, "name": spec.pattern, "lr": spec.lr}
            if spec.weight_decay is not None:
                taken["weight_decay"] = spec.weight_decay
            for key in ("params", "param_names"):  # torch wants names in all groups or in none
                if key in group:
                    taken[key] = [entry for entry, moved in zip(group[key], moves) if moved]
                    group[key] = [entry for entry, moved in zip(group[key], moves) if not moved]
            optimizer.add_param_group(taken)
    optimizer.param_groups[1:] = [group for group in optimizer.param_groups[1:] if group["params"]]
    _check_each_in_one_group(optimizer, names)
    optimizer.register_load_state_dict_pre_hook(_check_saved_groups)


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrappers."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def has_stepped(optimizer: torch.optim.Optimizer) -> bool:
    """
    Whether the optimizer has a state, from steps or from a checkpoint. Adagrad's at step 0 is none; SGD without
    momentum never has one.
    """
    return any(state.get("step", 1) > 0 for state in optimizer.state.values() if state)


def _check_can_be_split(optimizer):
    kind = type(optimizer).__name__
    if _FUSED_BACKWARD_OPTIMIZERS & {base.__name__ for base in type(optimizer).__mro__}:
        raise RuntimeError(
            f"{kind} updates each parameter inside the backward pass and does not read its parameter groups, so their "
            "learning rates would be ignored. Choose another `optim`, for example 'adamw_torch'."
        )
    if has_stepped(optimizer):
        raise RuntimeError(
            f"The {kind} has taken steps or loaded a state, which belongs to its present groups. Group the parameters "
            "right after the optimizer is made."
        )
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise RuntimeError(
            f"A scheduler drives the {kind} already and knows only its present groups. Group the parameters between "
            "`create_optimizer` and `create_scheduler`."
        )


def _check_each_in_one_group(optimizer, names):
    counts = dict.fromkeys(names, 0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in counts:
                counts[id(parameter)] += 1
    wrong = [f"`{names[key]}` in {count}" for key, count in counts.items() if count != 1]
    if wrong:
        raise RuntimeError(
            f"Each trainable parameter must be in exactly one group of the {type(optimizer).__name__}, but of "
            f"{len(counts)} these {len(wrong)} are not: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. "
            "Freeze what should not train before the optimizer is made, and list nothing twice."
        )


def _check_saved_groups(optimizer, state_dict):
    saved, current = (
        [group.get("name", "base") for group in groups]
        for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    # torch pairs groups by position alone and would give one group the moments of another.
    if saved != current:
        raise ValueError(
            f"The saved optimizer state has the parameter groups {saved}, this optimizer has {current}. Resume with "
            "the same patterns in the same order, or start without the optimizer's state."
        )


def _claimed_twice(name, first, second):
    return (
        f"The parameter `{name}` belongs to two groups: the patterns {first!r} and {second!r} both match it. Make "
        "them disjoint, for example by anchoring the shorter one."
    )


def _nothing_matched(pattern, trainable, frozen):
    message = f"The pattern {pattern!r} matches none of the {len(trainable)} trainable parameters."
    stopped = [name for name in frozen if re.search(pattern, name)]
    if stopped:
        return (
            f"{message} It matches {len(stopped)} frozen ones, such as `{stopped[0]}`: set `requires_grad`, or with "
            "PEFT list the module in `modules_to_save`."
        )
    near = sorted(trainable, key=lambda name: _similarity(pattern, name), reverse=True)[:3]
    return f"{message} The nearest names are {', '.join(f'`{name}`' for name in near) or 'none'}."


def _similarity(pattern, name):
    return max(difflib.SequenceMatcher(None, pattern, part).ratio() for part in (name, *name.split(".")))
