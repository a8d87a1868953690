"""Sensitivities of a real network, measured without training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.compress.compensate import input_grams
from autocompress.compress.prune import prune
from autocompress.records import FactorFacts, ModelFacts
from autocompress.recover.damage import divergence, reestimate_
from autocompress.search.profile import measure_sensitivity
from autocompress.space.groups import find_groups
from autocompress.space.layers import find_layers

IMAGES = (torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def measure(model: nn.Module, seconds: float):
    groups, _ = find_groups(model, (IMAGES[0][:2],))
    facts = ModelFacts(layers=tuple(find_layers(model)[0]), groups=tuple(groups))
    grams = input_grams(model, IMAGES)
    scores = {g.name: torch.arange(float(g.channels)) for g in groups}
    return measure_sensitivity(
        model, facts, IMAGES, lambda w: prune(model, w, scores, (IMAGES[0][:2],), grams=grams),
        low_bits=(2, 3), seconds=seconds, report=lambda text: None,
    )  # fmt: skip


def test_every_group_and_layer_is_measured_and_more_compression_does_more_damage(tiny_model):
    found = measure(tiny_model, 60.0)
    assert set(found.bits) == {"conv1", "conv2", "fc"}
    for damages in found.bits.values():
        assert damages["2"] > damages["3"] > 0
    assert all(damage > 0 for damages in found.width.values() for damage in damages.values())
    assert found.samples == 32


def test_every_layer_that_may_be_factored_is_measured_with_every_share():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
        )
    model.eval()
    layers = find_layers(model)[0]
    facts = ModelFacts(
        layers=tuple(replace(n, factors=FactorFacts() if n.name == "1" else None) for n in layers), groups=()
    )
    found = measure_sensitivity(
        model, facts, IMAGES, lambda _: model, low_bits=(), ratios=(0.75, 0.25), seconds=60.0, report=lambda text: None
    )
    assert set(found.ranks) == {"1"}
    assert found.ranks["1"]["0.75"] > found.ranks["1"]["0.25"] > 0


def test_it_keeps_to_its_time(tiny_model):
    assert measure(tiny_model, 0.0).bits == {}


def test_divergence_of_two_logits_by_hand():
    """p = (1/2, 1/2) and q = (3/4, 1/4): KL(p | q) = ln(2 / sqrt 3) = 0.1438."""

    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[3.0, 1.0]]).log().expand(len(x), 2)

    wanted = torch.zeros(4, 2)
    assert divergence(Constant(), (torch.zeros(4, 1),), wanted, "classification") == pytest.approx(0.14384, abs=1e-5)


def test_reestimated_statistics_are_those_of_the_samples():
    norm = nn.Sequential(nn.BatchNorm2d(1)).eval()
    x = torch.arange(8.0).reshape(8, 1, 1, 1)
    reestimate_(norm, (x,))
    assert norm[0].running_mean.item() == pytest.approx(3.5)
    assert norm[0].momentum == 0.1
    assert not norm[0].training
