"""Bytes by arithmetic, and a latency table that learns from what was timed."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.cost import LatencyModel, SizeModel, in_vectors, stored_bytes, zipped_share


def test_stored_bytes_at_every_width():
    count = np.array([100.0])
    stored = {bits: float(stored_bytes(count, np.array([bits]))[0]) for bits in (2, 3, 4, 8, 16, 32)}
    assert stored == {2: 8 * 4, 3: 8 * 5, 4: 50, 8: 100, 16: 200, 32: 400}  # 32 and 21 integers to a word


def test_channels_count_in_whole_vectors():
    assert in_vectors(np.array([1.0, 8.0, 12.0, 16.0])).tolist() == [8, 8, 16, 16]


def test_zipped_bytes_are_a_learned_share_of_the_weights_bytes(chain, chain_options):
    """A file whose weights shrink to 0.7 beside 2,000 bytes that do not depend on them."""
    model, exact = SizeModel(chain_options, zipped=True), SizeModel(chain_options)
    plans = chain_options.encode([chain.decode({f"weight_bits/{n}": b for n in "abc"}) for b in (8, 4, 2, 8, 4, 2)])
    weights = exact.predict(plans) - 6000.0  # what a graph is first believed to take
    for row in range(5):
        one = plans.take(np.array([row]))
        model.observe(one, 0.7 * weights[row : row + 1] + 2000.0)
    last = plans.take(np.array([5]))
    assert model.predict(last)[0] == pytest.approx(0.7 * weights[5] + 2000.0, rel=0.1)


def test_zipped_zeros_by_entropy():
    """Half of 4-bit weights zero: 1 bit to say which, half of 3.7 bits, over 3.7; no zeros: all of it."""
    share = zipped_share(np.array([0.0, 0.5]), np.array([4]))
    assert share.tolist() == pytest.approx([1.0, (1 + 0.5 * 3.7) / 3.7])


def test_size_is_exact_after_one_file_of_its_kind(chain, chain_options):
    """Layer a alone: 27 x 32 weights, 32 scales and 32 biases."""
    model = SizeModel(chain_options)
    dense = chain_options.encode([chain.decode({})])
    weights = 864 + 4608 + 2304 + 160
    model.observe(dense, np.array([weights + 8 * (32 + 16 + 16 + 10) + 1234.0]))
    assert model.predict(dense).tolist() == [weights + 8 * 74 + 1234]
    half = chain_options.encode([chain.decode({"weight_bits/a": 4})])
    assert model.predict(dense)[0] - model.predict(half)[0] == 432


def test_a_noisy_timing_moves_the_latency_table_less(chain, chain_options):
    dense = chain_options.encode([chain.decode({})])
    calm, noisy = (LatencyModel(chain_options, noise=noise) for noise in (0.0, 0.5))
    believed = calm.predict(dense)[0]
    for model in (calm, noisy):
        model.observe(dense, np.array([2.0]))
    assert believed < noisy.predict(dense)[0] < calm.predict(dense)[0] < 2.0


def test_latency_learns_which_layer_takes_the_time(chain, chain_options):
    """Nine tenths of the time are in layer b; the first guess goes by multiply-accumulates."""
    model = LatencyModel(chain_options)
    generator = np.random.default_rng(0)

    def timed(candidates):
        outputs, inputs = chain_options.shapes(candidates.width)
        return 0.1 + 0.9 * outputs[:, 1] * inputs[:, 1] / (16 * 32)

    for _ in range(25):
        draw = {f"prune_ratio/{n}": generator.choice([0.0, 0.25, 0.5, 0.75]) for n in "abc"}
        one = chain_options.encode([chain.decode(draw)])
        model.observe(one, timed(one))
    plans = [{"prune_ratio/a": 0.5}, {"prune_ratio/b": 0.5}, {"prune_ratio/c": 0.5}, {}]
    asked = chain_options.encode([chain.decode(p) for p in plans])
    assert model.predict(asked) == pytest.approx(timed(asked), abs=0.06)
    multiply, move = model.layer_shares(0)
    assert multiply.shape == move.shape == (4,)
    assert (multiply >= 0).all()
    assert (move >= 0).all()
