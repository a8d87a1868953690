"""The learning rate of a training that has time for a few steps only, as large networks have."""

from __future__ import annotations

import torch
from torch import Tensor

_ENOUGH_STEPS = 16.0
_HURT = 0.1  # disagreement of a network that gains from the full rate however few the steps are


def rate_share(damage: float, steps: float) -> float:
    """Share of the peak learning rate.

    From 16 steps on nothing speaks against all of it. Four of them at the full rate take a network that was hardly hurt
    away from what it knows (0.9 points lost before, 4.8 after), while one that lost 13 points has lost 7 after them.

    Args:
        damage: `disagreement` before the training.
        steps: that the training will have, about.
    """
    return min(1.0, max(damage / _HURT, steps / _ENOUGH_STEPS))


@torch.no_grad()
def disagreement(outputs: Tensor, teacher: Tensor, targets: Tensor) -> float:
    """Share of samples on which the largest output is another one than the teacher's.

    What the targets are decides, as for the loss: of several labels (bool) the share of labels, for real numbers the
    share of the variance of the teacher's outputs that is not explained.

    Args:
        outputs, teacher: [n, classes], or [n, ...] for regression.
    """
    if torch.is_floating_point(targets):
        return float((outputs - teacher).square().mean() / teacher.var(correction=0).clamp_min(1e-12))
    if targets.dtype == torch.bool:
        return float(((outputs > 0) != (teacher > 0)).float().mean())
    return float((outputs.argmax(1) != teacher.argmax(1)).float().mean())
