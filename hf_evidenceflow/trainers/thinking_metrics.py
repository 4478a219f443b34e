"""What is logged of the thinking residual in training; each is averaged or summed over processes.

Masks are nonzero where a position counts; a rollout is the [`ThinkingRollout`] of this process.

Shapes: B rows, C completion tokens, H hidden size, V vocabulary, N sampled tokens.
"""

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model

from ..models.thinking.thinking_residual import embedding_state


# The cosine to the weighted embedding needs an N x V x H product
_COSINE_TOKENS = 16


def parity_gap(logps, expected, mask, accelerator) -> tuple[float, float]:
    """Mean and largest absolute gap between two sets of log-probabilities `(B, C)`."""
    gaps = ((logps - expected).abs() * mask).float()
    total = accelerator.reduce(torch.stack([gaps.sum(), mask.sum().float()]), reduction="sum")
    largest = accelerator.gather(gaps.max()).max()
    return (total[0] / total[1].clamp(min=1)).item(), largest.item()


def tokens_per_second(tokens: int, seconds: float, accelerator) -> float:
    """Completion tokens of all processes in the time of the slowest."""
    gathered = accelerator.gather(torch.tensor([[tokens, seconds]], dtype=torch.float32, device=accelerator.device))
    return (gathered[:, 0].sum() / gathered[:, 1].max()).item()


def masked_mean(values, mask, accelerator) -> float:
    """Mean of values `(B, C)` over the positions of a mask; 0 if there are none."""
    total = torch.stack([(values.detach() * mask).float().sum(), mask.sum().float()])
    total = accelerator.reduce(total, reduction="sum")
    return (total[0] / total[1].clamp(min=1)).item()


def rollout_metrics(rollout, completion_tokens: int, accelerator) -> dict[str, float]:
    """
    Mean gate, mean hidden ratio `sqrt(1 - a^2)` over fused tokens, and the share of this process's completion tokens,
    up to the end of each row, that think.
    """
    fed = rollout.mask & (rollout.hidden_ratio > 0)  # the last token of a row need not be fed
    sums = [rollout.gate[fed].sum(), rollout.hidden_ratio[fed].sum(), fed.sum(), rollout.mask.sum()]
    sums = torch.stack([*(value.float() for value in sums), fed.new_tensor(completion_tokens, dtype=torch.float32)])
    gate, hidden_ratio, fused, thinking, tokens = accelerator.reduce(sums, reduction="sum").tolist()
    return {
        "gate_mean": gate / max(fused, 1),
        "hidden_ratio": hidden_ratio / max(fused, 1),
        "token_share": thinking / max(tokens, 1),
    }


def latent_weights(rollout, completion_ids) -> list[float]:
    """Mean hidden ratio `sqrt(1 - a^2)` over the tokens of each completion, those that do not think at 0."""
    sums = (rollout.hidden_ratio * rollout.mask).float().sum(1).tolist()
    return [total / max(len(ids), 1) for total, ids in zip(sums, completion_ids)]


def _decoder(model):
    return (model.get_base_model() if is_peft_model(model) else model).base_model


class ProjectionMetrics:
    """
    Follows the thinking projection of a model in mode `projection`, from the start of its training: weight norm,
    change, gradient norm, and how far its states are from the paper's.
    """

    def __init__(self, model):
        self.weights = [
            parameter
            for name, parameter in model.named_parameters()
            if "thinking_projection" in name and parameter.requires_grad
        ]
        self.initial = [weight.detach().clone() for weight in self.weights]

    def measure_training(self) -> dict[str, float]:
        """Norms of the weights, of their change and of their gradient (0 where there is none)."""
        # Other devices than the initial copies' after `accelerator.prepare`
        self.initial = [start.to(weight.device) for start, weight in zip(self.initial, self.weights)]
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norms = {
            "projection_norm": [weight.detach() for weight in self.weights],
            "projection_change": [weight.detach() - start for weight, start in zip(self.weights, self.initial)],
            "projection_grad_norm": gradients,
        }
        return {name: torch.nn.utils.get_total_norm(tensors).item() for name, tensors in norms.items()}

    @torch.no_grad()
    def measure(self, model, rollout, temperature: float, accelerator) -> dict[str, float]:
        """
        Mean cosine between projected states and probability-weighted embeddings, at the first thinking tokens of each
        process.
        """
        hidden = rollout.states[rollout.mask][:_COSINE_TOKENS]  # [N, H]
        decoder = _decoder(model)
        embedding = decoder.get_input_embeddings().weight
        probs = (model.get_output_embeddings()(hidden).float() / temperature).softmax(-1)  # [N, V]
        projected = decoder.thinking_projection(hidden.float())
        cosine = F.cosine_similarity(projected, embedding_state(probs, embedding).float(), dim=-1)
        total = torch.stack([cosine.sum(), cosine.new_tensor(len(cosine))])
        total = accelerator.reduce(total, reduction="sum")
        return {"state_cosine": (total[0] / total[1]).item()} if total[1] else {}
