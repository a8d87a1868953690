"""The learning rate where there are only a few steps."""

from __future__ import annotations

import pytest
import torch

from autocompress.recover.rate import disagreement, rate_share


@pytest.mark.parametrize(
    ("damage", "steps", "share"),
    [(0.0, 4, 0.25), (0.0, 16, 1.0), (0.0, 500, 1.0), (0.02, 1, 0.2), (0.1, 1, 1.0), (0.9, 2, 1.0), (0.02, 8, 0.5)],
)
def test_a_network_that_was_hardly_hurt_is_trained_at_less_where_steps_are_few(damage, steps, share):
    assert rate_share(damage, steps) == pytest.approx(share)


def test_the_share_of_samples_that_are_called_something_else():
    teacher = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
    other = torch.tensor([[3.0, 1.0], [0.0, 0.1], [0.0, 1.0], [5.0, 4.0]])
    assert disagreement(other, teacher, torch.tensor([0, 1, 0, 0])) == 0.25


def test_of_several_labels_each_counts():
    teacher = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    assert disagreement(-teacher, teacher, torch.ones(2, 2, dtype=torch.bool)) == 1.0
    assert disagreement(torch.tensor([[1.0, 1.0], [2.0, 3.0]]), teacher, torch.ones(2, 2, dtype=torch.bool)) == 0.25


def test_of_numbers_it_is_the_variance_that_is_not_explained():
    teacher = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    targets = torch.zeros(4, 1)
    assert disagreement(teacher / 2, teacher, targets) == pytest.approx(0.25)
    assert disagreement(torch.zeros(4, 1), teacher, targets) == pytest.approx(1.0)
    assert disagreement(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)) > 1, "one sample has no variance"
