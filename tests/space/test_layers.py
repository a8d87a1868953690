"""Which layers can be quantized, and the reasons for the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.space.layers import count_macs, find_layers, layer_kind


def test_layers_come_in_the_order_of_the_model_with_their_sizes(tiny_model):
    layers, skips = find_layers(tiny_model)
    assert [(n.name, n.kind, n.weights, n.out_channels) for n in layers] == [
        ("conv1", "conv", 72, 8),
        ("conv2", "conv", 576, 8),
        ("fc", "linear", 32, 4),
    ]
    assert skips == []


def test_a_skipped_layer_is_named_with_its_reason(tiny_model):
    layers, skips = find_layers(tiny_model, skip=("conv2",))
    assert [n.name for n in layers] == ["conv1", "fc"]
    assert [(s.name, s.what, s.reason) for s in skips] == [("conv2", "quantize", "listed under skip in the study file")]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(4, 4, proj_size=2), "recurrent layers with a projection stay float"),
        (nn.GRUCell(4, 4), "cells of recurrent layers stay float"),
        (nn.ConvTranspose2d(4, 4, 2), "transposed convolutions stay float"),
        (nn.Embedding(4, 4, max_norm=1.0), "renormalised while it runs stays float"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "a parametrization of its own"),
    ],
)
def test_layers_of_other_kinds_stay_float_for_a_reason(module, reason):
    layers, skips = find_layers(nn.Sequential(module))
    assert layers == []
    assert len(skips) == 1
    assert skips[0].name == "0"
    assert reason in skips[0].reason


def test_the_joined_projection_of_attention_is_left_alone_and_its_output_projection_is_not():
    layers, skips = find_layers(nn.Sequential(nn.MultiheadAttention(8, 2)))
    assert [n.name for n in layers] == ["0.out_proj"]
    assert [s.name for s in skips] == ["0"]


def test_tied_weights_are_left_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "out": nn.Linear(4, 6), "free": nn.Linear(4, 6)})
    model["out"].weight = model["embed"].weight
    layers, skips = find_layers(model)
    assert [n.name for n in layers] == ["free"]
    assert {s.name: s.reason for s in skips}["out"] == "its weight is shared with another layer"


def test_only_one_channel_per_group_makes_a_convolution_depthwise():
    assert layer_kind(nn.Conv2d(8, 8, 3, groups=8)) == "depthwise"
    assert layer_kind(nn.Conv2d(8, 8, 3, groups=4)) == "conv"
    assert layer_kind(nn.Conv2d(1, 8, 3)) == "conv"


def test_macs_are_counted_per_sample(tiny_model):
    expected = 8 * 9 * 64 + 8 * 8 * 9 * 64 + 8 * 4
    assert count_macs(tiny_model, (torch.zeros(1, 1, 8, 8),)) == expected
    assert count_macs(tiny_model, (torch.zeros(5, 1, 8, 8),)) == expected
