"""How far a compressed network is from its teacher before it was trained, and what helps it without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.recover.data import Task
from autocompress.recover.distill import label_distill_loss


@torch.no_grad()
def divergence(network: nn.Module, samples: Sequence[Tensor], wanted: Tensor, task: Task) -> float:
    """Mean Kullback-Leibler divergence from the teacher's outputs in nats, of several labels per label.

    For regression it is half the mean squared error in units of the variance of the teacher's outputs.

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
