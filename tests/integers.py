"""Weights that every processor multiplies alike."""

from __future__ import annotations

from autocompress.measure.saturation import saturates

EXACT_BITS = 6 if saturates() else 8  # the most whose products the runtime adds exactly here
