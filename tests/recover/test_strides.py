"""Strided convolutions of single pixels: the same numbers in two steps, and no memory that is not theirs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from autocompress.recover.strides import strides_apart

_NARROW = """
import torch
from torch import nn
from autocompress.recover.strides import strides_apart
from autocompress.recover.trainer import use_channels_last_

torch.set_num_threads(1)
torch.manual_seed(0)
layer = use_channels_last_(nn.Conv2d(4, 8, 1, stride=2))
images = torch.randn(64, 4, 28, 28)
with strides_apart(layer):
    for _ in range(20):
        layer.zero_grad()
        layer(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
double = nn.Conv2d(4, 8, 1, stride=2).double()
double.load_state_dict(layer.state_dict())
double(images.double()).square().mean().backward()
torch.testing.assert_close(layer.weight.grad.double(), double.weight.grad, rtol=1e-3, atol=1e-6)
"""


def gradients(layer: nn.Module, images: Tensor) -> list[Tensor]:
    inputs = images.clone().requires_grad_()
    layer.zero_grad()
    out = layer(inputs)
    out.square().mean().backward()
    found = [out, inputs.grad, *(p.grad for p in layer.parameters())]
    assert all(t is not None for t in found)
    return [t.detach().clone() for t in found]


@pytest.mark.parametrize(("stride", "groups"), [(2, 1), ((1, 3), 1), (2, 2)])
def test_outputs_and_gradients_are_the_same(stride, groups):
    layer, images = nn.Conv2d(4, 6, 1, stride=stride, groups=groups).double(), torch.randn(3, 4, 9, 8).double()
    expected = gradients(layer, images)
    with strides_apart(layer):
        assert layer.stride == (1, 1)
        found = gradients(layer, images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    assert layer.stride == nn.Conv2d(4, 6, 1, stride=stride).stride
    torch.testing.assert_close(gradients(layer, images)[0], expected[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 1, stride=2, padding=1),
        nn.Conv2d(16, 6, 1, stride=2),
        nn.Conv1d(4, 6, 1, stride=2),
    ],
    ids=str,
)
def test_other_layers_are_left_alone(layer):
    before = layer.stride
    with strides_apart(layer):
        assert layer.stride == before


def test_strides_come_back_after_an_error():
    layer = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2))
    with pytest.raises(ValueError, match="on purpose"), strides_apart(layer):
        raise ValueError("on purpose")
    assert layer[0].stride == (2, 2)
    assert not layer[0]._forward_pre_hooks


def test_a_narrow_layer_has_the_right_gradients_on_processors_with_short_vectors():
    told = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", _NARROW], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
