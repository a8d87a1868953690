"""A plan in a few numbers, and what explains what came out."""

from __future__ import annotations

import random

import pytest
from front_factories import make_facts, make_trial

from autocompress.front.dials import dials, influence, parameters
from autocompress.plan import CompressionPlan


def test_dials_are_weighted_by_channels_and_weights() -> None:
    plan = CompressionPlan(prune_ratio={"layer3.0.conv1": 0.5}, weight_bits={"fc": 8}, removed_blocks=("x",))
    found = dials(make_trial(1, 0.9, 1, 1.0, plan=plan), make_facts())
    channels = sum(g.channels for g in make_facts().groups)
    weights = sum(n.weights for n in make_facts().layers)
    assert found["channels removed"] == pytest.approx(32 / channels)
    assert found["bits per weight"] == pytest.approx(32 - 24 * 640 / weights)
    assert found["blocks removed"] == 1


def test_parameters_keep_their_lasting_names() -> None:
    plan = CompressionPlan(prune_ratio={"a": 0.5}, weight_bits={"b": 4})
    assert parameters(make_trial(1, 0.9, 1, 1.0, plan=plan)) == {"prune_ratio/a": 0.5, "weight_bits/b": 4}


def test_what_decides_everything_explains_everything_and_noise_explains_nothing() -> None:
    rng = random.Random(0)
    rows = [
        {"bits": rng.choice((4, 8)), "kind": rng.choice("ab"), "noise": rng.random(), "same": 1} for _ in range(400)
    ]
    found = dict(influence(rows, [row["bits"] / 4 + (row["kind"] == "a") * 0.01 for row in rows]))
    assert found["bits"] > 0.99
    assert found["noise"] < 0.02
    assert found["kind"] < 0.02
    assert "same" not in found


def test_two_equal_parts_explain_half_each() -> None:
    rows = [{"a": i % 2, "b": i // 2 % 2} for i in range(400)]
    found = dict(influence(rows, [row["a"] + row["b"] for row in rows]))
    assert found["a"] == pytest.approx(0.5, abs=0.01)
    assert found["b"] == pytest.approx(0.5, abs=0.01)


def test_a_curve_that_no_line_fits_is_still_explained() -> None:
    values = [i / 300 for i in range(300)]
    assert dict(influence([{"x": v} for v in values], [abs(v - 0.5) for v in values]))["x"] > 0.8


@pytest.mark.parametrize("target", [[1.0] * 20, [0.0, 1.0, 2.0]])
def test_too_little_says_nothing(target: list[float]) -> None:
    assert influence([{"x": i} for i in range(len(target))], target) == []
