"""How far a compressed network is from its teacher before it was trained, and what learning rate that asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.recover.data import Task
from autocompress.recover.distill import label_distill_loss

_WHOLE = 0.8  # disagreement of a network that has to learn nearly everything again
_LONG, _STEPS = 0.3, 1500.0  # a share of 0.04 at 60 steps and of 0.3 from 450 on, however small the damage


def rate_share(damage: float, steps: float) -> float:
    """Share of the peak learning rate for a network that disagrees with its teacher on a share `damage` of samples.

    A large rate takes a network that was hardly hurt away from what it knows, and a short training does not lead it
    back: 4-bit weights alone lose 1.5 points at the rate that a network without three quarters of its channels needs.
    A long one does, and finds better places on the way.

    Args:
        steps: that the training will have, about.
    """
    return float(min(1.0, max(damage / _WHOLE, min(_LONG, steps / _STEPS))))


@torch.no_grad()
def disagreement(network: nn.Module, samples: Sequence[Tensor], wanted: Tensor, task: Task) -> float:
    """Share of samples on which the largest output is another one than the teacher's.

    For several labels the share of labels, made as large as that of a class would be; for regression 1 - R squared.

    Args:
        network: in eval mode.
        samples: inputs, each [n, ...].
        wanted: the teacher's outputs, [n, ...].
    """
    got = network(*samples).float()
    if task == "classification":
        return float((got.argmax(1) != wanted.argmax(1)).float().mean())
    if task == "multilabel":  # a network that knows nothing is wrong on half of the labels
        return min(1.0, 2 * float(((got > 0) != (wanted > 0)).float().mean()))
    unexplained = float((got - wanted).square().mean() / wanted.var().clamp_min(1e-12))
    return min(1.0, unexplained) if unexplained == unexplained else 1.0


@torch.no_grad()
def divergence(network: nn.Module, samples: Sequence[Tensor], wanted: Tensor, task: Task) -> float:
    """Mean Kullback-Leibler divergence from the teacher's outputs in nats; for regression half the mean squared error.

    Args:
        samples: inputs, each [n, ...].
        wanted: the teacher's outputs, [n, ...].
    """
    got = network.eval()(*samples).float()
    if task == "multilabel":
        loss = label_distill_loss(got, wanted, temperature=1.0)
    elif task == "classification":
        loss = F.kl_div(got.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    else:
        loss = 0.5 * F.mse_loss(got, wanted) / wanted.var().clamp_min(1e-12)
    value = float(loss)
    return value if value == value and value < 1e6 else 1e6


@torch.no_grad()
def reestimate_(network: nn.Module, samples: Sequence[Tensor]) -> nn.Module:
    """Batch-norm statistics of the network as it is now, in place: one forward over the samples."""
    norms: list[Any] = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return network
    momenta = [n.momentum for n in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over what is seen
        norm.train()
    network(*samples)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return network
