"""Distillation with temperature: the student matches the teacher's softened distribution, and the text itself.

    L = (1 - w) * CE(student, text) + w * T^2 * KL(teacher_T || student_T)

with both distributions at temperature T. The gradients of the second term scale as 1/T^2, so that T^2 keeps the two in
proportion when T changes.

Source: Hinton et al. 2015, arXiv 1503.02531, section 2. There the second term is the cross-entropy with the teacher's
distribution, which differs from the KL by the teacher's entropy only: the gradients are the same.

Shapes: B rows, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F


def soft_target_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """
    `T^2 * KL(teacher_T || student_T)`, the mean over the positions of the mask.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(B, T, V)`):
            Logits of the same positions. The teacher's get no gradient.
        mask (`torch.Tensor` of shape `(B, T)`):
            True at positions that count.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature T, above 0.

    Returns:
        `torch.Tensor`: a scalar, in nats a token at T = 1.

    Raises:
        `ValueError`: if the vocabularies differ, or the temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student and teacher have logits of shape {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}. Distillation needs one tokenizer and one vocabulary size."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    student, teacher = (
        (logits.float() / temperature).log_softmax(-1) for logits in (student_logits, teacher_logits.detach())
    )
    per_token = (teacher.exp() * (teacher - student)).sum(-1)  # [B, T]
    return temperature**2 * (per_token * mask).sum() / mask.sum().clamp_min(1)


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    soft_weight: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The weighted sum of the loss on the text and that on the teacher's distribution.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(B, T, V)`):
            Logits over whole rows; those at t predict the label at t + 1.
        labels (`torch.Tensor` of shape `(B, T)`):
            Token ids; those of -100 count in neither term.
        temperature (`float`, *optional*, defaults to `2.0`):
            As in [`soft_target_loss`].
        soft_weight (`float`, *optional*, defaults to `0.5`):
            Weight w of the teacher's term, in [0, 1].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the sum and the teacher's term.

    Raises:
        `ValueError`: if `soft_weight` is not in [0, 1].
    """
    if not 0 <= soft_weight <= 1:
        raise ValueError(f"`soft_weight` must be in [0, 1], got {soft_weight}.")
    targets = labels[:, 1:]
    hard = F.cross_entropy(student_logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
    soft = soft_target_loss(student_logits[:, :-1], teacher_logits[:, :-1], targets != -100, temperature)
    return (1 - soft_weight) * hard + soft_weight * soft, soft
