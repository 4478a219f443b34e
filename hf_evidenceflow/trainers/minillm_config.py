"""Arguments of [`MiniLLMTrainer`]."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class MiniLLMConfig(TrainingArguments):
    r"""
    Configuration of [`MiniLLMTrainer`]. Differs from [`~transformers.TrainingArguments`] in the fields below.

    Parameters:
        teacher_share (`float`, *optional*, defaults to `0.2`):
            The teacher's share in sampling, in [0, 1]; the paper's alpha and value.
        max_completion_length (`int`, *optional*, defaults to `48`):
            Longest sample, in tokens.
        length_normalized (`bool`, *optional*, defaults to `True`):
            Whether the part of the gradient that looks ahead takes the mean of the later rewards, not their sum.
        pretraining_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on rows of plain text.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Differs from the parent: the collator needs the columns.
        save_hub_code (`bool`, *optional*, defaults to `True`):
            As in [`HRPOConfig`].
    """

    teacher_share: float = field(default=0.2, metadata={"help": "The teacher's share in sampling."})
    max_completion_length: int = field(default=48, metadata={"help": "Longest sample, in tokens."})
    length_normalized: bool = field(default=True, metadata={"help": "Whether later rewards are a mean, not a sum."})
    pretraining_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy on plain text."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Whether to drop unknown columns."})
    save_hub_code: bool = field(
        default=True, metadata={"help": "Save the model's code next to its weights for `trust_remote_code=True`."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"`teacher_share` must be in [0, 1], got {self.teacher_share}.")
        if self.max_completion_length < 1:
            raise ValueError(f"`max_completion_length` must be at least 1, got {self.max_completion_length}.")
        if self.pretraining_weight < 0:
            raise ValueError(f"`pretraining_weight` must not be negative, got {self.pretraining_weight}.")
