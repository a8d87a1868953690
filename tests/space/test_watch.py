"""What is seen of a forward, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.space.watch import watched


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_wanted_modules_are_seen_in_the_order_they_run_and_as_often(tiny_model):
    seen = []
    with watched(tiny_model, lambda m: isinstance(m, nn.Conv2d | nn.ReLU), lambda n, *_: seen.append(n)):
        tiny_model(torch.zeros(1, 1, 8, 8))
    assert seen == ["conv1", "relu", "conv2", "relu"]


def test_inputs_and_output_are_those_of_the_module_and_stay_as_they_are(tiny_model):
    seen = {}
    images = torch.randn(3, 1, 8, 8)
    expected = tiny_model(images)
    with watched(tiny_model, lambda m: m is tiny_model, lambda n, m, i, o: seen.update({n: (m, i, o)})):
        assert torch.equal(tiny_model(images), expected)
    module, inputs, output = seen[""]
    assert module is tiny_model
    assert inputs[0] is images
    assert torch.equal(output, expected)


def test_no_hook_is_left_also_when_the_forward_fails(tiny_model):
    with (
        pytest.raises(RuntimeError, match="channels"),
        watched(tiny_model, lambda m: isinstance(m, nn.Conv2d), lambda *_: None),
    ):
        tiny_model(torch.zeros(1, 5, 8, 8))
    assert hooks(tiny_model) == 0
