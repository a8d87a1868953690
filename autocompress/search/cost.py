"""Predicts bytes and time of a plan's artifact: arithmetic for the bytes, a learned table for the time.

Both are only used to propose; what is reported was weighed and timed. Every file that was timed
corrects the table, so it is about right where the search is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from autocompress.plan import ACTIVATIONS
from autocompress.search.options import Candidates, Floats, Ints, Options
from autocompress.search.surrogate import LinearBelief

LANES = (8, 16)  # channels that cost as much as one, as vector units take them at once: the device's files say which
DEPTHWISE = 4.0  # a depthwise multiply-accumulate costs about this many dense ones
_SHARES = np.array([0.3, 0.5, 0.2])  # of the dense network's time at first believed: fixed, multiplying, moving
_SHARES_SD = np.array([0.3, 0.4, 0.2])
_INT8_SPEED = 0.7  # time in integers over time in float, before any was timed
_OWN_WAY = 0.5  # sd of a layer's share, relative to what the work says
_MISFIT = 0.015  # of a ratio, relative: what a sum over layers cannot tell
_FAR_OFF = 0.3  # of a logarithm of a ratio: a prediction that misses by more tells no more
_DOUBTED = 0.1  # by which other vectors than the first must have missed less
_LEAST_RATIO = 0.02  # that is predicted
_GRAPH_BYTES, _LAST = 6000.0, 50  # of a file before any was weighed; files that the mean is taken over
NODE_BYTES = 120.0  # of the graph for a second factor
_ZIPPED, _ZIPPED_SD, _ZIPPED_NOISE = 0.9, 0.05, 0.03  # of the weights' bytes that are left; of the file
_WORD = {1: 64, 2: 32, 3: 21, 5: 12, 6: 10}  # integers in each 8 bytes
# Of every bit width up to 32: bytes of one unit of storage, and the integers in it as a fraction.
_UNIT = np.array([8.0 if bits in _WORD else 1.0 for bits in range(33)])
_UNIT_HOLDS = np.array([(_WORD[bits], 1.0) if bits in _WORD else (8.0, bits) for bits in range(33)]).T
PER_WEIGHT = _UNIT * _UNIT_HOLDS[1] / _UNIT_HOLDS[0]  # bytes that one of many weights takes, of every bit width


class SizeModel:
    """Bytes of an artifact: its weights in their bits, 4 bytes of bias and scale per output, and what the graph takes.

    Args:
        options: of the space.
        zipped: bytes of the zipped file are predicted: a share of the weights' that is learned, too.
    """

    def __init__(self, options: Options, *, zipped: bool = False) -> None:
        self._options = options
        graph = [_GRAPH_BYTES] * len(ACTIVATIONS)
        belief = LinearBelief(np.array([_ZIPPED, *graph]), np.array([_ZIPPED_SD, *graph]))
        self._zipped = belief if zipped else None
        self._extra: dict[int, list[float]] = {}

    def predict(self, candidates: Candidates) -> Floats:
        """Bytes, [n]."""
        if self._zipped:
            return self._zipped.mean_of(self._features(candidates))
        known = np.array([np.mean(self._extra.get(k, self._any())) for k in range(len(ACTIVATIONS))])
        total: Floats = self._weights(candidates) + known[candidates.activations]
        return total

    def observe(self, candidates: Candidates, size_bytes: Floats) -> None:
        """Learn what the graph takes from files of known size, [n]."""
        if self._zipped:
            for row, size in zip(self._features(candidates), size_bytes.tolist(), strict=True):
                self._zipped.observe(row, size, _ZIPPED_NOISE * size)
            return
        rest = size_bytes - self._weights(candidates)
        for kind, extra in zip(candidates.activations.tolist(), rest.tolist(), strict=True):
            self._extra.setdefault(kind, []).append(extra)
            del self._extra[kind][:-_LAST]

    def _features(self, candidates: Candidates) -> Floats:
        """Bytes of the weights, and 1 in the column of the activations, [n, 1 + kinds]."""
        columns = candidates.activations[:, None] == np.arange(len(ACTIVATIONS))
        return np.concatenate([self._weights(candidates)[:, None], columns], axis=1)

    def _weights(self, candidates: Candidates) -> Floats:
        bits, at = self._options.bits[candidates.bits], self._options.layout(candidates)
        weights, rest = layer_bytes(self._options, at.outputs, at.inputs, bits, at.kept)
        if self._zipped:
            weights = weights * zipped_share(candidates.zeroed[:, None], bits)
        total: Floats = (at.layers_left * (weights + rest)).sum(1)
        return total

    def _any(self) -> list[float]:
        return next(iter(self._extra.values()), [_GRAPH_BYTES])


def layer_bytes(
    options: Options, outputs: Floats, inputs: Floats, bits: np.ndarray, rank: Floats | None = None
) -> tuple[Floats, Floats]:
    """(bytes of the weights, of bias and scales and of the node that a factor adds), shaped as `outputs`.

    Args:
        rank: directions kept by layers that are two factors, 0 for whole ones.
    """
    taps, first = options.taps, options.first_taps
    whole, rest = outputs * inputs * taps, 4 * outputs * (1 + (bits <= 8))
    if rank is None:
        return stored_bytes(whole, bits), rest
    weights, *factors = stored_bytes(np.stack([whole, rank * inputs * first, rank * outputs * (taps / first)]), bits)
    apart = factors[0] + factors[1]
    return np.where(rank > 0, apart, weights), rest + 4 * rank * (bits <= 8) + NODE_BYTES * (rank > 0)


def weights_of(options: Options, outputs: Floats, inputs: Floats, rank: Floats | None, layers: Ints | slice) -> Floats:
    """Weights that some layers hold, shaped [n, len(layers), options] as `outputs`, `inputs` and `rank` broadcast."""
    taps = options.taps[layers][:, None]
    whole: Floats = outputs * inputs * taps
    if rank is None:
        return whole
    first = options.first_taps[layers][:, None]
    return np.where(rank > 0, rank * (inputs * first + outputs * (taps / first)), whole)


def stored_bytes(count: Floats, bits: np.ndarray) -> Floats:
    """Bytes that `count` weights take in the file: words of 8 bytes at 1, 2, 3, 5 and 6 bits, else single bytes."""
    above, below = _UNIT_HOLDS[:, bits]
    stored: Floats = _UNIT[bits] * np.ceil(count * below / above)
    return stored


def zipped_share(zeroed: Floats, bits: np.ndarray) -> Floats:
    """Bytes of weights with so many zeros over those without, zipped: about what their entropy says.

    Half of 4-bit weights zero: one bit to say which, and half of the 4 bits less a little, is 0.76 of before.
    """
    s = np.clip(zeroed, 1e-9, 1 - 1e-9)
    which = -(s * np.log2(s) + (1 - s) * np.log2(1 - s))
    value = np.maximum(bits - 0.3, 0.8)
    share: Floats = np.where(zeroed > 0, np.minimum(1.0, (which + (1 - s) * value) / value), 1.0)
    return share


class LatencyModel:
    """Latency ratio to the baseline as a sum over layers, for vectors of the width that has predicted best so far.

    How many channels cost as much as one depends on the processor and on its runtime's kernels: with the same widths of
    vectors, eight channels take half of the time of sixteen on one and nearly all of it on another.

    Args:
        options: of the space.
        noise: standard deviation of a measured ratio, relative.
    """

    def __init__(self, options: Options, *, noise: float = 0.0) -> None:
        self._sums = [_LatencySum(options, lanes, noise=noise) for lanes in LANES]
        self._missed = np.where(np.arange(len(LANES)) > 0, _DOUBTED, 0.0)
        self.spread = float(np.hypot(_MISFIT, noise))  # sd of a measured ratio, relative to one foreseen

    @property
    def lanes(self) -> int:
        """Channels that cost as much as one."""
        return self._best.lanes

    def predict(self, candidates: Candidates) -> Floats:
        """Ratio to the baseline's latency, [n]."""
        return self._best.predict(candidates)

    def sd(self, candidates: Candidates) -> Floats:
        """Standard deviation of `predict`, without that of a timing, [n]."""
        return self._best.sd(candidates)

    def observe(self, candidates: Candidates, ratios: Floats) -> None:
        """Learn from timed files."""
        for row in range(len(ratios)):
            one, ratio = candidates.take(slice(row, row + 1)), float(ratios[row])
            for i, each in enumerate(self._sums):
                believed = each.observe(one, ratio)
                self._missed[i] += min(_FAR_OFF, abs(math.log(believed / max(ratio, _LEAST_RATIO))))

    def layer_shares(self, kind: int) -> tuple[Floats, Floats]:
        """What multiplying and moving cost per unit of `work`, each [layers], never negative."""
        return self._best.layer_shares(kind)

    @property
    def _best(self) -> _LatencySum:
        return self._sums[int(self._missed.argmin())]


