"""Which weights become zero, when, and that they stay zero through rounding into the file."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyNet
from torch import nn

from autocompress.compress.quantize import float_state, quantize_weights_, settle_weights_
from autocompress.compress.sparsify import (
    Sparsifier,
    Sparsity,
    keep_largest,
    keep_pattern,
    layer_adaptive,
    sparsify_,
    zeros_share,
)


def asked(share: float, kind: str = "magnitude", layers: tuple[str, ...] = ("0",)) -> Sparsity:
    return Sparsity(share=share, kind=kind, layers=layers)  # type: ignore[arg-type]


def linear(*rows: list[float]) -> nn.Sequential:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return nn.Sequential(layer)


def test_layer_adaptive_scores_by_hand():
    """Squares 1, 4, 9: 1/14, 4/13 and 9/9, in the places of their weights."""
    assert layer_adaptive(torch.tensor([[-2.0, 1.0, 3.0]])).flatten().tolist() == pytest.approx([4 / 13, 1 / 14, 1.0])


def test_the_lowest_scores_of_all_layers_go_but_never_a_whole_layer():
    first, second = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2])
    masks = keep_largest([first, second], 0.8)
    assert [m.tolist() for m in masks] == [[0, 0, 1], [0, 1]]  # four of five would be 2 and below
    assert [m.tolist() for m in keep_largest([first, second], 0.0)] == [[1, 1, 1], [1, 1]]


def test_two_of_every_four_inputs_stay():
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, 0.3, -0.4]])
    assert keep_pattern(weight, 2, 4).tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    assert keep_pattern(weight[:, :6], 2, 4).tolist() == [[1] * 6]  # six inputs do not divide by four
    kernel = torch.arange(1.0, 9.0).reshape(1, 4, 2)  # four inputs, two taps: 1 3 5 7 and 2 4 6 8
    assert keep_pattern(kernel, 1, 4).tolist() == [[[0, 0], [0, 0], [0, 0], [1, 1]]]


def test_the_share_follows_the_cubic_schedule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100, bias=False))
    sparsifier = Sparsifier(model, asked(0.8))
    seen = []
    for share in (0.0, 0.25, 0.5, 1.0):
        sparsifier.choose_(share)
        seen.append(zeros_share([model[0].weight]))
    assert seen == pytest.approx([0.0, 0.8 * (1 - 0.5**3), 0.8, 0.8], abs=1e-3)


def test_a_network_that_has_zeros_goes_on_from_them():
    model = linear([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    Sparsifier(model, asked(0.5)).choose_(0.0)
    assert zeros_share([model[0].weight]) == 0.25


def test_fisher_keeps_a_small_weight_that_matters():
    """The loss hangs on the first input alone, whose weight is the smallest."""
    for kind, kept in (("fisher", [True, False]), ("magnitude", [False, True])):
        model = linear([0.5, 1.0])
        sparsifier = Sparsifier(model, asked(0.5, kind))
        model(torch.tensor([[1.0, 0.0]])).sum().backward()
        sparsifier.step(0.0)
        sparsifier.choose_()
        assert (model[0].weight[0] != 0).tolist() == kept


@pytest.mark.parametrize(("bits", "levels"), [(32, "uniform"), (4, "uniform"), (3, "codebook"), (3, "power_of_two")])
def test_zeros_stay_zero_through_rounding(bits, levels):
    model = TinyNet().eval()
    layers = ("conv2", "fc")
    sparsify_(model, asked(0.6, layers=layers))
    zero = {name: model.get_submodule(name).weight == 0 for name in layers}
    quantize_weights_(model, dict.fromkeys(layers, bits), levels)
    state = float_state(model)
    assert all(bool((state[f"{name}.weight"][zero[name]] == 0).all()) for name in layers)
    assert set(state) == set(TinyNet().state_dict())
    settle_weights_(model)
    for name in layers:
        assert bool((model.get_submodule(name).weight[zero[name]] == 0).all())
    assert zeros_share([model.get_submodule(n).weight for n in layers]) >= 0.6


def test_gradients_reach_what_is_left_alone():
    model = linear([1.0, 2.0])
    sparsify_(model, asked(0.5))
    model(torch.ones(1, 2)).sum().backward()
    assert model[0].parametrizations.weight.original.grad.tolist() == [[0.0, 1.0]]


def test_no_sparsity_leaves_the_network_as_it_is():
    model = linear([1.0, 2.0])
    assert sparsify_(model, None) is model
    assert isinstance(model[0].weight, nn.Parameter)
