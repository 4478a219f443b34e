"""Log-probabilities of an update whose groups compute their prompt once, in the place of padded rows.

Shapes: B rows, P prompt columns, C completion columns, T packed positions.
"""

import torch
from accelerate.logging import get_logger
from transformers.integrations import is_deepspeed_zero3_enabled

from ..models.decoder import base_causal_lm
from ..rollouts.packed_prompts import pack_prompts
from ..rollouts.support import packing_reason


logger = get_logger(__name__)


class PackedUpdateMixin:
    """
    Put before [`~trl.GRPOTrainer`], whose arguments have `share_prompts_in_update` and `update_max_tokens`.

    `_thinking`, `(states, mask)` of the batch at hand or `None`, goes into the passes of the policy.
    """

    _idle_rows: torch.Tensor | None = None  # of the batch at hand [B]: they cannot contribute to the loss
    _packing: bool | None = None

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
                logger.warning(f"The update computes each row with its prompt, in buckets of like length: {reason}.")
        return self._packing

    def _packing_reason(self, model):
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            return "the weights are sharded, and processes would make different numbers of calls"
        return packing_reason(base_causal_lm(self.accelerator.unwrap_model(model)))

    def _packed_logps(self, model, input_ids, attention_mask, columns, batch_size, thinking, compute_entropy):
        """Log-probabilities and entropies `(B, C)`; 0 at padding and in rows that are left out."""
        limit = self.args.update_max_tokens
        if batch_size is not None and batch_size < len(input_ids):
            most = batch_size * input_ids.shape[1]
            limit = most if limit is None else min(limit, most)
        rows = None if self._idle_rows is None else (~self._idle_rows).nonzero().flatten().tolist()
        sources, logps, entropies = [], [], []
        for pack in pack_prompts(input_ids, attention_mask, columns, rows, limit):
            inputs = {}
            if thinking is not None:
                states, mask = (pack.gather(tensor) for tensor in thinking)
                inputs = {"thinking_states": states, "thinking_mask": mask}
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=pack.ids,
                    attention_mask=pack.mask(torch.float32),
                    position_ids=pack.positions,
                    shift_labels=pack.labels,
                    fused_lm_head=True,
                    packed_prompts=pack,
                    **inputs,
                )
            sources.append(pack.sources)
            before = pack.places - 1
            logps.append(outputs.log_probs[0, before])
            if compute_entropy:
                entropies.append(outputs.entropy[0, before])
        shape = len(input_ids), columns
        place = torch.cat(sources)
        return _scatter(logps, place, shape), _scatter(entropies, place, shape) if compute_entropy else None


def _scatter(parts, places, shape):
    values = torch.cat(parts)
    return values.new_zeros(shape[0] * shape[1]).index_put((places,), values).view(shape)


def idle_rows(advantages: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor | None:
    """
    Rows `(B,)` whose advantage, `(B,)` or `(B, C)`, is zero, but for the shortest where all are: a loss needs a graph.
    `None` if there are none.
    """
    idle = advantages == 0 if advantages.dim() == 1 else (advantages == 0).all(1)
    if idle.all():
        idle[completion_mask.sum(1).argmin()] = False
    return idle if idle.any() else None
