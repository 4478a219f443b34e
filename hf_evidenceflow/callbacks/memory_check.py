"""Refuses, before the first step, settings whose step would not fit into the memory that is free."""

import itertools
from dataclasses import replace

from accelerate.logging import get_logger
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from ..report.memory import free_memory, held_memory, map_large_tensors
from ..trainers.step_memory import ModelCosts, StepLoad, StepMemory, model_costs, step_load, step_memory


logger = get_logger(__name__)

_RESERVE = 500_000_000  # bytes of work space and small tensors, which the estimate leaves out


class MemoryCheck(TrainerCallback):
    """
    Estimates the peak memory of a step when a training begins, and ends it with a `ValueError` that names settings
    which fit, if more is needed than is free. It says nothing of sharded weights. On a CPU, freed tensors go back to
    the system from then on ([`~report.memory.map_large_tensors`]).

    Args:
        trainer ([`HRPOTrainer`]):
            Whose settings and model are looked at.

    Attributes:
        estimate ([`~trainers.step_memory.StepMemory`], *optional*):
            Of the training that has begun, in bytes beyond what was held.
        held (`int`): bytes held when it began.
        description (`str`): the estimate in one line, empty without one.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.estimate: StepMemory | None = None
        self.held, self.description = 0, ""

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.accelerator.device.type == "cpu":
            map_large_tensors()
        sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        if not args.check_memory or sharded or args.max_completion_length is None:
            return
        try:
            costs = model_costs(trainer)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # as for attention over shared prompts
            logger.info(f"No estimate of the memory of a step: {error}")
            return
        load, device = step_load(trainer), trainer.accelerator.device
        self.estimate = step_memory(costs, load)
        self.held, free = held_memory(device), free_memory(device)
        if device.type == "cpu":
            free //= trainer.accelerator.num_processes  # which share it
        self.description = describe(self.estimate, self.held, free)
        logger.info(self.description)
        room = free - _RESERVE
        if self.estimate.peak > room:
            raise ValueError(refusal(costs, load, room))


def describe(estimate: StepMemory, held: int, free: int) -> str:
    """The estimate in one line."""
    return (
        f"A step takes {(held + estimate.peak) / 1e9:.1f} GB at most, by estimate: {held / 1e9:.1f} held now, "
        f"{estimate.optimizer / 1e9:.1f} for the optimizer, and {estimate.rollout / 1e9:.1f} for the rollout or "
        f"{estimate.update / 1e9:.1f} for the update; {free / 1e9:.1f} GB are free."
    )


def refusal(costs: ModelCosts, load: StepLoad, room: int) -> str:
    """Why a step does not fit into so many bytes, and with which settings it would."""
    needed = step_memory(costs, load)
    part = "rollout" if needed.rollout > needed.update else "update"
    fitting = fitting_load(costs, load, room)
    text = (
        f"A step would take about {needed.peak / 1e9:.1f} GB, and there is room for {max(room, 0) / 1e9:.1f} GB; most "
        f"goes to the {part}, with `per_device_train_batch_size={load.update_rows}`, "
        f"`max_completion_length={load.completion}` and `gradient_checkpointing={load.checkpointed}`. "
    )
    if fitting is None:
        text += "Not even a single row fits: lower `max_completion_length`, or take an adapter or a smaller dtype. "
    else:
        taken = step_memory(costs, fitting).peak
        text += f"It fits, with {taken / 1e9:.1f} GB, with {' and '.join(_changes(load, fitting))}. "
        text += "Or lower `max_completion_length`. "
    return text + "`check_memory=False` goes on regardless."


def fitting_load(costs: ModelCosts, load: StepLoad, free: int) -> StepLoad | None:
    """The load that fits with the most rows, then the fewest changes; `None` if none does."""
    options = itertools.product({load.checkpointed, True}, _halvings(load.update_rows), _halvings(load.decoded_rows))
    loads = [
        replace(load, checkpointed=checkpointed, update_rows=update, decoded_rows=decoded)
        for checkpointed, update, decoded in options
    ]
    loads.sort(key=lambda other: (-other.update_rows, -other.decoded_rows, len(_changes(load, other))))
    return next((other for other in loads if step_memory(costs, other).peak <= free), None)


def _halvings(rows):
    return [rows, *(rows >> times for times in range(1, rows.bit_length()) if rows % (1 << times) == 0)]


def _changes(load, other):
    texts = []
    if other.checkpointed != load.checkpointed:
        texts.append("`gradient_checkpointing=True`")
    if other.update_rows != load.update_rows:
        more = load.update_rows // other.update_rows
        texts.append(
            f"`per_device_train_batch_size={other.update_rows}` and {more} times the `gradient_accumulation_steps`"
        )
    if other.decoded_rows != load.decoded_rows:
        texts.append(f"`rollout_max_rows={other.decoded_rows}`")
    return texts
