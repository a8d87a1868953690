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

    What the targets are decides the loss. Class labels (integers): cross entropy, and `distill_loss`. Several labels
    per sample (bool): binary cross entropy, also against the teacher's probabilities at the temperature. Real numbers:
    squared error to the targets and to the teacher, where the temperature means nothing.

    Args:
        outputs: [batch, classes], or [batch, ...] for regression.
        teacher: outputs of the teacher for the same batch; None trains on the targets alone.
    """
    hard = hard_loss(outputs, targets)
    if teacher is None:
        return hard
    return weight * soft_loss(outputs, teacher, targets, temperature=temperature) + (1 - weight) * hard


def soft_loss(outputs: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """The loss of outputs against a teacher's alone, averaged over the batch; the targets only say which one."""
    if torch.is_floating_point(targets):
        return F.mse_loss(outputs, teacher)
    if targets.dtype == torch.bool:
        return label_distill_loss(outputs, teacher, temperature=temperature)
    return distill_loss(outputs, teacher, temperature=temperature)


def hard_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of outputs against the targets alone, averaged over the batch; see `recovery_loss`."""
    if torch.is_floating_point(targets):
        return F.mse_loss(outputs.reshape(targets.shape), targets)
    if targets.dtype == torch.bool:
        return F.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets.to(outputs.dtype))
    return F.cross_entropy(outputs, targets)


def label_distill_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Soft targets where every label is a question of its own: what the student's probabilities diverge from the
    teacher's, in nats, averaged over labels and batch, times the temperature squared as in `distill_loss`.

    Args:
        student_logits, teacher_logits: [batch, labels], before the sigmoid.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} differ")
    teacher = teacher_logits / temperature
    wanted = teacher.sigmoid()
    own = F.binary_cross_entropy_with_logits(teacher, wanted)  # the teacher's entropy: no student can be below it
    return (F.binary_cross_entropy_with_logits(student_logits / temperature, wanted) - own) * temperature**2
