"""Settings of a resumed run that differ from those its checkpoint was trained with."""

import logging

from ..atomic_write import to_plain


logger = logging.getLogger(__name__)

# From the checkpoint's optimizer and scheduler, whatever is asked for
_KEPT = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
_TAKEN = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed", "data_seed", "bf16", "fp16"),
)


def trajectory_settings(trainer) -> dict:
    """What decides how a training goes on, as JSON values."""
    names = (*_KEPT, *_TAKEN, "optim")
    settings = {name: to_plain(getattr(trainer.args, name)) for name in names}
    return settings | {"number of processes": trainer.args.world_size}


def check_changes(before: dict, now: dict, checkpoint: str, warns: bool = True) -> None:
    """
    Say in one line, on the rank that warns, which [`trajectory_settings`] differ between checkpoint and resumed run.
    Another optimizer is a `ValueError`: its state is of no use.
    """
    changed = [name for name in before if name in now and before[name] != now[name]]
    if "optim" in changed:
        raise ValueError(
            f"`{checkpoint}` was trained with `optim={before['optim']}`, whose state {now['optim']!r} cannot take "
            "over. Put it back, or start a new run from the checkpoint's weights."
        )
    if not changed or not warns:
        return
    kept = " (the checkpoint's stays in force)"
    listed = [f"`{name}` was {before[name]} and is {now[name]}{kept if name in _KEPT else ''}" for name in changed]
    logger.warning(
        "Resumed from `%s` with other settings: %s. The run differs from here on from one that was not stopped.",
        checkpoint,
        "; ".join(listed),
    )
