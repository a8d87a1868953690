"""Beliefs against their closed form, and damage that learns which part was wrong."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.surrogate import DamageModel, LinearBelief, training_factor


def test_a_belief_is_the_ridge_regression_of_what_was_seen():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 3)), generator.normal(size=12)
    belief = LinearBelief(np.zeros(3), np.ones(3))
    for row, value in zip(x, y, strict=True):
        belief.observe(row, value, 0.5)
    precision = np.eye(3) + x.T @ x / 0.25
    assert belief.mean == pytest.approx(np.linalg.solve(precision, x.T @ y / 0.25))
    assert belief.covariance == pytest.approx(np.linalg.inv(precision))
    assert belief.sd_of(x[:1])[0] == pytest.approx(np.sqrt(x[0] @ np.linalg.inv(precision) @ x[0]))


def model(**options) -> DamageModel:
    width = np.array([[0.0, 1.0], [0.0, 1.0]])
    bits = np.array([[0.0, 1.0], [0.0, 1.0]])
    return DamageModel(width=width, bits=bits, activations=np.array([0.0, 1.0]), **options)


def choice(width, bits=(0, 0), kind=0):
    return np.array(width), np.array(bits), np.int64(kind)


def drops(damage: DamageModel) -> list[float]:
    both = np.array([[1, 0], [0, 1]]), np.zeros((2, 2), np.int64), np.zeros(2, np.int64)
    return damage.predict(both)[0].tolist()


def test_one_group_turns_out_worse_than_the_other():
    damage = model()
    first, second = drops(damage)
    assert first == second > 0
    for _ in range(5):
        damage.observe(choice([1, 0]), 0.08, training=1.0, noise=0.001)
        damage.observe(choice([0, 1]), 0.01, training=1.0, noise=0.001)
    first, second = drops(damage)
    assert first == pytest.approx(0.08, rel=0.25)
    assert second == pytest.approx(0.01, rel=0.25)
    assert damage.tables()[0][0, 1] > 3 * damage.tables()[0][1, 1]


def test_without_learning_nothing_is_learned():
    damage = model(learns=False)
    before = drops(damage)
    damage.observe(choice([1, 0]), 0.5, training=1.0, noise=0.001)
    assert drops(damage) == before


def test_longer_training_leaves_less_damage():
    assert training_factor(4.0) == pytest.approx(0.5)
    damage = model()
    one = tuple(part[None] if np.ndim(part) else np.array([part]) for part in choice([1, 1]))
    assert damage.predict(one, training=4.0)[0][0] == pytest.approx(damage.predict(one)[0][0] / 2)


def test_a_trial_that_was_trained_longer_says_more_of_the_short_ones():
    """2 points after four times the training are 4 points after one."""
    damage = model()
    for _ in range(20):
        damage.observe(choice([1, 1]), 0.02, training=4.0, noise=0.0005)
    one = tuple(part[None] if np.ndim(part) else np.array([part]) for part in choice([1, 1]))
    assert damage.predict(one)[0][0] == pytest.approx(0.04, rel=0.1)
