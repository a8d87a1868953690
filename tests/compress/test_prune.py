"""Removing channels: the widths that come out, and which channels stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.compensate import input_grams
from autocompress.compress.prune import kept_scores, prune, prune_to_plan, remove_channels_
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.groups import find_groups
from autocompress.space.search_space import width_after
from autocompress.zoo.models import resnet20

EXAMPLE = (torch.zeros(2, 1, 8, 8),)
IMAGES = (torch.zeros(2, 3, 16, 16),)


def _rising(groups):
    return {g.name: torch.arange(float(g.channels)) for g in groups}


def test_a_residual_pair_loses_the_same_channels(tiny_model):
    scores = {"conv1": torch.tensor([0.0, 9, 1, 8, 2, 7, 3, 6])}
    pruned = prune(tiny_model, {"conv1": 4}, scores, EXAMPLE)
    kept = [1, 3, 5, 7]
    assert pruned.conv1.weight.shape == (4, 1, 3, 3)
    assert torch.equal(pruned.conv1.weight, tiny_model.conv1.weight[kept])
    assert torch.equal(pruned.conv2.weight, tiny_model.conv2.weight[kept][:, kept])
    assert torch.equal(pruned.bn2.running_var, tiny_model.bn2.running_var[kept])
    assert torch.equal(pruned.fc.weight, tiny_model.fc.weight[:, kept])
    assert tiny_model.conv1.out_channels == 8


def test_channels_that_do_nothing_can_go_without_changing_the_output(tiny_model):
    dead = [2, 5]
    with torch.no_grad():
        for norm in (tiny_model.bn1, tiny_model.bn2):
            norm.weight[dead] = 0
            norm.bias[dead] = 0
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = tiny_model(x)
    remove_channels_(tiny_model, EXAMPLE, {"conv1": dead})
    assert torch.allclose(tiny_model(x), wanted, atol=1e-6)
    assert tiny_model.conv2.weight.shape == (6, 6, 3, 3)


def test_no_widths_is_a_copy(tiny_model):
    copied = prune(tiny_model, {}, {}, EXAMPLE)
    assert copied is not tiny_model
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), tiny_model.parameters(), strict=True))


def test_an_unknown_group_is_refused_with_the_known_ones(tiny_model):
    groups, _ = find_groups(tiny_model, EXAMPLE)
    with pytest.raises(ValueError, match="'conv2', which is not a group; known are conv1"):
        prune(tiny_model, {"conv2": 4}, _rising(groups), EXAMPLE)


class _Grouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 32, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


class _GroupNorms(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
            nn.GroupNorm(8, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class _Flattened(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 10)
        )


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.b(self.b(self.a(x))).mean((2, 3)))
        return out


@pytest.mark.parametrize("factory", [resnet20, _Grouped, _GroupNorms, _Flattened, _Twice])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_real_widths_are_the_promised_ones_for_every_group_alone_and_for_all(factory, ratio):
    model = factory().eval()
    groups, _ = find_groups(model, IMAGES)
    assert groups
    for chosen in [groups, *([g] for g in groups[:4])]:
        plan = CompressionPlan(prune_ratio={g.name: ratio for g in chosen})
        pruned = prune_to_plan(model, plan, ModelFacts(layers=(), groups=tuple(groups)), _rising(groups), IMAGES)
        for group in groups:
            promised = width_after(group, plan.prune_ratio.get(group.name, 0.0))
            for layer in group.layers:
                assert pruned.get_submodule(layer).weight.shape[0] == promised, layer
        assert pruned(*IMAGES).shape == (2, 10)


def test_coupled_layers_share_one_ratio():
    model = resnet20().eval()
    groups, _ = find_groups(model, IMAGES)
    stream = next(g for g in groups if g.name == "conv1")
    pruned = prune_to_plan(
        model,
        CompressionPlan(prune_ratio={"conv1": 0.25}),
        ModelFacts(layers=(), groups=tuple(groups)),
        _rising(groups),
        IMAGES,
    )
    assert stream.layers == ("conv1", "layers.0.conv2", "layers.1.conv2", "layers.2.conv2")
    assert {pruned.get_submodule(n).out_channels for n in stream.layers} == {12}
    assert pruned.layers[3].conv1.in_channels == 12


def test_blocks_lose_the_same_places():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(8.0).reshape(8, 1, 1, 1))
    remove_channels_(model, (torch.zeros(2, 1, 2, 2),), {"0": [1, 5]})
    assert model[0].weight.flatten().tolist() == [0, 2, 3, 4, 6, 7]
    assert model[1].num_channels == 6


def test_scores_of_what_is_left_keep_their_order():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([5.0, 4.0])}
    left = kept_scores(scores, {"a": 2})
    assert left["a"].tolist() == [3.0, 2.0]
    assert left["b"].tolist() == [5.0, 4.0]


def test_pruning_in_two_steps_keeps_the_same_channels_as_in_one():
    model = resnet20(1, width=8).eval()
    groups, _ = find_groups(model, EXAMPLE)
    scores = {g.name: torch.rand(g.channels, generator=torch.Generator().manual_seed(1)) for g in groups}
    half = {g.name: g.channels - g.granule for g in groups}
    less = {g.name: max(g.granule, g.channels - 2 * g.granule) for g in groups}
    once = prune(model, less, scores, EXAMPLE)
    twice = prune(prune(model, half, scores, EXAMPLE), less, kept_scores(scores, half), EXAMPLE)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_more_channels_than_there_are_cannot_be_kept(tiny_model):
    with pytest.raises(ValueError, match="'conv1' has 8 channels left and cannot keep 9"):
        prune(tiny_model, {"conv1": 9}, {"conv1": torch.arange(8.0)}, EXAMPLE)


class _Deep(nn.Module):
    """Twelve convolutions over time before a recurrent layer: numbers in the place of weights overflow on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[nn.Conv1d(16, 16, 3, padding=1) for _ in range(12)])
        self.rnn, self.fc = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.rnn(self.convs(x).transpose(1, 2))[0][:, -1])
        return out


def test_hidden_units_behind_many_convolutions_go_and_the_others_stand_in_for_them():
    torch.manual_seed(0)
    model, x = _Deep().eval(), (torch.randn(4, 16, 5),)
    pruned = prune(model, {"rnn": 6}, {"rnn": torch.arange(8.0)}, x, grams=input_grams(model, x))
    rows = [gate * 8 + unit for gate in range(4) for unit in range(2, 8)]
    assert torch.equal(pruned.rnn.weight_ih_l0, model.rnn.weight_ih_l0[rows])
    assert pruned.fc.weight.shape == (3, 6)
    assert not torch.equal(pruned.fc.weight, model.fc.weight[:, 2:])
    assert pruned(*x).isfinite().all()
