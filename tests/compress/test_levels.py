"""Tables of values: what k-means finds, what powers of two there are, and that training goes through them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.compress.levels import fit_levels, has_table, nearest, refit, table_of
from autocompress.compress.quantize import FakeQuantize, quantize_weights_, settle_weights_


def test_four_clusters_are_found_exactly():
    """Magnitudes 1, 2, 3 and 4 (times 0.01) in every channel: four of them at 3 bits, 127 for the largest."""
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-4.0, 3.0, -2.0, 1.0]]) * 0.01
    magnitudes, scale = fit_levels(weight, 3, "codebook")
    assert magnitudes.tolist() == [32, 64, 95, 127]  # 127 / 4, 127 / 2, 3 * 127 / 4
    assert (scale * 127).tolist() == pytest.approx([0.04, 0.04])


def test_a_codebook_with_zero_has_one_value_less():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    without, _ = fit_levels(weight, 3, "codebook")
    with_zero, _ = fit_levels(weight, 3, "codebook", zero=True)
    assert (len(table_of(without)), len(table_of(with_zero))) == (8, 7)
    assert with_zero[0] == 0


def test_gaussian_weights_get_the_lloyd_max_table():
    """Max 1960, table I: the best four values for a unit Gaussian are 0.453 and 1.510, with an error of 0.1175."""
    weight = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(1))
    magnitudes, scale = fit_levels(weight, 2, "codebook")
    values = magnitudes * scale
    assert values.tolist() == pytest.approx([0.4528, 1.510], abs=0.02)
    error = (nearest(weight / scale[:, None], magnitudes) * scale[:, None] - weight).square().mean()
    assert float(error) == pytest.approx(0.1175, abs=0.002)


def test_binary_weights_are_the_signs_times_the_mean_magnitude():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.1, -0.2, 0.3, -0.6]])
    settled = settle_weights_(quantize_weights_(nn.Sequential(layer).eval(), {"0": 1}))["0"]
    assert settled.integers.tolist() == [[1, -1, 1, -1]]
    assert settled.table is not None
    assert settled.table.tolist() == [-1, 1]
    assert layer.weight.tolist()[0] == pytest.approx([0.3, -0.3, 0.3, -0.3])


@pytest.mark.parametrize(("bits", "levels"), [(1, "uniform"), (2, "codebook"), (3, "codebook"), (3, "power_of_two")])
def test_a_channel_of_zeros_stays_next_to_zero_also_where_the_table_has_none(bits, levels):
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    model = _linear(weight)
    settle_weights_(quantize_weights_(model, {"0": bits}, levels))
    largest = model[0].weight.detach().abs().amax(1)
    assert largest[1] < 1e-9
    assert largest[[0, 2]].min() > 0.5


def test_powers_of_two():
    weight = torch.tensor([[0.0, 1.0, 2.0, 4.0, -4.0, 1.0]])
    assert fit_levels(weight, 3, "power_of_two")[0].tolist() == [0, 1, 2, 4]
    assert fit_levels(weight, 4, "power_of_two")[0].tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    settled = settle_weights_(quantize_weights_(_linear(weight), {"0": 3}, "power_of_two"))["0"]
    assert set(settled.integers.flatten().tolist()) <= {-4, -2, -1, 0, 1, 2, 4}


def test_who_has_a_table():
    assert [b for b in (1, 2, 3, 4, 5, 6, 8) if has_table(b, "uniform")] == [1]
    assert [b for b in (1, 2, 3, 4, 5, 6, 8) if has_table(b, "codebook")] == [1, 2, 3, 4, 5, 6]
    assert [b for b in (1, 2, 3, 4, 5, 6, 8) if has_table(b, "power_of_two")] == [1, 3, 4]


def test_a_refit_moves_values_to_the_mean_of_what_took_them():
    magnitudes = torch.tensor([10.0, 127.0])
    assert refit(torch.tensor([20.0, -40.0, 100.0]), magnitudes).tolist() == [30, 127]
    assert refit(torch.tensor([100.0]), magnitudes).tolist() == [10, 127]  # nobody took the first


def test_gradients_go_straight_through_and_the_codebook_follows_the_weights():
    weight = torch.linspace(-1, 1, 64).reshape(1, 64).requires_grad_()
    rounding = FakeQuantize(weight, 3, "codebook").train()
    before = rounding.magnitudes.clone()
    rounding(weight).sum().backward()
    assert weight.grad is not None
    inside = weight.detach().abs() < rounding.log_scale.exp().item() * 127
    assert weight.grad[inside].unique().tolist() == [1.0]
    with torch.no_grad():
        for _ in range(16):
            rounding(weight**3)  # smaller ones get smaller
    assert rounding.magnitudes[0] < before[0]
    assert rounding.magnitudes[-1] == 127


def _linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return nn.Sequential(layer).eval()
