"""TRL's SFTTrainer with what [`PretrainingTrainer`] adds to Trainer.

Data, templates and masks are SFTTrainer's own. What remains, since SFTTrainer has none of it: loss, perplexity and
accuracy over tokens, so that runs on completions and on text can be compared; the training clock and
`warmup_exponential`; checkpoints that resume exactly; the code and the card next to the weights.
"""

from dataclasses import dataclass, fields

from trl import SFTConfig, SFTTrainer

from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .hub_code_mixin import HubCodeMixin
from .model_card_mixins import ModelCardMixin
from .pretraining_config import PretrainingConfig
from .pretraining_trainer import CausalLMEvaluationMixin


@dataclass
class CompletionConfig(PretrainingConfig, SFTConfig):
    """The fields of [`PretrainingConfig`] and [`~trl.SFTConfig`], with the former's defaults where both have one."""

    @classmethod
    def from_pretraining(cls, args: PretrainingConfig, **overrides) -> "CompletionConfig":
        """The same settings for SFT, with `overrides` of [`~trl.SFTConfig`]'s fields."""
        given = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
        return cls(**(given | overrides))


class CompletionTrainer(ModelCardMixin, HubCodeMixin, CausalLMEvaluationMixin, ResumableTrainerMixin, SFTTrainer):
    """Trains on completions, or on the assistant's turns; its arguments are a [`CompletionConfig`]."""

    kept_attributes = ("_metrics", "_total_train_tokens")
