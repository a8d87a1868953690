"""The sentence for a point, and the small texts around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from front_factories import BASELINE, make_point

from autocompress.front.explain import (
    format_bytes,
    format_drop,
    format_duration,
    format_ms,
    is_latency_tie,
    latency_kind,
    made_of,
    plan_document,
    plan_lines,
    words,
)
from autocompress.plan import CompressionPlan, DistillPlan
from autocompress.records import Cascade

SIZE = BASELINE.size_bytes
TIE: dict[str, Any] = {"latency_ratio": 0.99, "latency_ratio_ci": (0.97, 1.01)}
SLOWER: dict[str, Any] = {"latency_ratio": 1.4, "latency_ratio_ci": (1.38, 1.42)}
FASTER: dict[str, Any] = {"latency_ratio": 1 / 2.3, "latency_ratio_ci": (0.42, 0.44)}


def test_factored_layers_are_told_with_what_they_save():
    plan = CompressionPlan(rank_ratio={"a": 0.5, "b": 0.0, "c": 0.5})
    assert plan_lines(plan)[0] == "factored: 2 layers to low rank, to save 50% of each"
    plan = CompressionPlan(rank_ratio={"a": 0.25, "b": 0.5})
    assert plan_lines(plan)[0] == "factored: 2 layers to low rank, to save 25% to 50% of each"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"size_bytes": SIZE // 7, "test": 0.974, **FASTER},
            "7.0x smaller and 2.3x faster for 0.40 points of accuracy",
        ),
        ({"size_bytes": SIZE // 7, "test": 0.978, **FASTER}, "7.0x smaller and 2.3x faster at the same accuracy"),
        (
            {"size_bytes": SIZE // 7, "test": 0.980, **FASTER},
            "7.0x smaller, 2.3x faster and 0.20 points better in accuracy",
        ),
        (
            {"size_bytes": SIZE // 7, "test": 0.958, **TIE},
            "7.0x smaller, as fast within noise, for 2.0 points of accuracy",
        ),
        (
            {"size_bytes": SIZE // 7, "test": 0.958, **SLOWER},
            "7.0x smaller but 1.4x slower, for 2.0 points of accuracy",
        ),
        ({"size_bytes": SIZE * 2, "test": 0.978, **FASTER}, "2.3x faster but 2.0x larger, at the same accuracy"),
        ({"size_bytes": SIZE * 2, "test": 0.958, **SLOWER}, "2.0x larger and 1.4x slower, for 2.0 points of accuracy"),
        ({"size_bytes": SIZE, "test": 0.978, **TIE}, "the same size and as fast within noise, at the same accuracy"),
        (
            {"size_bytes": int(SIZE * 0.97), "test": 0.978, **TIE},
            "3% smaller, as fast within noise, at the same accuracy",
        ),
        ({"size_bytes": SIZE // 12, "test": 0.978, **FASTER}, "12x smaller and 2.3x faster at the same accuracy"),
    ],
)
def test_a_point_is_told_in_one_honest_sentence(changes: dict[str, Any], expected: str) -> None:
    assert words(make_point(**changes), BASELINE) == expected


def test_without_test_values_the_loss_is_on_validation() -> None:
    point = make_point(val=0.971, test=None, size_bytes=SIZE // 2, **FASTER)
    assert words(point, BASELINE) == "2.0x smaller and 2.3x faster for 1.0 points of accuracy"


def test_a_minimised_metric_is_told_in_percent() -> None:
    base = replace(BASELINE, metric="mse", val=2.0, test=None)
    worse, better = (make_point(val=v, test=None, size_bytes=SIZE // 2, **FASTER) for v in (2.06, 1.9))
    assert words(worse, base, direction="minimize") == "2.0x smaller and 2.3x faster for 3.0 % more mse"
    assert words(better, base, direction="minimize") == "2.0x smaller, 2.3x faster and 5.0 % less mse"


def test_a_metric_of_ones_own_is_called_by_its_function() -> None:
    base = replace(BASELINE, metric="my_metrics:top_five")
    assert words(make_point(test=0.968), base).endswith("for 1.0 points of top five")


def test_the_baseline_is_called_itself() -> None:
    assert words(make_point(origin="baseline"), BASELINE) == "the baseline itself"


@pytest.mark.parametrize(("ci", "tie"), [((0.9, 1.0), True), ((1.0, 1.1), True), ((0.9, 0.999), False)])
def test_an_interval_that_holds_one_is_a_tie(ci: tuple[float, float], tie: bool) -> None:
    assert is_latency_tie(make_point(latency_ratio_ci=ci)) is tie


def test_units_carry_three_honest_digits() -> None:
    assert [format_bytes(n) for n in (999, 1000, 61_044, 999_900, 1_094_138, 2.5e9)] == [
        "999 B",
        "1.00 kB",
        "61.0 kB",
        "1.00 MB",
        "1.09 MB",
        "2.50 GB",
    ]
    assert [format_ms(t) for t in (0.1, 0.0878, 12.34, 118.2)] == ["0.100 ms", "0.0878 ms", "12.3 ms", "118 ms"]
    assert [format_duration(s) for s in (3.14, 90, 600, 9000)] == ["3.1 s", "90 s", "10.0 min", "2.5 h"]
    assert format_drop(-0.004) == "-0.40 points"
    assert format_drop(0.0) == "0 points"


def test_a_plan_is_told_in_lines_that_name_only_what_was_done() -> None:
    plan = CompressionPlan(
        prune_ratio={"a": 0.25, "b": 0.5, "c": 0.0},
        weight_bits={"x": 4, "y": 8, "z": 4, "w": 32},
        activations="uint8",
        distill=DistillPlan(temperature=2, weight=0.5),
    )
    assert plan_lines(plan) == [
        "pruned: 25% to 50% of the channels in 2 groups (l2)",
        "weights: 4 bits in 2 layers, 8 bits in 1 layer",
        "activations: uint8",
        "distilled: temperature 2, weight 0.5",
        "learning rate: 0.002",
    ]
    assert plan_lines(CompressionPlan(removed_blocks=("layers.5", "layers.1"))) == [
        "removed: 2 blocks (layers.1, layers.5)",
        "distilled: temperature 4, weight 0.9",
        "learning rate: 0.002",
    ]
    assert plan_lines(CompressionPlan()) == ["dense: nothing pruned, float weights"]


def test_a_cascade_is_told_with_both_of_its_networks() -> None:
    large = CompressionPlan(activations="uint8", weight_bits={"x": 8})
    cascade = Cascade(
        first=23, second=4, threshold=0.87654, passed_on=0.181, second_plan=large, samples=500, passed_on_ms=0.512
    )
    point = make_point(cascade=cascade, plan=CompressionPlan(removed_blocks=("b",), weight_bits={"x": 4}))
    assert made_of(point) == [
        "two networks: trial 23 answers, trial 4 where its largest probability is below 0.8765 "
        "(18.1% of the validation samples)",
        "latency: the mean over validation samples; one that is passed on takes about 0.512 ms, the time of both",
        "trial 23: removed: 1 block (b)",
        "trial 23: weights: 4 bits in 1 layer",
        "trial 23: distilled: temperature 4, weight 0.9",
        "trial 23: learning rate: 0.002",
        "trial 4: weights: 8 bits in 1 layer",
        "trial 4: activations: uint8",
    ]
    older = Cascade(first=1, second=2, threshold=0.5, passed_on=0.1, second_plan=large)
    assert made_of(make_point(cascade=older))[1].endswith("one that is passed on takes longer")
    document = plan_document(point)
    assert [(part["trial"], part["plan"]["weight_bits"]) for part in document["cascade"]] == [
        (23, {"x": 4}),
        (4, {"x": 8}),
    ]
    assert document["threshold"] == 0.87654
    assert plan_document(make_point()) == make_point().plan.to_dict()


def test_a_cascade_is_faster_on_average() -> None:
    cascade = Cascade(first=1, second=2, threshold=0.5, passed_on=0.1, second_plan=CompressionPlan())
    point = make_point(size_bytes=SIZE // 7, test=0.978, cascade=cascade, **FASTER)
    assert words(point, BASELINE) == "7.0x smaller and 2.3x faster on average at the same accuracy"
    assert (latency_kind(point), latency_kind(make_point())) == ("mean", "median")
