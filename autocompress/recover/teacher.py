"""Several networks as one teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of what its members say: of their probabilities for logits, given back as their logarithms.

    Args:
        members: networks with outputs of one shape; [n, two or more] are taken for logits.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = torch.stack([member(*inputs).float() for member in self.members])
        if outputs.ndim == 3 and outputs.shape[-1] > 1:
            mean: Tensor = outputs.log_softmax(-1).logsumexp(0) - torch.log(torch.tensor(float(len(outputs))))
            return mean
        return outputs.mean(0)
