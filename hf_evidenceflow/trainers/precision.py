"""The default precision of TRL's configs where the device has no bf16."""

from dataclasses import dataclass

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import SFTConfig


def resolve_bf16(args: TrainingArguments) -> None:
    """
    Settle `bf16` in place, before the parent's `__post_init__`, if it is None: on with a device for it, off on a CPU.
    TRL takes True without `fp16`, and transformers then refuses a CPU, which hides every other error.
    """
    if args.bf16 is None:
        able = is_torch_bf16_gpu_available() or is_torch_xla_available()
        args.bf16 = able and not args.fp16 and not args.use_cpu


@dataclass
class DeviceSFTConfig(SFTConfig):
    """Differs from [`~trl.SFTConfig`] in that `bf16` is off by default on a CPU, see [`resolve_bf16`]."""

    def __post_init__(self):
        resolve_bf16(self)
        super().__post_init__()
