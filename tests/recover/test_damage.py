"""How far from the teacher, and the learning rate that follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.recover.damage import disagreement, divergence, rate_share


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
    assert disagreement(network, (torch.zeros(4, 1),), wanted, "classification") == 0.25


def test_disagreement_of_a_regression_is_what_it_leaves_unexplained():
    wanted = torch.tensor([0.0, 1.0, 2.0, 3.0])
    x = (torch.zeros(4, 1),)
    assert disagreement(Fixed([0.0, 1.0, 2.0, 3.0]), x, wanted, "regression") == 0
    assert disagreement(Fixed([1.0, 2.0, 3.0, 4.0]), x, wanted, "regression") == pytest.approx(1 / wanted.var())
    assert disagreement(Fixed([float("nan")] * 4), x, wanted, "regression") == 1.0


def test_two_numbers_per_sample_are_no_logits():
    wanted = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    network = Fixed([[1.0, 2.0], [2.0, 1.0]])  # the largest of each row is the same, and yet half of it is wrong
    assert disagreement(network, (torch.zeros(2, 1),), wanted, "regression") == pytest.approx(0.5 / wanted.var())
    assert divergence(network, (torch.zeros(2, 1),), wanted, "regression") == pytest.approx(0.25 / wanted.var())


def test_labels_are_compared_one_by_one():
    wanted = torch.tensor([[3.0, -1.0, 2.0, -4.0]])
    network = Fixed([[0.5, 1.0, 2.0, -4.0]])
    assert disagreement(network, (torch.zeros(1, 1),), wanted, "multilabel") == 0.5  # a quarter, twice
    assert divergence(Fixed(wanted.tolist()), (torch.zeros(1, 1),), wanted, "multilabel") == pytest.approx(0, abs=1e-7)
    p, q = torch.sigmoid(torch.tensor([-1.0, 1.0])).tolist()
    kl = p * torch.tensor(p / q).log() + (1 - p) * torch.tensor((1 - p) / (1 - q)).log()
    only = Fixed([[3.0, 1.0, 2.0, -4.0]])
    assert divergence(only, (torch.zeros(1, 1),), wanted, "multilabel") == pytest.approx(float(kl) / 4, rel=1e-5)
