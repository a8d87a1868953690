"""Leaving out blocks: what is left computes the rest exactly, and counts exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.compress.drop import Dropped, drop_blocks_, is_dropped
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.groups import find_groups
from autocompress.space.layers import count_macs
from autocompress.zoo.models import resnet20

IMAGES = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet20().eval()


def test_params_and_macs_fall_by_exactly_those_of_the_block(dense):
    dropped = prune_to_plan(
        dense, CompressionPlan(removed_blocks=("layers.4",)), ModelFacts(layers=(), groups=()), {}, IMAGES
    )
    assert _params(dense) - _params(dropped) == 2 * (32 * 32 * 9) + 2 * (32 + 32)  # two convolutions, two batch norms
    assert count_macs(dense, IMAGES) - count_macs(dropped, IMAGES) == 2 * (32 * 32 * 9) * 8 * 8
    assert isinstance(dense.get_submodule("layers.4.conv1"), nn.Conv2d)


def test_without_its_blocks_a_stage_is_its_first_block(dense):
    dropped = prune_to_plan(
        dense, CompressionPlan(removed_blocks=("layers.7", "layers.8")), ModelFacts(layers=(), groups=()), {}, IMAGES
    )
    x = dense.relu(dense.bn1(dense.conv1(IMAGES[0])))
    for block in dense.layers[:7]:
        x = block(x)
    assert torch.equal(dropped(*IMAGES), dense.fc(dense.pool(x).flatten(1)))


def test_channels_are_removed_before_the_block_that_the_group_may_be_named_after(dense):
    groups, _ = find_groups(dense, IMAGES)
    scores = {g.name: torch.arange(float(g.channels)) for g in groups}
    ratios = {"conv1": 0.5, "layers.1.conv1": 0.5}  # the second is of no consequence
    plan = CompressionPlan(prune_ratio=ratios, removed_blocks=("layers.0", "layers.1", "layers.2"))
    pruned = prune_to_plan(dense, plan, ModelFacts(layers=(), groups=tuple(groups)), scores, IMAGES)
    assert pruned.conv1.out_channels == pruned.layers[3].conv1.in_channels == 8
    assert [type(block) for block in pruned.layers[:3]] == [Dropped] * 3
    assert pruned(*IMAGES).shape == (2, 10)


def test_bits_of_a_layer_that_is_gone_are_passed_over_and_of_an_unknown_one_refused(dense):
    dropped = prune_to_plan(
        dense, CompressionPlan(removed_blocks=("layers.4",)), ModelFacts(layers=(), groups=()), {}, IMAGES
    )
    quantize_weights_(dropped, {"layers.4.conv1": 4, "layers.5.conv1": 4})
    assert set(settle_weights_(dropped)) == {"layers.5.conv1"}
    with pytest.raises(ValueError, match=r"names 'layers\.9\.conv1', which is not a layer"):
        quantize_weights_(dropped, {"layers.9.conv1": 4})


def test_only_what_was_inside_is_dropped(dense):
    modules = dict(
        prune_to_plan(
            dense, CompressionPlan(removed_blocks=("layers.4",)), ModelFacts(layers=(), groups=()), {}, IMAGES
        ).named_modules()
    )
    names = ("layers.4", "layers.4.conv1", "layers.4.shortcut.0", "layers.5.conv1", "layers.40", "nowhere", "")
    assert [is_dropped(modules, n) for n in names] == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("name", ["layers.9", ""])
def test_a_block_that_is_not_there_is_refused(dense, name):
    with pytest.raises(ValueError, match=f"removes '{name}', which is not a block"):
        drop_blocks_(dense, [name])


def test_further_arguments_of_a_block_are_passed_over():
    x = torch.ones(2)
    assert Dropped()(x, None, mask=None) is x
