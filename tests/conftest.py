"""Fixtures that every folder of tests uses."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from tiny import TinyNet, make_tiny_data
from torch import Tensor

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


def pytest_configure() -> None:
    """Give each of several test processes a core of its own: what they start must not train on all of them at once."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)


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
