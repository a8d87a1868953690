"""In which order a study tries what everybody would try and what its sampler proposes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autocompress.plan import CompressionPlan
from autocompress.search.stopping import Rung
from autocompress.study import driver as driving
from autocompress.study.driver import Driver


class Recorded(Driver):
    """Writes down what would be trained: r a reference, u a uniform plan, p a proposal; capitals are never stopped."""

    def __init__(self, sampler: str, *, room: int = 100) -> None:
        self.config = SimpleNamespace(search=SimpleNamespace(sampler=sampler))
        self.space = SimpleNamespace(references=lambda: [("r", _plan(0)), ("r", _plan(1))])
        self.trials: list = []
        self.schedule = SimpleNamespace(final_s=0.0)
        self.order, self.room = "", room

    end = 0.0

    def say(self, message: str) -> None:
        self.title = message

    def _sweep(self):
        yield from (("u", _plan(k)) for k in (2, 3, 4))

    def _parent(self, plan):
        return None

    def _has_time(self, until):
        return len(self.order) < self.room

    def evaluate(self, plan, *, origin, anchor, **_):
        self.order += self.title.upper() if anchor else self.title
        self.trials.append(SimpleNamespace(plan=plan, origin=origin))

    def propose(self, until):
        if not self._has_time(until):
            return False
        self.order += "p"
        return True


def _plan(k: int) -> CompressionPlan:
    return CompressionPlan(prune_ratio={"a": k / 8})


@pytest.fixture(autouse=True)
def _no_longer(monkeypatch):
    monkeypatch.setattr(driving, "to_train_longer", lambda _: None)


def order_of(driver: Recorded, monkeypatch, *, proposals: int) -> str:
    monkeypatch.setattr(driving, "is_time", lambda d: d.order.count("p") >= proposals)
    driver._search()
    return driver.order


@pytest.mark.parametrize(("proposals", "order"), [(6, "RRUppuppupp"), (4, "RRUppuppu"), (3, "RRUppupu"), (0, "RRUuu")])
def test_uniform_plans_have_their_turn_after_every_two_proposals_and_are_all_tried(monkeypatch, proposals, order):
    assert order_of(Recorded("front"), monkeypatch, proposals=proposals) == order


def test_other_samplers_learn_from_the_whole_sweep_first(monkeypatch):
    assert order_of(Recorded("tpe"), monkeypatch, proposals=2) == "RRUUUpp"


@pytest.mark.parametrize(("room", "order"), [(1, "R"), (2, "RR"), (3, "RRU"), (5, "RRUpp"), (6, "RRUppu")])
def test_the_time_ends_it_wherever_it_is(monkeypatch, room, order):
    assert order_of(Recorded("front", room=room), monkeypatch, proposals=9) == order


def test_what_was_tried_before_an_interruption_is_not_tried_again(monkeypatch):
    driver = Recorded("front")
    driver.trials = [SimpleNamespace(plan=_plan(k), origin="anchor") for k in (0, 1, 2, 3)]
    assert order_of(driver, monkeypatch, proposals=4) == "ppppu"


def test_a_trial_that_promises_more_is_trained_longer_in_place_of_a_proposal_while_there_is_time(monkeypatch):
    """l: trained longer, for as long as a new one, from its own weights and to its end."""
    asked = []

    class Longer(Recorded):
        trial_s = 2.4

        def evaluate(self, plan, *, origin, anchor, parent=None, **more):
            if origin == "longer":
                asked.append((plan, anchor, parent, more))
                self.title = "l"
            super().evaluate(plan, origin=origin, anchor=False, parent=parent, **more)

    trial = SimpleNamespace(trial=7, plan=_plan(7))
    monkeypatch.setattr(driving, "to_train_longer", lambda d: trial if d.order[-1] == "p" else None)
    assert order_of(Longer("front"), monkeypatch, proposals=3) == "rrupluplup"
    assert asked == [(trial.plan, True, trial, {})] * 2
    assert order_of(Longer("front", room=4), monkeypatch, proposals=3) == "rrup"


@pytest.mark.parametrize(("trial_s", "hope"), [(2.4, 0.25), (9.6, 0.5)])
def test_a_short_training_goes_on_past_its_rung_if_one_of_full_length_could_enter_the_front(monkeypatch, trial_s, hope):
    driver = Recorded("front")
    driver.config.search.without = ()
    driver.rivals = list
    driver.schedule = SimpleNamespace(train_s=9.6, trial_s=lambda _: trial_s)
    monkeypatch.setattr(Driver, "spent_s", 0.0)
    monkeypatch.setattr(driving, "learn_rung", lambda *_, **__: Rung(hope=0.5))
    assert driver._rung() == Rung(hope=pytest.approx(hope))
    monkeypatch.setattr(driving, "learn_rung", lambda *_, **__: None)
    assert driver._rung() is None
