"""Channel scores against sums done by hand on two layers of three channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.importance import score_channels
from autocompress.records import GroupFacts
from autocompress.space.groups import find_groups

GROUP = GroupFacts(name="a", channels=3, granule=1, layers=("a",))
X = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
FIRST = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 2.0]])  # sums 1, 2, 4; squares 1, 2, 8
SECOND = torch.tensor([[3.0, -1.0, 2.0]])


class _Miniature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3, bias=False)
        self.bn = nn.BatchNorm1d(3)
        self.b = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(FIRST)
            self.b.weight.copy_(SECOND)
            self.bn.weight.copy_(torch.tensor([0.5, -1.0, 1.5]))
        self.bn.eps = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.bn(self.a(x)))
        return out


def _scores(criterion):
    model = _Miniature().eval()
    return score_channels(model, [GROUP], criterion, [((X,), torch.zeros(2))], lambda out, _: out.mean(), seed=0)["a"]


def _mean_one(*layers):
    total = sum(torch.tensor(v) / torch.tensor(v).mean() for v in layers)
    return total / total.mean()


@pytest.mark.parametrize(
    ("criterion", "layers"),
    [
        ("l1", ([1.0, 2.0, 4.0], [3.0, 1.0, 2.0])),
        ("l2", ([1.0, 2.0, 8.0], [9.0, 1.0, 4.0])),
        ("bn_scale", ([0.5, 1.0, 1.5],)),
        # a(x) = 1, 3, 6; after the norm 0.5, -3, 9.  d out / d a.weight[c, i] = b[c] gamma[c] x[i]
        # |w dL/dw| of a: 1.5 * (1 + 0), 1 * (1 + 2), 3 * (2 + 4); of b: |b| |norm| = 1.5, 3, 18
        ("taylor", ([1.5, 3.0, 18.0], [1.5, 3.0, 18.0])),
        # squares before summing: 1.5^2; 1 + 4; 6^2 + 12^2; and the squares of b's
        ("fisher", ([2.25, 5.0, 180.0], [2.25, 9.0, 324.0])),
    ],
)
def test_scores_are_the_sums_done_by_hand(criterion, layers):
    assert torch.allclose(_scores(criterion), _mean_one(*layers), atol=1e-5)


def test_random_scores_depend_on_the_seed_alone(tiny_model):
    def scores(seed):
        return score_channels(tiny_model, [GROUP], "random", [], F.cross_entropy, seed=seed)["a"]

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))


def test_every_input_of_a_flattened_channel_counts_towards_it():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.copy_(torch.tensor([[1.0] * 4 + [2.0] * 4 + [6.0] * 4]))
    batch = ((torch.ones(2, 1, 2, 2),), torch.zeros(2))
    group = GroupFacts(name="0", channels=3, granule=1, layers=("0",))
    found = score_channels(model, [group], "l1", [batch], lambda out, _: out.mean(), seed=0)["0"]
    assert torch.allclose(found, _mean_one([1.0, 1.0, 1.0], [4.0, 8.0, 24.0]))


class _Concat(nn.Module):
    """Like a dense block: `b` and `c` read what was concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 1)
        self.b = nn.Conv2d(4, 8, 1)
        self.bn = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.c(self.bn(torch.cat([x, self.b(x)], 1)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "fisher", "activation", "bn_scale", "random"])
def test_groups_that_are_concatenated_have_one_score_per_channel(criterion):
    torch.manual_seed(0)
    model = _Concat().eval()
    x = torch.randn(4, 1, 6, 6)
    groups, _ = find_groups(model, (x[:2],), round_to=1)
    found = score_channels(model, groups, criterion, [((x,), torch.zeros(4).long())], F.cross_entropy, seed=0)
    assert {g.name: len(found[g.name]) for g in groups} == {"a": 4, "b": 8, "c": 8}
    assert all(s.isfinite().all() for s in found.values())


def test_what_reads_a_concatenation_is_scored_by_its_own_slice():
    torch.manual_seed(0)
    model = _Concat().eval()
    with torch.no_grad():
        for conv in (model.a, model.b, model.c):
            conv.weight.fill_(1.0)
        model.c.weight[:, 4 + 5] = 100.0  # what reads channel 5 of b
    x = torch.randn(4, 1, 6, 6)
    groups, _ = find_groups(model, (x[:2],), round_to=1)
    found = score_channels(model, groups, "l1", [((x,), torch.zeros(4).long())], F.cross_entropy, seed=0)
    assert found["b"].argmax() == 5
    assert len(set(found["a"].tolist())) == 1


def test_channels_in_blocks_share_the_score_of_their_place():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1))
        model[3].weight.fill_(1.0)
    group = GroupFacts(name="0", channels=4, granule=2, layers=("0",))
    batch = ((torch.randn(2, 1, 1, 1),), torch.zeros(2))
    found = score_channels(model, [group], "l1", [batch], lambda out, _: out.mean(), seed=0)["0"]
    assert torch.equal(found[:2], found[2:])
    assert torch.allclose(found, _mean_one([2.0, 4.0, 2.0, 4.0], [3.0] * 4))


def test_a_model_without_groups_has_no_scores(tiny_model):
    assert score_channels(tiny_model, [], "l1", [], F.cross_entropy, seed=0) == {}


def test_scoring_leaves_no_gradients_behind(tiny_model, tiny_data):
    x, y = tiny_data["train"]
    groups, _ = find_groups(tiny_model, (x[:2],))
    score_channels(tiny_model, groups, "taylor", [((x[:8],), y[:8])], F.cross_entropy, seed=0)
    assert all(p.grad is None for p in tiny_model.parameters())
