"""Which samples trainings see: all in one order, and of those that the teacher is sure of only a few."""

from __future__ import annotations

import math
import time
from itertools import islice

import pytest
import torch
from test_finetune import TRAINER, outputs_of
from tiny import make_tiny_data
from torch import Tensor, nn

from autocompress.plan import DistillPlan
from autocompress.recover.data import Split
from autocompress.recover.finetune import finetune_
from autocompress.recover.order import Order, chances
from autocompress.recover.outputs import TeacherOutputs

SURE, UNSURE = 700, 300


class HalfSure(nn.Module):
    """A teacher that says what the first input says: one class for certain, or two that are as likely."""

    def forward(self, x: Tensor) -> Tensor:
        unsure = x[:, 0] > 0
        return torch.stack([torch.full_like(x[:, 0], 20.0), 20.0 * unsure, torch.zeros_like(x[:, 0])], 1)


class HalfSureStudent(nn.Module):
    """A network that says the same, of the two classes always the one of its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0.999, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = HalfSure()(x) * self.scale
        return said


@pytest.fixture
def half_sure() -> TeacherOutputs:
    inputs = torch.zeros(SURE + UNSURE, 4)
    inputs[:UNSURE, 0] = 1
    train = Split(inputs=(inputs,), targets=torch.zeros(len(inputs), dtype=torch.long))
    return outputs_of(HalfSure().eval(), train)


def order_of(source: TeacherOutputs, *, size: int = 50, seed: int = 0, seen: int = 0) -> Order:
    return Order(source, size, seed=seed, seen=seen)


def choose(order: Order, epochs: float) -> None:
    """As a network does that says what its teacher says."""
    for _ in range(30):
        order.consider(0.0, epochs)


def ask_all(source: TeacherOutputs) -> None:
    source.ask(order_of(source).first_epoch(), math.inf)


def test_each_epoch_visits_every_sample_once_in_another_order(half_sure):
    order = order_of(half_sure)
    first = torch.cat(list(order.first_epoch()))
    assert order.epoch == 0
    second = torch.cat(list(islice(order, 20)))
    assert order.epoch == 1
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))


def test_a_training_goes_on_where_an_earlier_one_ended(half_sure):
    whole, rest = list(islice(order_of(half_sure), 30)), order_of(half_sure, seen=1250)
    assert all(torch.equal(a, b) for a, b in zip(whole[25:], rest, strict=False))
    assert rest.epoch == 1
    other = next(order_of(half_sure, seed=1))
    assert not torch.equal(other, whole[0])


def test_fewer_samples_than_a_batch_are_one(half_sure):
    assert len(next(order_of(half_sure, size=5000))) == 1000


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_the_chance_rises_with_the_doubt_and_has_the_mean_that_was_asked_for(share):
    doubts = torch.rand(2000, generator=torch.Generator().manual_seed(0)) ** 4
    found = chances(doubts, share)
    assert float(found.mean()) == pytest.approx(share, abs=1e-4)
    ascending = found[doubts.argsort()]
    assert bool((ascending.diff() >= 0).all())
    assert float(found.max()) <= 1


def test_samples_that_are_not_known_are_taken_and_do_not_count_for_the_mean():
    doubts = torch.tensor([0.5, torch.nan, 0.0, torch.nan, 0.1, 0.2])
    found = chances(doubts, 0.3)
    assert found[1] == found[3] == 1
    assert float(found[[0, 2, 4, 5]].mean()) == pytest.approx(0.3, abs=1e-4)


def test_where_there_is_no_doubt_at_all_every_sample_has_the_same_small_chance():
    found = chances(torch.zeros(10), 0.3)
    assert bool((found == found[0]).all())
    assert 0 < found[0] < 0.3


def test_the_samples_that_the_teacher_is_unsure_of_come_first_and_foremost(half_sure):
    ask_all(half_sure)
    order = order_of(half_sure)
    choose(order, 0.5)
    seen = torch.cat(list(islice(order, 6)))
    assert (seen < UNSURE).float().mean() > 0.9, "they are three tenths of all samples"
    assert len(seen.unique()) == len(seen), "within an epoch none is seen twice"


def test_the_choice_is_the_same_each_time(half_sure):
    ask_all(half_sure)
    one, two = order_of(half_sure, seen=300), order_of(half_sure, seen=300)
    choose(one, 0.5)
    choose(two, 0.5)
    assert all(torch.equal(next(one), next(two)) for _ in range(20))


@pytest.mark.parametrize(("before", "epochs"), [(0, 20), (5, 1.5)])
def test_a_network_that_sees_every_sample_many_times_leaves_nothing_out(half_sure, before, epochs):
    ask_all(half_sure)
    seen = before * len(half_sure.train)
    chosen, plain = order_of(half_sure, seen=seen), order_of(half_sure, seen=seen)
    choose(chosen, epochs)
    assert all(torch.equal(next(chosen), next(plain)) for _ in range(40))


@pytest.mark.parametrize(("disagreement", "undecided"), [(0.05, False), (0.3, True)])
def test_a_network_that_differs_from_its_teacher_needs_all_samples(half_sure, disagreement, undecided):
    ask_all(half_sure)
    order = order_of(half_sure)
    for _ in range(50):
        order.consider(disagreement, 0.5)
    assert order.undecided == undecided
    seen = torch.cat(list(islice(order, 6)))
    assert ((seen < UNSURE).float().mean() > 0.9) == (not undecided)


def test_one_batch_on_which_a_network_agrees_decides_nothing(half_sure):
    order = order_of(half_sure)
    order.consider(0.0, 0.5)
    assert order.undecided


def test_of_samples_that_the_teacher_was_not_asked_for_none_is_left_out(half_sure):
    known = list(islice(order_of(half_sure), 4))
    half_sure.ask(known, math.inf)
    order, plain = order_of(half_sure), torch.cat(list(order_of(half_sure).first_epoch()))
    choose(order, 0.5)
    seen = torch.cat(list(islice(order, 16)))
    unknown = plain[200:]
    assert torch.equal(seen[-500:], unknown[unknown.tolist().index(int(seen[-500])) :][:500])
    assert torch.isin(unknown[:600], seen).all()


def test_the_teacher_is_asked_once_and_not_when_the_time_is_over(half_sure):
    calls: list[int] = []
    half_sure.answers = lambda inputs: (calls.append(len(inputs[0])), HalfSure()(inputs[0]))[1]
    half_sure.ask(order_of(half_sure).first_epoch(), time.monotonic() - 1)
    assert not calls
    ask_all(half_sure)
    ask_all(half_sure)
    assert sum(calls) == len(half_sure.train)


def test_doubts_are_what_the_largest_probability_leaves(half_sure):
    assert half_sure.doubts() is None, "before it was asked"
    half_sure.batch(torch.tensor([0, SURE]))
    doubts = half_sure.doubts()
    assert doubts is not None
    assert float(doubts[0]) == pytest.approx(0.5, abs=1e-4)
    assert float(doubts[SURE]) == pytest.approx(0.0, abs=1e-4)
    assert int(doubts.isnan().sum()) == len(half_sure.train) - 2


@pytest.mark.parametrize("targets", [torch.rand(64, 3), torch.rand(64, 3) > 0.5], ids=["numbers", "labels"])
def test_nothing_is_left_out_where_a_sample_has_no_class(targets):
    source = outputs_of(HalfSure().eval(), Split(inputs=(torch.rand(64, 4),), targets=targets))
    ask_all(source)
    assert source.doubts() is None
    chosen, plain = order_of(source, size=8), order_of(source, size=8)
    choose(chosen, 0.1)
    assert all(torch.equal(next(chosen), next(plain)) for _ in range(20))


def test_a_training_without_a_teacher_leaves_nothing_out():
    inputs, targets = make_tiny_data()["train"]
    source = outputs_of(None, Split(inputs=(inputs,), targets=targets))
    ask_all(source)
    assert source.doubts() is None


@pytest.mark.parametrize(("steps", "share"), [(60, 1.0), (300, 0.3)])
def test_a_short_training_sees_what_the_teacher_is_unsure_of_and_a_long_one_everything(half_sure, steps, share):
    ask_all(half_sure)
    seen: list[Tensor] = []
    real = half_sure.batch
    half_sure.batch = lambda indices, epoch=None: (seen.append(indices), real(indices, epoch))[1]
    finetune_(
        HalfSureStudent(), half_sure, trainer=TRAINER, seconds=math.inf, steps=steps, learning_rate=1e-4,
        distill=DistillPlan(),
    )  # fmt: skip
    later = torch.cat(seen[20:])  # it has to show first that it agrees
    assert float((later < UNSURE).float().mean()) == pytest.approx(share, abs=0.1)
