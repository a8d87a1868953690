"""What a file weighs as a download, and that a study may be about it."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from front_factories import make_study, make_trials

from autocompress.config import load_config
from autocompress.errors import UsageError
from autocompress.front.summary import front_points
from autocompress.measure.size import compressed_bytes
from autocompress.records import Baseline, FrontPoint, cheap_ratios, weighed_bytes


def test_zeros_weigh_next_to_nothing_and_noise_weighs_what_it_is():
    noise = bytes((i * i * 7 + i // 3) % 251 for i in range(2000))
    assert compressed_bytes(bytes(10_000)) == len(zlib.compress(bytes(10_000), 9)) < 50
    assert compressed_bytes(noise) > 0.3 * len(noise)


def test_size_and_compressed_are_never_both_objectives():
    assert load_config({"search": {"objectives": ["accuracy", "compressed"]}}, name="x").search.objectives[1] == (
        "compressed"
    )
    with pytest.raises(UsageError, match="size or compressed, not both"):
        load_config({"search": {"objectives": ["accuracy", "size", "compressed"]}}, name="x")


BASELINE = Baseline(
    metric="accuracy", val=0.9, test=None, size_bytes=1000, compressed_bytes=800, latency_ms=1.0, params=1, macs=1,
    artifact="b.onnx",
)  # fmt: skip


def test_objectives_have_one_order_whatever_the_file_says():
    config = load_config({"search": {"objectives": ["latency", "size", "accuracy"]}}, name="x")
    assert config.search.objectives == ("accuracy", "size", "latency")


def test_the_ratio_is_of_the_bytes_that_count():
    point = front_points_of(("accuracy", "compressed"))[0]
    assert weighed_bytes(point, ("accuracy", "compressed")) == point.compressed_bytes
    assert cheap_ratios(point, BASELINE, ("accuracy", "compressed")) == (point.compressed_bytes / 800, 0.0)
    assert cheap_ratios(point, BASELINE, ("accuracy", "size")) == (point.size_bytes / 1000, 0.0)
    assert cheap_ratios(point, BASELINE, ("accuracy", "latency")) == (0.0, point.latency_ratio)
    assert cheap_ratios(point, BASELINE, ("accuracy", "size", "latency"))[1] == point.latency_ratio


def front_points_of(objectives: tuple[str, ...]) -> list[FrontPoint]:
    return front_points(replace(make_study(), objectives=objectives), make_trials())


def test_a_front_over_compressed_bytes_is_not_the_one_over_file_bytes():
    trials = make_trials()
    zipped = [
        replace(t, measurement=replace(t.measurement, compressed_bytes=2_000_000 - t.measurement.size_bytes))
        if t.measurement
        else t
        for t in trials
    ]
    by_size = front_points(replace(make_study(), objectives=("accuracy", "size")), zipped)
    by_zip = front_points(replace(make_study(), objectives=("accuracy", "compressed")), zipped)
    assert min(p.size_bytes for p in by_size) < min(p.size_bytes for p in by_zip)
    assert len(by_zip) == 1  # the most accurate one is the largest here, and so the smallest when zipped
