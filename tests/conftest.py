"""Fixtures that every folder of tests uses."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyNet, make_tiny_data
from torch import Tensor


@pytest.fixture
def tiny_model() -> TinyNet:
    """An untrained `TinyNet` in evaluation mode; the same weights every time, the global generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def tiny_data() -> dict[str, tuple[Tensor, Tensor]]:
    """Fresh tensors of the synthetic problem: 256 train, 64 val, 64 test."""
    return make_tiny_data()
