"""How far from the teacher, and the learning rate that follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.recover.damage import disagreement, rate_share


class Fixed(nn.Module):
    def __init__(self, outputs) -> None:
        super().__init__()
        self.outputs = torch.tensor(outputs)

    def forward(self, x):
        return self.outputs


def test_the_more_was_lost_the_larger_the_rate():
    shares = [rate_share(d, 60) for d in (0.0, 0.1, 0.4, 0.8, 1.0)]
    assert shares == pytest.approx([0.04, 0.125, 0.5, 1.0, 1.0])


def test_a_long_training_bears_a_larger_rate():
    assert [rate_share(0.0, steps) for steps in (0, 60, 300, 450, 10_000)] == pytest.approx([0, 0.04, 0.2, 0.3, 0.3])
    assert rate_share(0.4, 10_000) == 0.5


def test_disagreement_counts_other_answers():
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    network = Fixed([[5.0, 0.0], [1.0, 0.0], [2.0, 1.9], [0.0, 0.1]])
    assert disagreement(network, (torch.zeros(4, 1),), wanted) == 0.25


def test_disagreement_of_a_regression_is_what_it_leaves_unexplained():
    wanted = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert disagreement(Fixed([0.0, 1.0, 2.0, 3.0]), (torch.zeros(4, 1),), wanted) == 0
    assert disagreement(Fixed([1.0, 2.0, 3.0, 4.0]), (torch.zeros(4, 1),), wanted) == pytest.approx(1 / wanted.var())
    assert disagreement(Fixed([float("nan")] * 4), (torch.zeros(4, 1),), wanted) == 1.0
