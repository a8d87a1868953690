"""The loss that recovery minimises: the teacher's soft targets and the labels.

Teacher logits are computed once by the caller; no teacher runs here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distill_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Soft-target loss in nats, averaged over the batch.

    Args:
        student_logits, teacher_logits: [batch, classes], before softmax.
        temperature: above 0; 1 leaves the teacher unchanged, usual range 1-8.
    Raises:
        ValueError: shapes differ, or temperature is not above 0.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2 (why the result is scaled by T squared).
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} differ")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; usual values are 1 to 8")
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def recovery_loss(
    outputs: Tensor, targets: Tensor, teacher: Tensor | None, *, temperature: float, weight: float
) -> Tensor:
    """`weight` of the soft term plus `1 - weight` of the hard one, averaged over the batch.

    Integer targets: cross entropy and `distill_loss`. Float targets: squared error to the targets and to the teacher.

    Args:
        outputs: [batch, classes], or [batch, ...] for regression.
        teacher: outputs of the teacher for the same batch; None trains on the targets alone.
    """
    if torch.is_floating_point(targets):
        hard = F.mse_loss(outputs.reshape(targets.shape), targets)
        soft = hard if teacher is None else F.mse_loss(outputs, teacher)
    else:
        hard = F.cross_entropy(outputs, targets)
        soft = hard if teacher is None else distill_loss(outputs, teacher, temperature=temperature)
    return hard if teacher is None else weight * soft + (1 - weight) * hard
