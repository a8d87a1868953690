"""What a drop is uncertain by: from the number of samples for shares, from the interval for everything else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from front_factories import BASELINE

from autocompress.study.baseline import drop_noise


def test_the_noise_of_a_drop_follows_the_metric():
    accuracy = replace(BASELINE, metric="accuracy", val=0.9)
    assert drop_noise(accuracy, 5000, "maximize") == pytest.approx(0.5 * math.sqrt(2 * 0.9 * 0.1 / 5000))
    # An error of 40 give or take 1.96 standard errors of 2: the drop is relative, so its noise is.
    mse = replace(BASELINE, metric="mse", val=40.0, val_ci=(40 - 1.96 * 2, 40 + 1.96 * 2))
    assert drop_noise(mse, 100, "minimize") == pytest.approx(0.5 * math.sqrt(2) * 2 / 40)
    own = replace(BASELINE, metric="mine:score", val=12.0, val_ci=None)
    assert drop_noise(own, 100, "maximize") == 1e-4  # no share, and no interval: nothing is known
