"""Which layers may be two factors, and that what one layer computes two can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.records import FactorFacts
from autocompress.space.factors import Factored, find_factors, layers_for, merged_weight
from autocompress.space.layers import find_layers

LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (3, 12)),
    "linear without bias": (lambda: nn.Linear(12, 20, bias=False), (3, 5, 12)),
    "1x1, strided": (lambda: nn.Conv2d(12, 20, 1, stride=2), (3, 12, 7, 7)),
    "1x1, padded": (lambda: nn.Conv2d(12, 20, 1, padding=1), (3, 12, 5, 5)),
    "3x3, strided": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (3, 6, 9, 9)),
    "3x5, dilated": (lambda: nn.Conv2d(6, 8, (3, 5), padding=(2, 4), dilation=2, bias=False), (3, 6, 9, 9)),
    "same": (lambda: nn.Conv2d(6, 8, 3, padding="same"), (3, 6, 9, 9)),
    "3x1": (lambda: nn.Conv2d(6, 8, (3, 1), padding=(1, 0)), (3, 6, 9, 9)),
    "one axis": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), (3, 6, 11)),
    "three axes": (lambda: nn.Conv3d(3, 8, (3, 2, 3), padding=1), (2, 3, 5, 5, 5)),
}


@pytest.mark.parametrize("which", LAYERS)
def test_two_factors_compute_what_one_layer_with_their_product_does(which):
    make, shape = LAYERS[which]
    layer = make()
    factors = Factored(layer, 5)
    layer.weight.data = merged_weight(factors.first.weight, factors.second.weight)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert layer.weight.shape == make().weight.shape
    assert factors.first.bias is None
    assert factors.rank == 5
    assert torch.allclose(factors(x), layer(x), atol=1e-5)


class Net(nn.Module):
    """What can be factored and what cannot, with the reason in the name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)  # 144 weights, even below rank 3
        self.conv = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.reflecting = nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect")
        self.point = nn.Conv2d(32, 48, 1)
        self.read = nn.Linear(48, 48)
        self.unused = nn.Linear(48, 48)
        self.head = nn.Linear(48, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.reflecting(self.depthwise(self.conv(self.stem(x))))).mean((2, 3))
        out: Tensor = self.head(torch.relu(x @ self.read.weight.T + self.read.bias))
        return out


def test_what_cannot_be_factored_is_left_with_a_reason():
    model = Net().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found, skips = find_factors(model, (torch.randn(2, 1, 8, 8),), find_layers(model)[0])
    assert found == {
        "conv": FactorFacts(taps=3, places=2.0), "point": FactorFacts(), "head": FactorFacts(),
    }  # fmt: skip
    assert {s.name: s.reason for s in skips if s.what == "factor"} == {
        "stem": "it is so small that factors would hold or multiply as much",
        "depthwise": "its channels are in groups, which are factors already",
        "reflecting": "it pads with something else than zeros",
        "read": "it is not used, or with inputs of several sizes",
        "unused": "it is not used, or with inputs of several sizes",
    }
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Reader(nn.Module):
    """Calls one of its layers, and looks at its weight besides."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.read(x) * self.read.weight.std())
        return out


def test_a_layer_whose_weight_is_read_elsewhere_is_left_and_the_others_are_not():
    model = Reader().eval()
    found, skips = find_factors(model, (torch.randn(2, 32),), find_layers(model)[0])
    assert list(found) == ["head"]
    assert [(s.name, s.reason) for s in skips] == [("read", "the network reads its weight in a way of its own")]


def test_a_layer_of_the_plan_stands_for_its_factors():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1] = Factored(model[1], 2)
    modules = dict(model.named_modules())
    assert layers_for(modules, "0") == ("0",)
    assert layers_for(modules, "1") == ("1.first", "1.second")
