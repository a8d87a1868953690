"""Bytes by arithmetic, and a latency table that learns from what was timed."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.cost import (
    LANES,
    PER_WEIGHT,
    LatencyModel,
    SizeModel,
    in_vectors,
    layer_work,
    stored_bytes,
    zipped_share,
)


def test_stored_bytes_at_every_width():
    count = np.array([100.0])
    stored = {bits: float(stored_bytes(count, np.array([bits]))[0]) for bits in (2, 3, 4, 8, 16, 32)}
    assert stored == {2: 8 * 4, 3: 8 * 5, 4: 50, 8: 100, 16: 200, 32: 400}  # 32 and 21 integers to a word


def test_a_weight_takes_its_share_of_the_words_that_many_fill():
    bits = np.array([1, 2, 3, 4, 5, 6, 8, 16, 32])
    count = 64 * 32 * 21 * 12 * 10  # fills whole words at every width
    assert stored_bytes(np.full(len(bits), float(count)), bits) / count == pytest.approx(PER_WEIGHT[bits], rel=1e-12)


@pytest.mark.parametrize(("lanes", "counted"), [(8, [8, 8, 16, 16, 24]), (16, [16, 16, 16, 16, 32])])
def test_channels_count_in_whole_vectors(lanes, counted):
    assert in_vectors(np.array([1.0, 8.0, 12.0, 16.0, 20.0]), lanes).tolist() == counted


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


def test_factors_are_weighed_as_two_layers(factored, factored_options):
    """Outer, 32 to 16 channels, is even at 4608 / (96 + 48) = 32: half of that are two factors of rank 16."""
    whole, half, most = (
        factored_options.encode([factored.decode({"weight_bits/outer": 4, "rank_ratio/outer": ratio})])
        for ratio in (0.0, 0.5, 0.75)
    )
    model = SizeModel(factored_options)
    weights = [float(model.predict(one)[0]) for one in (whole, half, most)]
    nodes = 120  # about what a second node takes in the graph
    assert weights[0] - weights[1] == (4608 - 16 * (32 * 3 + 16 * 3)) / 2 - 4 * 16 - nodes
    assert weights[1] - weights[2] == 8 * (32 * 3 + 16 * 3) / 2 + 4 * 8
    assert factored_options.params(half, 0)["rank_ratio/outer"] == 0.5
    assert "rank_ratio/stem" not in factored_options.params(half, 0)


def test_factors_multiply_what_both_of_them_do(factored, factored_options):
    """With a stride of 2 the first factor of inner works at twice the places."""
    plans = [factored.decode({"rank_ratio/inner": ratio, "rank_ratio/outer": ratio}) for ratio in (0.0, 0.5)]
    multiplied, moved = layer_work(factored_options, factored_options.encode(plans), lanes=8)
    ranks = 16 * 32 * 9 / (16 * 3 * 2 + 32 * 3) / 2, 16  # 12 and 16
    assert multiplied[0].tolist() == [64 * 9 * 4 * 16, 64 * 9 * 16 * 32, 64 * 9 * 32 * 16]
    assert multiplied[1].tolist() == [
        multiplied[0, 0], 64 * 3 * (2 * 16 * 16 + 12 * 32), 64 * 3 * (32 * 16 + 16 * 16),
    ]  # fmt: skip
    assert ranks == (12, 16)
    assert moved[1].tolist() == [64 * 16, 64 * (32 + 2 * 16), 64 * (16 + 16)]  # 12 in vectors of 8 are 16


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


@pytest.mark.parametrize("lanes", LANES)
def test_timed_files_say_how_many_channels_cost_as_much_as_one(chain, chain_options, lanes):
    """A device that takes so many at once; half of the channels of layer b save half of its time, or none of it."""
    model = LatencyModel(chain_options)
    assert model.lanes == min(LANES), "what is believed before any was timed"
    generator = np.random.default_rng(0)

    def timed(candidates):
        work, _ = layer_work(chain_options, candidates, lanes=lanes)
        dense, _ = layer_work(chain_options, chain_options.encode([chain.decode({})]), lanes=lanes)
        return 0.1 + 0.9 * work.sum(1) / dense.sum()

    for _ in range(12):
        draw = {f"prune_ratio/{n}": generator.choice([0.0, 0.25, 0.5, 0.75]) for n in "abc"}
        one = chain_options.encode([chain.decode(draw)])
        model.observe(one, timed(one))
    assert model.lanes == lanes
    asked = chain_options.encode([chain.decode({"prune_ratio/b": 0.5}), chain.decode({})])
    assert model.predict(asked) == pytest.approx(timed(asked), abs=0.03)


def test_one_timing_far_off_does_not_change_the_vectors(chain, chain_options):
    """A file that was timed while the machine was busy misses by as much as any prediction can."""
    model = LatencyModel(chain_options)
    one = chain_options.encode([chain.decode({"prune_ratio/b": 0.5})])
    right = float(model.predict(one)[0])
    for ratio in (right, 5 * right, right, right):
        model.observe(one, np.array([ratio]))
    assert model.lanes == min(LANES)
