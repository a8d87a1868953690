"""Batch norms that vanish into the layers before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.fold import find_pairs, fold, fold_, unfold_
from autocompress.compress.quantize import QuantizedWeight, quantize_weights_, settle_weights_
from autocompress.recover.damage import reestimate_

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _norm(channels: int, gamma: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gamma))
        norm.bias.copy_(torch.linspace(-1, 1, channels))
        norm.running_mean.copy_(torch.linspace(0.5, -0.5, channels))
        norm.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    return norm


def test_negative_and_zero_factors_keep_the_integers_up_to_their_sign():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), _norm(3, [2.0, -0.5, 0.0])).eval()
    settled = settle_weights_(quantize_weights_(model, {"0": 4}))
    folded, integers = fold(model, (("0", "1"),), settled)
    before, after = settled["0"].integers, integers["0"].integers
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], -before[1])
    assert not after[2].any()
    assert (integers["0"].scale > 0).all()
    assert torch.allclose(integers["0"].dequantize(), folded[0].weight, rtol=1e-5, atol=1e-8)
    assert torch.allclose(folded(X), model(X), atol=1e-5)
    assert isinstance(folded[1], nn.Identity)


def test_a_norm_without_affine_parameters_folds_too():
    norm = nn.BatchNorm2d(3, affine=False)
    norm.running_var.fill_(4.0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), norm).eval()
    quantized = QuantizedWeight(integers=torch.ones(3, 3, 3, 3, dtype=torch.int8), scale=torch.ones(3), bits=4)
    folded, integers = fold(model, find_pairs(model, (X,)), {"0": quantized})
    assert torch.allclose(integers["0"].scale, torch.full((3,), 0.5), atol=1e-5)
    assert torch.allclose(folded(X), model(X), atol=1e-5)


def test_folding_leaves_the_model_as_it_was(tiny_model):
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    fold(tiny_model, (("conv1", "bn1"),))
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())


def test_pairs_are_what_one_forward_hands_on(tiny_model):
    assert find_pairs(tiny_model, (torch.randn(2, 1, 8, 8),)) == (("conv1", "bn1"), ("conv2", "bn2"))


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.m = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)


class _OutputUsedTwice(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        out: Tensor = self.m(self.b(y)) + self.n(y)
        return out


class _TwoNorms(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        out: Tensor = self.m(self.b(self.n(y) * self.m(y)))
        return out


class _InPlace(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x), inplace=True)
        out: Tensor = self.m(self.b(self.n(y)))
        return out


class _LayerRunsTwice(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.m(self.b(self.n(self.a(self.a(x)))))
        return out


@pytest.mark.parametrize(
    ("factory", "pairs"),
    [(_OutputUsedTwice, (("b", "m"),)), (_TwoNorms, ()), (_InPlace, (("b", "m"),)), (_LayerRunsTwice, (("b", "m"),))],
)
def test_only_what_computes_the_same_is_folded_even_with_untouched_statistics(factory, pairs):
    model = factory().eval()
    assert find_pairs(model, (X,)) == pairs


def test_a_norm_before_the_layer_is_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    assert find_pairs(model, (X,)) == ()


def test_linear_layers_fold_over_two_dimensional_inputs():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    assert find_pairs(model, (torch.randn(3, 5),)) == (("0", "1"),)


class _OverPlaces(nn.Module):
    def __init__(self, places: int) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(places)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.fc(x))
        return out


@pytest.mark.parametrize("places", [4, 6])
def test_a_norm_whose_channels_are_the_places_of_a_linear_layer_is_left_alone(places):
    assert find_pairs(_OverPlaces(places).eval(), (torch.randn(3, places, 5),)) == ()


def test_what_cannot_be_fused_is_no_pair(tiny_model, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("the sizes do not match")

    monkeypatch.setattr("autocompress.compress.fold.fuse_conv_bn_weights", fail)
    assert find_pairs(tiny_model, (torch.randn(2, 1, 8, 8),)) == ()


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_that_is_put_back_changes_nothing_and_holds_what_passes_through_it(bias):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=bias), _norm(3, [2.0, -0.5, 0.1]), nn.ReLU()).eval()
    names = set(model.state_dict())
    gone = fold_(model, (("0", "1"),))
    assert isinstance(model[1], nn.Identity)
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():  # as a training would
        model[0].weight.mul_(0.5)
        model[0].bias.add_(1.0)
        wanted, convolved = model(X), model[0](X)
    unfold_(model, gone, (X,))
    assert set(model.state_dict()) == names
    assert torch.allclose(model(X), wanted, atol=1e-6)
    own = model[0](X)
    assert torch.allclose(own.mean((0, 2, 3)), model[1].running_mean, atol=1e-6)
    assert torch.allclose(own.var((0, 2, 3), correction=0), model[1].running_var, rtol=1e-5)
    assert torch.allclose(model[1].bias, convolved.mean((0, 2, 3)), atol=1e-6)


def test_rounded_weights_keep_their_integers_when_a_norm_is_put_back():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), _norm(3, [2.0, -0.5, 0.1])).eval()
    gone = fold_(model, (("0", "1"),))
    quantize_weights_(model, {"0": 4})
    wanted = model(X).detach()
    unfold_(model, gone, (X,))
    settled = settle_weights_(model)
    folded, integers = fold(model, (("0", "1"),), settled)
    assert torch.equal(integers["0"].integers, settled["0"].integers)
    assert torch.allclose(folded(X), wanted, atol=1e-6)


def test_statistics_that_are_estimated_anew_undo_a_change_before_a_norm_that_was_put_back():
    """What a narrowed network needs: a layer whose inputs have shifted gives its next one what it gave before."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), _norm(3, [2.0, -0.5, 0.1])).eval()
    unfold_(model, fold_(model, (("0", "1"),)), (X,))
    wanted = model(X).detach()
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    assert torch.allclose(reestimate_(model, (X,))(X), wanted, atol=3e-2)  # torch divides a variance by n - 1
