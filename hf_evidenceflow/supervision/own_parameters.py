"""Parameters of an objective's own in a Trainer's optimizer: trained with the model, saved next to it, never in it."""

import os
from pathlib import Path

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic_write import atomic_file


FILE_NAME = "evidence_flow.safetensors"


class OwnParameters:
    """
    Puts modules into the first group of a prepared optimizer, whose learning rate and schedule they share.

    The optimizer's own `state_dict()` keeps leaving them out, so that a checkpoint can be resumed with and without
    them; values and optimizer states go into a file next to it.

    Raises:
        ValueError: if the optimizer is DeepSpeed's, which takes no parameters later.
    """

    def __init__(self, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer):
        if isinstance(optimizer, DeepSpeedOptimizerWrapper):
            raise ValueError(
                "The objective has parameters of its own, and DeepSpeed's optimizer takes none after it was prepared. "
                "Train without DeepSpeed, or choose an objective without parameters."
            )
        self._parameters = dict(modules.named_parameters())
        self._optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        # A list of its own: the optimizer shares the given one with nobody
        self._group = self._optimizer.param_groups[0]
        self._group["params"] = [*self._group["params"], *self._parameters.values()]
        self._hook = self._optimizer.register_state_dict_post_hook(self._leave_out)

    def _leave_out(self, optimizer, state_dict):
        own = {id(parameter) for parameter in self._parameters.values()}
        new_ids = {}
        groups = []
        for group, packed in zip(optimizer.param_groups, state_dict["param_groups"]):
            kept = [old for parameter, old in zip(group["params"], packed["params"]) if id(parameter) not in own]
            for old in kept:
                new_ids[old] = len(new_ids)
            groups.append({**packed, "params": [new_ids[old] for old in kept]})
        states = {new_ids[old]: state for old, state in state_dict["state"].items() if old in new_ids}
        return {**state_dict, "state": states, "param_groups": groups}

    def clip(self, max_norm: float | None) -> None:
        """Clip the gradients by their own norm, since the Trainer clips the model's."""
        if max_norm:
            nn.utils.clip_grad_norm_(self._parameters.values(), max_norm)

    def zero_grad(self) -> None:
        """Drop the gradients, since the Trainer drops the model's."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def save(self, folder: Path) -> None:
        """Write values and optimizer states into a checkpoint folder, in one rename."""
        tensors = {f"value:{name}": parameter.detach() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}:{name}"] = torch.as_tensor(value)
        with atomic_file(folder / FILE_NAME) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)

    def load(self, folder: str | os.PathLike) -> None:
        """Read what [`save`] has written; other parameters are a `ValueError`."""
        path = Path(folder) / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"The objective's own parameters are not in the checkpoint: there is no `{path}`. Pass the folder "
                "that holds them as `EvidenceFlowCallback(..., resume_from=folder)`."
            )
        values: dict[str, torch.Tensor] = {}
        states: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(path).items():
            kind, _, name = key.partition(":")
            (values if kind == "value" else states.setdefault(name, {}))[name if kind == "value" else kind] = tensor
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        found = {name: tuple(value.shape) for name, value in values.items()}
        if found != shapes:
            raise ValueError(f"`{path}` holds {found}, the objective needs {shapes}. Resume with the same settings.")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])
                if name in states:
                    self._optimizer.state[parameter] = {
                        key: value.to(parameter.device) if value.dim() else value
                        for key, value in states[name].items()
                    }

    def leave(self) -> None:
        """Take the parameters out of the optimizer. Calling it again changes nothing."""
        own = {id(parameter) for parameter in self._parameters.values()}
        self._group["params"] = [parameter for parameter in self._group["params"] if id(parameter) not in own]
        for parameter in self._parameters.values():
            self._optimizer.state.pop(parameter, None)
        self._hook.remove()
