"""What is made of a model before anything is measured on it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from autocompress.study.load import bake_parametrizations_


def test_weights_that_are_computed_while_training_become_what_they_came_to():
    torch.manual_seed(0)
    model = nn.Sequential(spectral_norm(nn.Linear(4, 3)), nn.ReLU(), weight_norm(nn.Linear(3, 2))).eval()
    x = torch.randn(5, 4)
    wanted = model(x)
    assert "2.parametrizations.weight.original0" in model.state_dict()
    assert torch.allclose(bake_parametrizations_(model)(x), wanted, atol=1e-6)
    assert {n for n, _ in model.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
