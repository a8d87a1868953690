"""Which layers shrink together, which widths they may have, and what cannot shrink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.space import groups as groups_module
from autocompress.space.groups import find_groups, granule_for, input_sources
from autocompress.zoo.models import resnet20

IMAGES = (torch.zeros(2, 3, 16, 16),)


def _facts(found):
    return [(g.name, g.channels, g.granule, g.layers) for g in found]


def test_layers_joined_by_a_residual_add_are_one_group(tiny_model):
    groups, skips = find_groups(tiny_model, (torch.zeros(2, 1, 8, 8),))
    assert _facts(groups) == [("conv1", 8, 2, ("conv1", "conv2"))]
    assert [(s.name, s.what, s.reason) for s in skips] == [
        ("fc", "prune", "its channels are the outputs of the network")
    ]


def test_resnet20_has_three_streams_and_nine_inner_widths():
    groups, _ = find_groups(resnet20().eval(), IMAGES)
    assert [g.channels for g in groups] == [16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64]
    assert sorted(len(g.layers) for g in groups) == [1] * 9 + [4, 4, 4]
    assert all(g.name == g.layers[0] for g in groups)


def test_finding_groups_leaves_the_model_as_it_was(tiny_model):
    for parameter in tiny_model.parameters():
        parameter.requires_grad_(False)
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    find_groups(tiny_model, (torch.zeros(2, 1, 8, 8),))
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())
    assert not any(p.requires_grad for p in tiny_model.parameters())


@pytest.mark.parametrize(
    ("channels", "round_to", "blocks", "granule"),
    [(64, 8, 1, 8), (32, 8, 1, 8), (24, 8, 1, 4), (16, 8, 1, 4), (8, 8, 1, 2), (7, 8, 1, 1), (64, 16, 1, 16),
     (64, 8, 4, 8), (32, 8, 16, 16), (12, 8, 3, 3), (10, 1, 1, 1)],
)  # fmt: skip
def test_a_granule_divides_the_channels_and_leaves_a_choice(channels, round_to, blocks, granule):
    found = granule_for(channels, round_to, blocks)
    assert found == granule
    assert channels % found == 0
    assert found % blocks == 0


def test_a_skipped_layer_takes_its_whole_group_along(tiny_model):
    groups, skips = find_groups(tiny_model, (torch.zeros(2, 1, 8, 8),), skip=("conv2",))
    assert groups == []
    assert ("conv1", "listed under skip in the study file") in [(s.name, s.reason) for s in skips]


def test_grouped_convolutions_and_group_norms_lose_channels_in_multiples_of_their_groups():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.Conv2d(32, 64, 3, groups=4), nn.Flatten(), nn.Linear(9216, 10)
    ).eval()
    groups, _ = find_groups(model, IMAGES)
    assert groups
    assert all(g.granule % 4 == 0 for g in groups)
    assert {g.name: g.granule for g in groups}["0"] % 8 == 0


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 32, bias=False)
        self.out.weight = self.embed.weight
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.out(F.relu(self.inner(self.embed(x))))).mean(1))
        return out


def test_a_weight_shared_between_layers_keeps_its_channels():
    groups, skips = find_groups(_Tied().eval(), (torch.zeros(2, 5, dtype=torch.long),))
    assert groups == []
    reasons = {s.name: s.reason for s in skips}
    assert reasons["out"] == reasons["inner"] == "a weight in it is shared between layers"


class _Fixed(nn.Module):
    """The forward insists on the width of `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        if x.shape[1] != 16:
            raise RuntimeError("16 features are needed")
        out: Tensor = self.fc(F.relu(self.c(x)))
        return out


def test_a_group_that_breaks_the_forward_is_skipped_and_the_others_are_kept():
    groups, skips = find_groups(_Fixed().eval(), (torch.zeros(2, 8),))
    assert [g.name for g in groups] == ["a", "c"]
    reason = {s.name: s.reason for s in skips}["b"]
    assert reason == "the forward fails once channels are removed (16 features are needed)"


def test_looking_for_the_groups_that_break_a_forward_ends_after_a_bounded_number_of_tries(monkeypatch):
    calls = []
    monkeypatch.setattr(groups_module, "_breaks", lambda *_: calls.append(1) or "never works")
    model = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(16, 16), nn.ReLU())]).eval()
    groups, skips = find_groups(model, (torch.zeros(2, 16),))
    assert groups == []
    assert len(skips) == 40
    assert len(calls) <= groups_module._MOST_TRIES + 1


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no input is good enough")


def test_a_forward_that_cannot_be_followed_is_one_skip_for_the_whole_model():
    groups, skips = find_groups(_Untraceable().eval(), (torch.zeros(2, 8),))
    assert groups == []
    assert [s.name for s in skips] == ["(whole model)"]
    assert "no input is good enough" in skips[0].reason


def test_sources_say_how_many_inputs_go_with_a_channel():
    """One per channel in a chain, four behind a 2x2 image that is flattened, none into a depthwise layer."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    ).eval()  # fmt: skip
    example = (torch.zeros(2, 1, 8, 8),)
    groups, _ = find_groups(model, example)
    assert input_sources(model, example, groups) == {"3": {"0": 1.0}, "6": {"3": 4.0}}
