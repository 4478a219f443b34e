"""[`~transformers.TrainingArguments`] with the fields of [`PretrainingTrainer`]."""

from dataclasses import dataclass

from transformers import TrainingArguments

from .schedules import WARMUP_EXPONENTIAL, check_exponential


@dataclass
class PretrainingConfig(TrainingArguments):
    """
    Differs from TrainingArguments in a further schedule, in what weight decay acts on, and in some defaults:
    evaluation each 500 steps, tokens are counted, nothing is reported elsewhere.

    Args:
        lr_scheduler_type (`str`, *optional*, defaults to `"linear"`):
            A schedule of transformers (`cosine`, `cosine_with_min_lr`, `warmup_stable_decay`, ...), or
            `warmup_exponential`: linear warm-up, plateau, exponential decay.
        exponential_decay_rate (`float`, *optional*):
            With `warmup_exponential`: factor of each step, in (0, 1].
        exponential_final_ratio (`float`, *optional*):
            With `warmup_exponential`, instead of the rate: last learning rate as a share of the peak, in (0, 1].
        exponential_stable_steps (`int`, *optional*, defaults to `0`):
            With `warmup_exponential`: steps of the plateau.
        decay_extra_parameters (`bool`, *optional*, defaults to `False`):
            Whether weight decay acts also on the parameters that a cross-layer Llama has and Llama has not. It moves
            them without any gradient, which is easily read as learning.
        eval_strategy (`str`, *optional*, defaults to `"steps"`):
            When to evaluate: `steps` (each `eval_steps`), `epoch` or `no`.
        report_to (`str`, *optional*, defaults to `"none"`):
            Where the log goes next to `log.jsonl`: `wandb`, `tensorboard`, `trackio`, ...
        save_hub_code (`bool`, *optional*, defaults to `True`):
            Whether the code of a model of this package is saved next to its weights, for `trust_remote_code=True`.
    """

    lr_scheduler_type: str = "linear"
    exponential_decay_rate: float | None = None
    exponential_final_ratio: float | None = None
    exponential_stable_steps: int = 0
    decay_extra_parameters: bool = False
    eval_strategy: str = "steps"
    eval_steps: float | None = 500
    logging_steps: float = 10
    report_to: str = "none"
    save_hub_code: bool = True
    include_num_input_tokens_seen: str = "non_padding"

    def __post_init__(self):
        ours = self.lr_scheduler_type == WARMUP_EXPONENTIAL
        exponential = (self.exponential_decay_rate, self.exponential_final_ratio)
        if ours:
            check_exponential(*exponential)
            self.lr_scheduler_type = "constant_with_warmup"  # the parent knows transformers' names only
        elif exponential != (None, None) or self.exponential_stable_steps:
            raise ValueError(
                "The `exponential_*` settings need `lr_scheduler_type` "
                f"{WARMUP_EXPONENTIAL!r}, got {self.lr_scheduler_type!r}. Change it, or remove them."
            )
        super().__post_init__()
        if ours:
            self.lr_scheduler_type = WARMUP_EXPONENTIAL
