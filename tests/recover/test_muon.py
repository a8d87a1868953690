"""Orthogonal steps for matrices, Adam's for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.recover import muon
from autocompress.recover.muon import _MATRIX_RATE, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_directions_stay_what_they_were():
    """A diagonal matrix stays diagonal, and signs stay."""
    found = orthogonalize(torch.diag(torch.tensor([3.0, -1.0, 0.5])))
    assert torch.equal(found.sign(), torch.diag(torch.tensor([1.0, -1.0, 1.0])))


def test_the_first_step_of_a_vector_is_the_learning_rate_against_the_gradient():
    vector = nn.Parameter(torch.zeros(3))
    vector.grad = torch.tensor([2.0, -0.1, 5.0])
    Muon([vector], lr=0.01).step()
    assert vector.tolist() == pytest.approx([-0.01, 0.01, -0.01], rel=1e-4)


def test_a_depthwise_weight_is_no_matrix():
    weight = nn.Parameter(torch.zeros(4, 1, 3, 3))
    weight.grad = torch.ones_like(weight)
    Muon([weight], lr=0.01).step()
    assert weight.flatten().tolist() == pytest.approx([-0.01] * 36, rel=1e-4)


def test_a_matrix_moves_by_its_own_rate():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.eye(2)
    Muon([weight], lr=0.01).step()
    moved = -weight.detach() / (0.01 * _MATRIX_RATE)
    assert torch.linalg.svdvals(moved).tolist() == pytest.approx([1.0, 1.0], abs=0.3)


@pytest.mark.parametrize("shape", [(24, 400), (600, 150), (16, 64, 3, 3)])
def test_a_matrix_that_is_too_large_moves_as_far_as_if_it_were_not(shape, monkeypatch):
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    moved = []
    for work in (0.0, 1e12):
        monkeypatch.setattr(muon, "_MOST_WORK", work)
        matrix = nn.Parameter(torch.zeros(shape))
        matrix.grad = gradient.clone()
        Muon([matrix], lr=0.01).step()
        moved.append(float(matrix.detach().square().mean().sqrt()))
    assert 0.6 < moved[1] / moved[0] < 1.3, "singular values come to between 0.7 and 1.2"
    assert moved[0] == pytest.approx(0.01 * _MATRIX_RATE / gradient[0].numel() ** 0.5, rel=1e-3)


def test_a_large_matrix_of_few_inputs_moves_no_further_than_the_learning_rate(monkeypatch):
    monkeypatch.setattr(muon, "_MOST_WORK", 0.0)
    matrix = nn.Parameter(torch.zeros(50, 4))
    matrix.grad = torch.ones(50, 4)
    Muon([matrix], lr=0.01).step()
    assert matrix.detach().abs().max() == pytest.approx(0.01, rel=1e-4)


def test_the_only_output_of_a_layer_moves_as_far_as_each_of_many():
    weight = nn.Parameter(torch.zeros(1, 576))
    weight.grad = torch.ones_like(weight)
    Muon([weight], lr=0.01).step()
    assert weight[0].tolist() == pytest.approx([-0.01 * _MATRIX_RATE / 24] * 576, rel=1e-4)


def test_it_solves_a_badly_scaled_regression_in_few_steps():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, 8)
    x = torch.randn(256, 8, generator=generator) * scales
    wanted = torch.randn(8, 4, generator=generator) / scales[:, None].sqrt()
    layer = nn.Linear(8, 4, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.02)
    losses = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 60)
        loss = (layer(x) - x @ wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_what_has_no_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(2, 2))
