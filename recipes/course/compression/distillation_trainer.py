"""A Trainer whose loss is distillation with temperature, on the text of the data set."""

from dataclasses import dataclass, field

import torch
from transformers import Trainer, TrainingArguments

from hf_evidenceflow.recipes.course.compression.distillation_loss import distillation_loss


@dataclass
class SoftTargetConfig(TrainingArguments):
    r"""
    Configuration of [`SoftTargetTrainer`].

    Parameters:
        temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of both distributions.
        soft_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the teacher's term; the rest is the text's.
    """

    temperature: float = field(default=2.0, metadata={"help": "Temperature of both distributions."})
    soft_weight: float = field(default=0.5, metadata={"help": "Weight of the teacher's term."})


class SoftTargetTrainer(Trainer):
    """
    Differs from [`~transformers.Trainer`] in the loss. TRL's `GKDTrainer` and `DistillationTrainer` have neither the
    text's term nor T^2.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Student.
        teacher_model ([`~transformers.PreTrainedModel`]):
            Teacher with the same vocabulary; it is not trained.
        args ([`SoftTargetConfig`]):
            Arguments.
        kwargs:
            As in [`~transformers.Trainer`].
    """

    def __init__(self, model, teacher_model, args: SoftTargetConfig, **kwargs):
        super().__init__(model, args, **kwargs)
        self.teacher_model = self.accelerator.prepare_model(teacher_model, evaluation_mode=True).eval()
        self.model_accepts_loss_kwargs = False  # the loss is a mean: `Trainer` divides it by the accumulation steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Differs from Trainer in the teacher's pass and the loss."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher_model(**inputs).logits
        loss, _ = distillation_loss(
            outputs.logits, teacher_logits, labels, self.args.temperature, self.args.soft_weight
        )
        return (loss, outputs) if return_outputs else loss
