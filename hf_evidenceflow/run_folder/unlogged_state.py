"""What a Trainer has gathered since its last logged row, kept in the checkpoint.

Trainer drops the sum of losses since the last row, TRL its metrics, when a run is resumed. JSON holds the numbers
exactly: Python writes the shortest text that reads back as the same number.
"""

import json
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import torch

from ..atomic_write import atomic_write_text
from ..files import read_json


UNLOGGED_NAME = "unlogged_{rank}.json"


def save_unlogged(trainer, folder: Path, further: dict) -> None:
    """Write this rank's state into a checkpoint, with `further` entries for [`load_unlogged`]."""
    state = {
        **further,
        "tr_loss": trainer._tr_loss.item(),
        "total_loss_scalar": trainer._total_loss_scalar,
        "globalstep_last_logged": trainer._globalstep_last_logged,
        "training": trainer.model.training,
        "attributes": {name: _plain(getattr(trainer, name)) for name in trainer.kept_attributes},
    }
    atomic_write_text(folder / UNLOGGED_NAME.format(rank=trainer.args.process_index), json.dumps(state))


def read_unlogged(trainer, checkpoint: str) -> dict | None:
    """
    What [`save_unlogged`] has written for this rank; `None` if the checkpoint has none, as one of the stock Trainer.
    """
    # On more ranks than there were, the new ones take what the first one knew
    paths = [Path(checkpoint) / UNLOGGED_NAME.format(rank=rank) for rank in (trainer.args.process_index, 0)]
    path = next((path for path in paths if path.exists()), None)
    return None if path is None else read_json(path, allow_nan=True)


def load_unlogged(trainer, checkpoint: str) -> dict | None:
    """Put back the state that [`read_unlogged`] returns; after Trainer has reset its sums."""
    state = read_unlogged(trainer, checkpoint)
    if state is None:
        return None
    trainer._tr_loss = torch.tensor(state["tr_loss"], device=trainer.args.device)
    trainer._total_loss_scalar = state["total_loss_scalar"]
    trainer._globalstep_last_logged = state["globalstep_last_logged"]
    trainer.model.train(state["training"])
    for name, value in state["attributes"].items():
        setattr(trainer, name, _put_back(getattr(trainer, name), value))
    return state


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple, deque)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _put_back(current, value):
    """`value` in the kind of container that `current` is: TRL has default dictionaries of lists and deques."""
    if isinstance(current, deque):
        return deque(value, current.maxlen)
    if not isinstance(current, dict):
        return value
    for key, item in value.items():
        known = key in current or isinstance(current, defaultdict)
        current[key] = _put_back(current[key], item) if known else item
    return current