class _LatencySum:
    """What multiplying and moving data takes, per layer and activations, if channels count in vectors of `lanes`.

    A Bayesian linear model: the prior splits the dense network's time by multiply-accumulates, every timed file
    corrects it.
    """

    def __init__(self, options: Options, lanes: int, *, noise: float) -> None:
        self.lanes = lanes
        self._options = options
        self._spread = float(np.hypot(_MISFIT, noise))
        dense = work_of(options, options.out_dense[None], options.in_dense[None], lanes=lanes)
        self._dense = np.concatenate([part[0] for part in dense])
        self._layers = len(options.taps)
        self._shares = np.concatenate([part[0] / max(part[0].sum(), 1e-9) for part in dense])
        scale = np.repeat(_SHARES[1:], self._layers)
        mean = np.concatenate([_SHARES, np.zeros(2 * self._layers)])
        sd = np.concatenate([_SHARES_SD, _OWN_WAY * scale * self._shares])
        self._beliefs = [
            LinearBelief(mean * speed, sd * speed) for speed in (1.0, *[_INT8_SPEED] * (len(ACTIVATIONS) - 1))
        ]

    def predict(self, candidates: Candidates) -> Floats:
        return np.maximum(self._by_kind(candidates, LinearBelief.mean_of), _LEAST_RATIO)

    def sd(self, candidates: Candidates) -> Floats:
        return self._by_kind(candidates, LinearBelief.sd_of)

    def _by_kind(self, candidates: Candidates, asked: Callable[[LinearBelief, Floats], Floats]) -> Floats:
        features = self._features(candidates)
        found = np.zeros(len(candidates))
        for kind, belief in enumerate(self._beliefs):
            rows = candidates.activations == kind
            found[rows] = asked(belief, features[rows])
        return found

    def observe(self, one: Candidates, ratio: float) -> float:
        """What was believed of a file before its ratio was learned."""
        belief, features = self._beliefs[int(one.activations[0])], self._features(one)
        before = max(float(belief.mean_of(features)[0]), _LEAST_RATIO)
        belief.observe(features[0], ratio, self._spread * ratio)
        return before

    def layer_shares(self, kind: int) -> tuple[Floats, Floats]:
        theta = self._beliefs[kind].mean
        scale = np.repeat(theta[1:3], self._layers)
        weights = np.maximum(scale * self._shares + theta[3:], 0.0) / np.maximum(self._dense, 1e-12)
        return weights[: self._layers], weights[self._layers :]

    def _features(self, candidates: Candidates) -> Floats:
        """1, both kinds of work in units of the dense network's, and the same for each layer, [n, 3 + 2 layers]."""
        left = np.tile(self._options.layout(candidates).layers_left, 2)
        work = np.concatenate(layer_work(self._options, candidates, lanes=self.lanes), axis=1)
        parts = left * work / np.maximum(self._dense, 1e-12)
        weighted = parts * self._shares
        sums = [np.ones(len(parts)), weighted[:, : self._layers].sum(1), weighted[:, self._layers :].sum(1)]
        return np.concatenate([np.stack(sums, axis=1), parts], axis=1)


