"""MiniLLM as a Trainer: samples from student and teacher, the reverse KL's policy gradient, and the text's own loss.

TRL 1.16 has no MiniLLM; its `DistillationTrainer` minimizes the reverse KL of each next token on the student's
samples, which is the `Single` part here, without what a token does to the later ones.
"""

from collections import defaultdict

import torch
from transformers import Trainer

from ..losses.minillm import minillm_loss
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .hub_code_mixin import HubCodeMixin
from .minillm_config import MiniLLMConfig
from .mixed_sampling import positions, sample_mixed
from .model_card_mixins import ModelCardMixin


class PromptTextCollator:
    """Puts prompts, padded on the left with `pad_token_id`, and rows of text into a batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """`prompt_ids` and `prompt_mask` of shape `(B, P)`, and `text_ids` of shape `(B, T)`."""
        width = max(len(row["prompt_ids"]) for row in rows)
        ids, mask = (
            torch.tensor([[fill] * (width - len(row["prompt_ids"])) + values(row["prompt_ids"]) for row in rows])
            for fill, values in ((self.pad_token_id, list), (0, lambda prompt: [1] * len(prompt)))
        )
        return {
            "prompt_ids": ids,
            "prompt_mask": mask,
            "text_ids": torch.tensor([list(row["text_ids"]) for row in rows]),
        }


class MiniLLMTrainer(ModelCardMixin, HubCodeMixin, ResumableTrainerMixin, Trainer):
    """
    Trainer of MiniLLM. Each step samples completions for a batch of prompts and makes one update with them.

    Example:

    ```python
    >>> from hf_evidenceflow import MiniLLMConfig, MiniLLMTrainer

    >>> trainer = MiniLLMTrainer(
    ...     student, teacher, MiniLLMConfig("minillm"), train_dataset=rows, processing_class=tokenizer
    ... )
    >>> trainer.train()
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Student, best after some training on the text.
        teacher_model ([`~transformers.PreTrainedModel`]):
            Teacher with the same vocabulary; it is not trained.
        args ([`MiniLLMConfig`]):
            Arguments.
        train_dataset (`Dataset` or `Sequence[dict]`):
            Rows of `prompt_ids`, and of `text_ids`, all of one length, for the loss on the text.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a padding and an end-of-sequence token.
        kwargs:
            As in [`~transformers.Trainer`].

    Raises:
        `ValueError`: if the vocabularies differ.
    """

    kept_attributes = ("_parts",)
    _card_method = "MiniLLM ([paper](https://huggingface.co/papers/2306.08543))"

    def __init__(self, model, teacher_model, args: MiniLLMConfig, *, processing_class, **kwargs):
        sizes = [one.config.get_text_config().vocab_size for one in (model, teacher_model)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"Student and teacher have vocabularies of {sizes[0]} and {sizes[1]}. Take the same one.")
        collator = PromptTextCollator(processing_class.pad_token_id)
        super().__init__(model, args, data_collator=collator, processing_class=processing_class, **kwargs)
        self.teacher_model = self.accelerator.prepare_model(teacher_model, evaluation_mode=True).eval()
        self.model_accepts_loss_kwargs = False  # the loss is a mean: `Trainer` divides it by the accumulation steps
        self._parts = defaultdict(list)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Differs from Trainer in all: samples, the policy gradient, the text's loss."""
        prompt_ids, prompt_mask = inputs["prompt_ids"], inputs["prompt_mask"]
        student = self.accelerator.unwrap_model(model)
        was_training = student.training
        student.eval()
        tokens, mask, sampling_logps = sample_mixed(
            student,
            self.teacher_model,
            prompt_ids,
            prompt_mask,
            self.args.teacher_share,
            self.args.max_completion_length,
            self.processing_class.eos_token_id,
            self.processing_class.pad_token_id,
        )
        student.train(was_training)
        attention_mask = torch.cat([prompt_mask, mask], dim=1)
        batch = {
            "input_ids": torch.cat([prompt_ids, tokens], dim=1),
            "attention_mask": attention_mask,
            "position_ids": positions(attention_mask),
            "logits_to_keep": tokens.shape[1] + 1,
        }
        outputs = model(**batch)
        with torch.no_grad():
            teacher_logits = self.teacher_model(**batch).logits[:, :-1]
        loss, parts = minillm_loss(
            outputs.logits[:, :-1], teacher_logits, tokens, mask, sampling_logps, self.args.length_normalized
        )
        if self.args.pretraining_weight:
            text_loss = model(input_ids=inputs["text_ids"], labels=inputs["text_ids"]).loss
            loss = loss + self.args.pretraining_weight * text_loss
            parts["text_loss"] = text_loss.item()
        parts["completion_length"] = mask.sum().item() / len(mask)
        for name, value in parts.items():
            self._parts[name].append(value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Differs from Trainer in the parts of the loss, means since the last entry."""
        logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
        self._parts.clear()
        super().log(logs, start_time)
