"""What accompanies a training: hints that start as the best linear map, attention maps, and a running average."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import TinyNet
from torch import nn

from autocompress.plan import DistillPlan
from autocompress.recover.companions import Adapter, Hints, MeanTeacher, attention, companions_for, hint_layers
from autocompress.recover.distill import distill_loss, label_distill_loss
from autocompress.recover.teacher import Ensemble, average_

CPU = torch.device("cpu")


@pytest.fixture
def example() -> tuple[torch.Tensor, ...]:
    return (torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def test_none_accompanies_a_plain_plan(example):
    net = TinyNet().eval()
    assert companions_for(net, net, DistillPlan(), example, CPU) == []


def test_hints_of_a_network_to_itself_are_zero_and_of_another_one_are_not(example):
    teacher, other = TinyNet(8).eval(), TinyNet(4).eval()
    for student, most in ((copy.deepcopy(teacher), 1e-5), (other, 1.0)):
        hints = Hints(student, teacher, DistillPlan(hints=1.0, attention=1.0), example, CPU)
        loss = hints.loss(example, student(*example), torch.zeros(16).long()).item()
        assert loss <= most * 2
        assert (loss < 1e-4) == (student is not other)
        hints.close()


def test_an_adapter_undoes_a_mix_of_the_channels_at_once():
    """The student's features are the teacher's, mixed: an adapter undoes that from the first step on."""
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    student = copy.deepcopy(teacher)
    mix = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    student[0].weight.data, student[0].bias.data = mix @ teacher[0].weight, mix @ teacher[0].bias
    x = (torch.randn(32, 4, generator=torch.Generator().manual_seed(1)),)
    hints = Hints(student, teacher, DistillPlan(hints=1.0), x, CPU)
    assert hints.loss(x, student(*x), torch.zeros(32).long()).item() < 1e-5


def test_the_adapter_is_the_least_squares_map_of_the_first_rows_it_sees():
    own, wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]), torch.tensor([[3.0], [8.0], [11.0]])
    assert torch.allclose(Adapter()(own, wanted), torch.tensor([[3.0], [4.0]]), atol=2e-3)


def test_closing_leaves_no_hook_behind(example):
    teacher, student = TinyNet().eval(), TinyNet(4).eval()
    Hints(student, teacher, DistillPlan(hints=1.0), example, CPU).close()
    assert not any(m._forward_pre_hooks for net in (teacher, student) for m in net.modules())


def test_attention_maps_are_of_unit_length_and_ignore_the_number_of_channels():
    one = torch.tensor([[[3.0, 4.0]]])  # [1, 1 channel, 2 places]
    assert torch.allclose(attention(one), torch.tensor([[9.0, 16.0]]) / (81 + 256) ** 0.5)
    assert torch.allclose(attention(one), attention(one.expand(1, 5, 2)))


def test_hint_layers_are_spread_and_end_with_the_last(example):
    assert hint_layers(TinyNet(8), TinyNet(4), example) == ["conv2", "fc"]
    gone = TinyNet(4)
    gone.conv2 = nn.Identity()  # as if it went with a block
    assert hint_layers(TinyNet(8), gone, example) == ["fc"]


def test_the_mean_teacher_moves_a_fiftieth_of_the_way():
    student = nn.Linear(2, 2)
    student.weight.data.zero_()
    mean = MeanTeacher(student, DistillPlan(mean_teacher=1.0), CPU)
    student.weight.data.fill_(1.0)
    mean.after_step(student)
    assert torch.allclose(mean.mean.weight, torch.full((2, 2), 0.02))
    assert mean.mean.weight.requires_grad is False


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_the_mean_teacher_is_followed_by_the_loss_of_the_task(kind):
    torch.manual_seed(0)
    student, x, outputs = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    soft = student(x).detach()
    targets, wanted = {
        "classification": (torch.tensor([0, 1, 1, 0]), distill_loss(outputs, soft, temperature=2.0)),
        "multilabel": (torch.ones(4, 2, dtype=torch.bool), label_distill_loss(outputs, soft, temperature=2.0)),
        "regression": (torch.ones(4, 2), (outputs - soft).square().mean()),
    }[kind]
    mean = MeanTeacher(student, DistillPlan(mean_teacher=0.5, temperature=2.0), CPU)
    assert torch.allclose(mean.loss((x,), outputs, targets), 0.5 * wanted)


def test_the_mean_teacher_starts_again_when_rounding_sets_in():
    from autocompress.compress.quantize import quantize_weights_

    student = nn.Sequential(nn.Linear(2, 2))
    mean = MeanTeacher(student, DistillPlan(mean_teacher=1.0), CPU)
    quantize_weights_(student, {"0": 4})
    student[0].parametrizations.weight.original.data.fill_(0.5)
    mean.after_step(student)
    x = torch.ones(1, 2)
    assert torch.equal(mean.mean(x), student(x))


def test_an_ensemble_says_the_mean_of_its_members_probabilities():
    """Members that are sure of different classes: 0.5 for each of the two."""

    class Sure(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(x), -1)

    both = Ensemble([Sure([50.0, 0.0, 0.0]), Sure([0.0, 50.0, 0.0])])
    assert torch.allclose(both(torch.zeros(2, 1)).exp(), torch.tensor([[0.5, 0.5, 0.0]] * 2), atol=1e-6)
    assert torch.equal(Ensemble([Sure([1.0]), Sure([3.0])])(torch.zeros(1, 1)), torch.tensor([[2.0]]))
    numbers = Ensemble([Sure([1.0, 0.0]), Sure([3.0, 2.0])], classes=False)
    assert torch.equal(numbers(torch.zeros(1, 1)), torch.tensor([[2.0, 1.0]]))


def test_a_soup_has_the_mean_of_all_weights_and_statistics():
    nets = [nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)) for _ in range(2)]
    for value, net in zip((1.0, 3.0), nets, strict=True):
        net[0].weight.data.fill_(value)
        net[1].running_mean.fill_(10 * value)
    soup = average_(nets)
    assert soup is nets[0]
    assert (soup[0].weight.item(), soup[1].running_mean.item()) == (2.0, 20.0)
