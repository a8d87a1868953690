"""Several networks as one: as a teacher that says their mean, or as the mean of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of what its members say: of their probabilities for logits, given back as their logarithms.

    Args:
        members: networks with outputs of one shape; [n, two or more] are taken for logits of classes.
        classes: False where they are none: numbers, or logits of labels that do not exclude each other.
    """

    def __init__(self, members: Sequence[nn.Module], *, classes: bool = True) -> None:
        super().__init__()
        self.members, self.classes = nn.ModuleList(members), classes

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = torch.stack([member(*inputs).float() for member in self.members])
        if self.classes and outputs.ndim == 3 and outputs.shape[-1] > 1:
            mean: Tensor = outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))
            return mean
        return outputs.mean(0)


@torch.no_grad()
def average_(networks: Sequence[nn.Module]) -> nn.Module:
    """The first network with the mean of all networks' parameters and float buffers, in place.

    Args:
        networks: of one shape, not empty.
    Source: Wortsman et al. 2022, arXiv:2203.05482 (model soups).
    """
    states = [network.state_dict() for network in networks]
    for name, value in states[0].items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name] for state in states]).mean(0))
    return networks[0]
