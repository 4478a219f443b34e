"""A Trainer for language modeling with exact validation loss, perplexity and accuracy.

Shapes: B rows, T positions, V tokens of the vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from transformers import Trainer

from ..callbacks.training_clock import TrainingClock
from ..data.token_ids import check_rows
from ..models.declared import evaluation_statistics, no_decay_names, statistic_names
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .hub_code_mixin import HubCodeMixin
from .model_card_mixins import ModelCardMixin
from .schedules import WARMUP_EXPONENTIAL, warmup_exponential


IGNORE_INDEX = -100
TOKENS_AT_ONCE = 8192  # whose float32 copy of the logits is held at a time


def next_token_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Sums of each row from which loss and accuracy over any set of rows follow exactly.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`):
            The model's output.
        labels (`torch.Tensor` of shape `(B, T)`):
            Not shifted; -100 is left out.

    Returns:
        `torch.Tensor` of shape `(B, 3)`: negative log-likelihood (nats), right top-1 predictions, and predicted
        tokens, float64 (float32 where the device has none).
    """
    targets = labels[:, 1:].flatten()
    predictions = logits[:, :-1].flatten(0, 1)
    losses, right = [], []
    for part, target in zip(predictions.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE)):
        losses.append(F.cross_entropy(part.float(), target, ignore_index=IGNORE_INDEX, reduction="none"))
        right.append(part.argmax(-1) == target)
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    columns = (torch.cat(losses), torch.cat(right), targets != IGNORE_INDEX)
    return torch.stack([column.to(dtype).view(len(labels), -1).sum(1) for column in columns], dim=1)  # [B, 3]


def summarize_sums(prediction) -> dict[str, float]:
    """Loss (nats per token), perplexity and top-1 accuracy over all rows of [`next_token_sums`]."""
    loss, right, tokens = prediction.predictions.sum(0).tolist()
    if tokens == 0:
        raise ValueError("The validation data has no token to predict. Give rows of two tokens or more.")
    mean = loss / tokens
    return {
        "exact_loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "accuracy": right / tokens,
    }


class CausalLMEvaluationMixin:
    """
    Validation over tokens, training time, and the `warmup_exponential` schedule, for a [`~transformers.Trainer`] with
    [`PretrainingConfig`]'s fields as its arguments; put before the trainer's class.

    Each logged row has `train_seconds` (without evaluation, logging and saving; kept across resumes) and
    `train_tokens`. An evaluation has `eval_loss` (cross-entropy only, in nats), `eval_perplexity`, `eval_accuracy`,
    and `eval_router_*` of a mixture of experts.
    """

    def __init__(self, *args, **kwargs):
        """Differs from Trainer in the metric, which is always the same, in the clock, and in checking token ids."""
        super().__init__(*args, compute_metrics=summarize_sums, **kwargs)
        check_rows(self.train_dataset, self.model, "The training data")
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for rows in evaluation.values():
            check_rows(rows, self.model, "The validation data")
        self.clock = TrainingClock()
        self.add_callback(self.clock)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Differs from Trainer in `warmup_exponential`."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == WARMUP_EXPONENTIAL:
            self.lr_scheduler = warmup_exponential(
                self.optimizer if optimizer is None else optimizer,
                self.args.get_warmup_steps(num_training_steps),
                num_training_steps,
                self.args.exponential_decay_rate,
                self.args.exponential_final_ratio,
                self.args.exponential_stable_steps,
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model):
        """Differs from Trainer in the parameters that the model declares in `no_weight_decay`."""
        kept = set() if self.args.decay_extra_parameters else no_decay_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in kept]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """
        Differs from Trainer in what it keeps: three sums per row instead of all logits. The model gets no labels, so
        that no auxiliary loss is computed.
        """
        inputs = send_to_device(dict(inputs), self.args.device)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = next_token_sums(model(**inputs).logits, labels)
        return None, sums, sums[:, 2:]

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """
        Differs from Trainer in the loss: over tokens, where Trainer's is the mean of the batches' means; and in the
        statistics that the model has, such as those of its router.
        """
        with evaluation_statistics(self.model) as statistics:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in statistics.items()})
        output.metrics[f"{metric_key_prefix}_loss"] = output.metrics.pop(f"{metric_key_prefix}_exact_loss")
        return output

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Differs from Trainer in stopping the clock."""
        if not (self.control.should_log or self.control.should_evaluate or self.control.should_save):
            return super()._maybe_log_save_evaluate(*args, **kwargs)
        with self.clock.paused():
            return super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs, start_time=None):
        """Differs from Trainer in `train_seconds` and `train_tokens`; its own per-row speeds are left out."""
        logs["train_seconds"] = round(self.clock.seconds, 3)
        logs["train_tokens"] = self.state.num_input_tokens_seen
        super().log(logs)

    def final_metrics(self) -> dict[str, float | int | None]:
        """
        What the run came to; validates unless that was done at the last step.

        Returns:
            `dict`: what an evaluation has; `train_loss` (the last one logged: with layer-wise supervision that term is
            in it); `train_seconds`, `train_tokens`, `num_parameters`.
        """
        history = self.state.log_history
        done = [row for row in history if "eval_loss" in row and row["step"] == self.state.global_step]
        evaluation = done[-1] if done else self.evaluate()
        names = ("loss", "perplexity", "accuracy", *statistic_names(self.model))
        return {
            **{f"eval_{name}": evaluation[f"eval_{name}"] for name in names},
            "train_loss": next((row["loss"] for row in reversed(history) if "loss" in row), None),
            "train_seconds": self.clock.seconds,
            "train_tokens": self.state.num_input_tokens_seen,
            "num_parameters": self.model.num_parameters(),
        }


class PretrainingTrainer(ModelCardMixin, HubCodeMixin, CausalLMEvaluationMixin, ResumableTrainerMixin, Trainer):
    """Trains a causal LM on rows of token ids; its arguments are a [`PretrainingConfig`]."""
