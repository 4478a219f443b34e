"""Teacher-mixed sampling: each token is drawn from a p + (1 - a) q, p the teacher and q the student.

A student that starts far from its teacher can find texts that both misjudge; the teacher's share keeps the samples
sensible. Source: Gu et al. 2023, arXiv 2306.08543, section 2.2.

Shapes: B prompts, P prompt tokens, C completion tokens, V vocabulary.
"""

import torch

from ..models.thinking.cache_argument import CACHE


def mixed_logps(student_logits: torch.Tensor, teacher_logits: torch.Tensor, teacher_share: float) -> torch.Tensor:
    """
    Log-probabilities `(..., V)` of the mixture, from logits of the same positions; the teacher's share is in [0, 1].
    """
    if not 0 <= teacher_share <= 1:
        raise ValueError(f"`teacher_share` must be in [0, 1], got {teacher_share}.")
    student, teacher = (logits.float().softmax(-1) for logits in (student_logits, teacher_logits))
    return (teacher_share * teacher + (1 - teacher_share) * student).log()


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions of tokens that count from the first one that is no padding on the left."""
    return (attention_mask.cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def sample_mixed(
    student,
    teacher,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    teacher_share: float,
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Complete prompts `(B, P)`, padded on the left, from the mixture of two causal LMs with the same vocabulary; each
    keeps its own KV cache. `teacher_share` as in [`mixed_logps`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: token ids, the mask, 1 up to the end of sequence included,
        and log-probabilities under the mixture, each of shape `(B, C)`. After the end of sequence stands padding.
    """
    caches, step_ids = [None, None], input_ids
    open_rows = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    tokens, mask, logps = [], [], []
    for _ in range(max_new_tokens):
        step_positions = positions(attention_mask)[:, -step_ids.shape[1] :]
        logits = []
        for index, model in enumerate((student, teacher)):
            output = model(
                input_ids=step_ids,
                attention_mask=attention_mask,
                position_ids=step_positions,
                **{CACHE: caches[index]},
                use_cache=True,
                logits_to_keep=1,
            )
            caches[index] = output[CACHE]
            logits.append(output.logits[:, -1])
        distribution = mixed_logps(*logits, teacher_share)  # [B, V]
        drawn = torch.multinomial(distribution.exp(), 1)  # [B, 1]
        drawn = torch.where(open_rows[:, None], drawn, pad_token_id)
        tokens.append(drawn)
        mask.append(open_rows[:, None].long())
        logps.append(distribution.gather(1, drawn))
        attention_mask = torch.cat([attention_mask, mask[-1].to(attention_mask.dtype)], dim=1)
        open_rows = open_rows & (drawn[:, 0] != eos_token_id)
        step_ids = drawn
        if not open_rows.any():
            break
    return torch.cat(tokens, dim=1), torch.cat(mask, dim=1), torch.cat(logps, dim=1)
