"""Beliefs against their closed form, and damage that learns which part was wrong."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.options import Candidates, Options
from autocompress.search.surrogate import DamageModel, LinearBelief, after_training, trained_on, training_factor


@pytest.mark.parametrize("count", [12, 16, 40])  # the covariance is brought up to date for 16 at once
def test_a_belief_is_the_ridge_regression_of_what_was_seen(count):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(count, 3)), generator.normal(size=count)
    belief = LinearBelief(np.zeros(3), np.ones(3))
    for row, value in zip(x, y, strict=True):
        belief.observe(row, value, 0.5)
    precision = np.eye(3) + x.T @ x / 0.25
    covariance = np.linalg.inv(precision)
    assert belief.mean == pytest.approx(np.linalg.solve(precision, x.T @ y / 0.25))
    assert belief.sd() == pytest.approx(np.sqrt(np.diag(covariance)))
    others = generator.normal(size=(9, 3))
    assert belief.sd_of(others) == pytest.approx(np.sqrt(np.diag(others @ covariance @ others.T)))


@pytest.fixture
def damage(request) -> DamageModel:
    """Two groups and a block on the residual pair, each of whose options does one unit of damage alone."""
    return model(request.getfixturevalue("block_options"))


def model(options: Options, **more) -> DamageModel:
    width = np.zeros(options.widths.shape)
    width[:, 1:] = 1.0
    bits = np.zeros((len(options.taps), len(options.bits)))
    rank = np.zeros((len(options.taps), len(options.ratios)))
    rank[:, 1:] = 1.0
    return DamageModel(options, width=width, bits=bits, blocks=np.ones(1), activations=np.zeros(2), rank=rank, **more)


def plan(*width: int, removed: bool = False) -> Candidates:
    return Candidates(
        width=np.array([width]), bits=np.zeros((1, 3), np.int64), activations=np.zeros(1, np.int64),
        removed=np.array([[removed]]), zeroed=np.zeros(1), rank=np.zeros((1, 0), np.int64),
    )  # fmt: skip


def drop(damage: DamageModel, one: Candidates, **options) -> float:
    return float(damage.predict(one, **options)[0][0])


def test_one_group_turns_out_worse_than_the_other(damage):
    assert drop(damage, plan(1, 0)) == drop(damage, plan(0, 1)) > 0
    for _ in range(5):
        damage.observe(plan(1, 0), 0.08, training=1.0, noise=0.001)
        damage.observe(plan(0, 1), 0.01, training=1.0, noise=0.001)
    assert drop(damage, plan(1, 0)) == pytest.approx(0.08, rel=0.25)
    assert drop(damage, plan(0, 1)) == pytest.approx(0.01, rel=0.25)
    assert damage.tables()[0][0, 1] > 3 * damage.tables()[0][1, 1]


def test_a_belief_that_was_sure_and_far_too_low_gives_way_and_a_failed_training_does_not_overturn_it(damage):
    for _ in range(5):
        damage.observe(plan(1, 0), 0.01, training=1.0, noise=0.001)
    low = drop(damage, plan(1, 0))
    for _ in range(3):
        damage.observe(plan(1, 0), 0.05, training=1.0, noise=0.001)
    learned = drop(damage, plan(1, 0))
    assert low < 0.012
    assert learned > 0.015
    damage.observe(plan(1, 0), 0.9, training=1.0, noise=0.001)  # no better than chance
    assert drop(damage, plan(1, 0)) < 3 * learned


def test_a_measurement_counts_for_as_much_as_it_is_less_noisy_than_the_belief_is_uncertain(damage):
    mean, sd = (float(part[0]) for part in damage.predict(plan(1, 0)))
    assert damage.weighed(plan(1, 0), 0.0, training=1.0, noise=1e-9) == pytest.approx(0.0, abs=1e-9)
    assert damage.weighed(plan(1, 0), 0.0, training=1.0, noise=sd) == pytest.approx(mean / 2)
    assert damage.weighed(plan(1, 0), 0.0, training=1.0, noise=1e3) == pytest.approx(mean)


def test_what_is_inside_of_a_removed_block_does_no_damage_of_its_own(damage):
    assert drop(damage, plan(0, 1, removed=True)) == drop(damage, plan(0, 0, removed=True)) > 0


def test_without_learning_nothing_is_learned(block_options):
    damage = model(block_options, learns=False)
    before = drop(damage, plan(1, 0))
    damage.observe(plan(1, 0), 0.5, training=1.0, noise=0.001)
    assert drop(damage, plan(1, 0)) == before


def test_longer_training_leaves_less_damage(damage):
    assert training_factor(4.0) == pytest.approx(0.5)
    assert drop(damage, plan(1, 1), training=4.0) == pytest.approx(drop(damage, plan(1, 1)) / 2)


@pytest.mark.parametrize(
    ("trainings", "worth"),
    [((2.5,), 2.5), ((2.5,) * 4, 5.0), ((2.5, 10.0), 12.5), ((12.5, 2.5), 12.5), ((4.0, 0.0), 4.0)],
)
def test_trainings_one_after_another_are_worth_at_most_twice_the_longest(trainings, worth):
    before = 0.0
    for own in trainings:
        before = trained_on(before, own)
    assert before == worth


def test_a_trial_that_was_trained_longer_says_more_of_the_short_ones(damage):
    """2 points after four times the training are 4 points after one."""
    for _ in range(20):
        damage.observe(plan(1, 1), 0.02, training=4.0, noise=0.0005)
    assert drop(damage, plan(1, 1)) == pytest.approx(0.04, rel=0.1)


def test_one_layer_bears_low_rank_and_the_other_does_not(factored, factored_options):
    damage = DamageModel(
        factored_options, width=np.zeros(factored_options.widths.shape), bits=np.zeros((3, 2)), blocks=np.zeros(0),
        activations=np.zeros(3), rank=np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
    )  # fmt: skip
    inner, outer = (factored_options.encode([factored.decode({f"rank_ratio/{n}": 0.5})]) for n in ("inner", "outer"))
    assert drop(damage, inner) == drop(damage, outer) > 0
    for _ in range(5):
        damage.observe(inner, 0.05, training=1.0, noise=0.001)
        damage.observe(outer, 0.005, training=1.0, noise=0.001)
    assert drop(damage, inner) > 3 * drop(damage, outer)
    rank = damage.tables()[3]
    assert rank[1, 1] > 3 * rank[2, 1] > 0
    assert rank[0].tolist() == [0.0, 0.0, 0.0]


def test_plans_are_alike_as_far_as_they_lose_at_the_same_places(damage):
    unlike = damage.unlike(plan(1, 0), plan(1, 0))
    assert unlike == pytest.approx(0.0, abs=1e-6)
    assert damage.unlike(plan(1, 0), plan(0, 1)) == pytest.approx(1.0)
    assert damage.unlike(plan(1, 1), plan(1, 0)) == pytest.approx((1 / 3) ** 0.5)  # one part of two, of 2 + 1 in all


def test_a_misfit_is_what_is_unknown_of_plans_that_are_like_no_other(damage):
    parts = damage.sum_of_parts(plan(1, 0))
    mean, new = after_training(*parts, 1.0)
    _, known = after_training(*parts, 1.0, np.zeros(1))
    assert known == pytest.approx(parts[1])
    assert new == pytest.approx(np.hypot(parts[1], 0.001 + 0.2 * mean))