def layer_work(options: Options, candidates: Candidates, *, lanes: int) -> tuple[Floats, Floats]:
    """What `LatencyModel.layer_shares` is a price of, each [n, layers]."""
    at = options.layout(candidates)
    return work_of(options, at.outputs, at.inputs, at.kept, lanes=lanes)


def work_of(
    options: Options,
    outputs: Floats,
    inputs: Floats,
    rank: Floats | None = None,
    layers: Ints | slice | None = None,
    *,
    lanes: int,
) -> tuple[Floats, Floats]:
    """(multiply-accumulates, elements written) with channels rounded up to whole vectors, shaped as `outputs`.

    Args:
        outputs, inputs: [n, all layers], or [n, len(layers), options].
        rank: directions kept by layers that are two factors, 0 for whole ones.
        lanes: channels of a vector.
    """
    places, taps, alone = options.positions, options.taps, options.depthwise
    first, more = options.first_taps, np.where(options.factored, options.places, 0.0)  # infinite for the others
    if layers is not None:
        places, taps, alone, first, more = (v[layers][:, None] for v in (places, taps, alone, first, more))
    width = in_vectors(outputs, lanes)
    multiplied = places * taps * np.where(alone, DEPTHWISE, in_vectors(inputs, 4)) * width
    moved = places * width
    if rank is None:
        return multiplied, moved
    written = more * in_vectors(rank, lanes)  # by the first factor, per place
    products = first * in_vectors(inputs, 4) * written + taps / first * rank * width  # ranks are multiples of 4
    return np.where(rank > 0, places * products, multiplied), moved + places * written


def in_vectors(channels: Floats, lanes: int) -> Floats:
    """Channels rounded up to a multiple of `lanes`."""
    rounded: Floats = lanes * np.ceil(channels / lanes)
    return rounded
