"""The passes of an update over rows without padding, where the prompt of a group is computed once.

Shapes: B rows, P prompt columns, C completion columns.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.logging import get_logger
from transformers.integrations import is_deepspeed_zero3_enabled

from ..models.decoder import base_causal_lm
from ..rollouts.packed_prompts import pack_prompts
from ..rollouts.support import packing_reason
from .head_tiles import small_head_tiles
from .length_buckets import fit_columns


logger = get_logger(__name__)


class UpdatePassesMixin:
    """
    Put before [`~trl.GRPOTrainer`], whose arguments have `share_prompts_in_update` and `update_max_tokens`; what does
    not fit goes to the class behind it.
    """

    _idle: "IdleRows | None" = None  # of the batch at hand
    _packing: bool | None = None
    _places: torch.Tensor | None = None  # of the states that the last call scored, in a flattened (B, C)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        """Differs from GRPOTrainer in computing a group's prompt once, and no padding."""
        rows = input_ids, attention_mask, logits_to_keep, batch_size
        self._places = None
        if self._packs(model, kwargs):
            return *self._packed_logps(model, *rows, kwargs.get("compute_entropy", False)), None
        return super()._get_per_token_logps_and_entropies(model, *rows, **kwargs)

    def _thinking_of(self, model):
        """Thinking states and mask of the batch at hand for a pass of a model, or `None`."""

    def training_step(self, *args, **kwargs):
        """Differs from GRPOTrainer in smaller tiles of the head on a CPU, for log-probabilities and gradients."""
        with small_head_tiles(self.accelerator.device):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        """Differs from GRPOTrainer in smaller tiles of the head on a CPU."""
        with small_head_tiles(self.accelerator.device):
            return super().prediction_step(*args, **kwargs)

    def _prepare_inputs(self, generation_batch):
        """Differs from GRPOTrainer in keeping completions of a prompt together, in one batch of an optimizer step."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches, size = self._buffered_inputs, self.args.gradient_accumulation_steps
        if not self.model.training or batches is before or not self.args.share_prompts_in_update:
            return inputs
        for start in range(0, len(batches), size):
            batches[start : start + size] = together(batches[start : start + size])
        return batches[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model, inputs):
        """Differs from GRPOTrainer in leaving out rows that cannot contribute."""
        leaves_out = self.model.training and self._packs(model, {})
        self._idle = idle_rows(self, inputs) if leaves_out else None
        try:
            if leaves_out:
                share = 0.0 if self._idle is None else self._idle.rows.float().mean().item()
                self._metrics["train"]["update/idle_rows"].append(share)
            return super()._compute_loss(model, inputs)
        finally:
            self._idle = None

    def _packs(self, model, kwargs) -> bool:
        """Whether a call of `_get_per_token_logps_and_entropies` can be packed; if not, the reason is said once."""
        if not self.args.share_prompts_in_update or kwargs.get("compute_aux_loss"):
            return False
        if any(value is not None for name, value in kwargs.items() if not name.startswith("compute_")):
            return False  # images
        if self._packing is None:
            reason = self._packing_reason(model)
            self._packing = reason is None
            if reason is not None:
                logger.warning(f"The update computes each row with its prompt and padding: {reason}.")
        return self._packing

    def _packing_reason(self, model):
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            return "the weights are sharded, and processes would make different numbers of calls"
        return packing_reason(base_causal_lm(self.accelerator.unwrap_model(model)))

    def _packed_logps(self, model, input_ids, attention_mask, columns, batch_size, compute_entropy):
        """Log-probabilities and entropies `(B, C)`, 0 at padding."""
        limit = self.args.update_max_tokens
        if batch_size is not None and batch_size < len(input_ids):
            most = batch_size * input_ids.shape[1]
            limit = most if limit is None else min(limit, most)
        rows = None if self._idle is None else (~self._idle.rows).nonzero().flatten().tolist()
        module, thinking = self.accelerator.unwrap_model(model), self._thinking_of(model)
        decoder = base_causal_lm(module).base_model
        sources, logps, entropies = [], [], []
        for pack in pack_prompts(input_ids, attention_mask, columns, rows, limit):
            inputs = {}
            if thinking is not None:
                states, mask = (pack.gather(fit_columns(tensor, columns)) for tensor in thinking)
                inputs = {"thinking_states": states, "thinking_mask": mask}
            with self.accelerator.autocast(), scored_states(decoder, pack.places - 1):
                outputs = model(
                    input_ids=pack.ids,
                    attention_mask=pack.mask(torch.float32),
                    position_ids=pack.positions,
                    shift_labels=pack.ids[:, pack.places],
                    fused_lm_head=True,
                    packed_prompts=pack,
                    **inputs,
                )
            model = module  # processes synchronize in the wrapper's forward, and may differ in their number of passes
            sources.append(pack.sources)
            logps.append(outputs.log_probs[0])
            if compute_entropy:
                entropies.append(outputs.entropy[0])
        shape = len(input_ids), columns
        self._places = torch.cat(sources)
        logps = scatter(torch.cat(logps), self._places, shape)
        entropies = scatter(torch.cat(entropies), self._places, shape) if compute_entropy else None
        return (logps, entropies) if self._idle is None else self._idle.fill(logps, entropies)


@contextmanager
def scored_states(decoder, positions):
    """Hands the head the states of these positions only: where Triton is not, TRL's head scores what it gets."""

    def select(module, args, output):
        output.last_hidden_state = output.last_hidden_state[:, positions]
        return output

    handle = decoder.register_forward_hook(select, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def scatter(values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Values `(n,)` at their places in a flattened `(B, C)`, which is 0 elsewhere."""
    return values.new_zeros(shape[0] * shape[1]).index_put((places,), values).view(shape)


def together(batches: list[dict]) -> list[dict]:
    """The rows of these batches in as many of the same sizes, those of a prompt one after the other."""
    if len(batches) == 1 or any(isinstance(value, list) for value in batches[0].values()):  # images
        return batches
    sizes = [len(batch["prompt_ids"]) for batch in batches]
    joined = {
        name: torch.cat([batch[name] for batch in batches]) if value is not None and value.ndim else value
        for name, value in batches[0].items()
    }
    seen = joined["prompt_mask"]
    keys = [tuple(ids) for ids in torch.cat([joined["prompt_ids"] * seen, seen], dim=1).tolist()]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = torch.tensor(
        sorted(range(len(keys)), key=lambda row: first[keys[row]]), device=joined["prompt_ids"].device
    )
    parts = {
        name: value[order].split(sizes) if value is not None and value.ndim else [value] * len(sizes)
        for name, value in joined.items()
    }
    return [{name: part[index] for name, part in parts.items()} for index in range(len(sizes))]


@dataclass(frozen=True)
class IdleRows:
    """
    Rows that cannot contribute to the loss, and are left out of its passes.

    Args:
        rows (`torch.Tensor` of shape `(B,)`): where they are.
        mask (`torch.Tensor` of shape `(B, C)`): tokens that the loss and its metrics count.
        old_logps (`torch.Tensor` of shape `(B, C)`, *optional*): log-probabilities that ratios are taken to.
    """

    rows: torch.Tensor
    mask: torch.Tensor
    old_logps: torch.Tensor | None

    def fill(self, logps, entropies):
        """In these rows a ratio of 1, and the mean entropy of the others, so that means are those of the others."""
        idle = self.rows[:, None]
        logps = torch.where(idle, 0.0 if self.old_logps is None else self.old_logps, logps)
        if entropies is not None:
            counted = self.mask * ~idle
            mean = (entropies.detach() * counted).sum() / counted.sum().clamp(min=1)
            entropies = torch.where(idle, mean, entropies)
        return logps, entropies


def idle_rows(trainer, inputs) -> IdleRows | None:
    """
    The rows of a batch whose advantage is zero, but for the shortest where all are, since a loss needs a graph. `None`
    if there are none, or if other terms of the loss need all rows.
    """
    entropy_counts = trainer.top_entropy_quantile < 1 or trainer.entropy_coef or trainer.use_adaptive_entropy
    if trainer.beta or entropy_counts or trainer.aux_loss_enabled:
        return None
    advantages, mask = inputs["advantages"], inputs["completion_mask"]
    idle = advantages == 0 if advantages.dim() == 1 else (advantages == 0).all(1)
    if idle.all():
        idle[mask.sum(1).argmin()] = False
    if not idle.any():
        return None
    return IdleRows(idle, mask * inputs.get("tool_mask", 1), inputs.get("old_per_token_logps"))
