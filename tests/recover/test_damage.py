"""How far from the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.recover.damage import divergence


class Fixed(nn.Module):
    def __init__(self, outputs) -> None:
        super().__init__()
        self.outputs = torch.tensor(outputs)

    def forward(self, x):
        return self.outputs


def test_two_numbers_per_sample_are_no_logits():
    wanted = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    network = Fixed([[1.0, 2.0], [2.0, 1.0]])  # the largest of each row is the same, and yet half of it is wrong
    assert divergence(network, (torch.zeros(2, 1),), wanted, "regression") == pytest.approx(0.25 / wanted.var())


def test_labels_are_compared_one_by_one():
    wanted = torch.tensor([[3.0, -1.0, 2.0, -4.0]])
    assert divergence(Fixed(wanted.tolist()), (torch.zeros(1, 1),), wanted, "multilabel") == pytest.approx(0, abs=1e-7)
    p, q = torch.sigmoid(torch.tensor([-1.0, 1.0])).tolist()
    kl = p * torch.tensor(p / q).log() + (1 - p) * torch.tensor((1 - p) / (1 - q)).log()
    only = Fixed([[3.0, 1.0, 2.0, -4.0]])
    assert divergence(only, (torch.zeros(1, 1),), wanted, "multilabel") == pytest.approx(float(kl) / 4, rel=1e-5)
