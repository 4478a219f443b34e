"""Thoughts whose token changes nothing: an advantage on its log-probability would be noise.

Where the state takes the place of the embedding, or the token is always the same one, what follows a thought does not
depend on the token that was drawn for it. The token that ends the thinking, or the text, has an effect.

Shapes: B rows, C completion tokens.
"""

from collections.abc import Sequence

import torch


def trains_thoughts(args, config) -> bool:
    """Whether the tokens of thoughts get advantages: they are drawn and matter, or `train_thought_tokens` is set."""
    if config.thinking_mode == "none" or args.train_thought_tokens:
        return True
    return config.token_matters and config.token_policy == "sample"


def idle_thoughts(mask: torch.Tensor, completion_ids: torch.Tensor, eos_token_ids: Sequence[int]) -> torch.Tensor:
    """Where a thinking mask `(B, C)` is set and the token ends no text, `(B, C)`, boolean."""
    ends = torch.isin(completion_ids, torch.tensor(list(eos_token_ids), device=completion_ids.device))
    return mask.bool() & ~ends


def leave_out(batch: dict, idle: torch.Tensor, accelerator) -> None:
    """
    Take idle thoughts `(B, C)` out of the loss, the KL term and the metrics of a batch of [`~trl.GRPOTrainer`], in
    place: its `tool_mask`, and the number of tokens that a loss may be divided by.
    """
    batch["tool_mask"] = (~idle).long() * batch.get("tool_mask", 1)
    batch["num_items_in_batch"] = accelerator.gather(loss_mask(batch).sum()).sum()


def loss_mask(batch: dict) -> torch.Tensor:
    """The tokens `(B, C)` of a batch that count in the loss."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
