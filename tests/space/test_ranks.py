"""How many directions factors keep: below where they pay, in whole steps, and none where they never would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.plan import CompressionPlan
from autocompress.records import FactorFacts, GroupFacts, LayerFacts, ModelFacts
from autocompress.space.ranks import inputs_left, kept_rank, layers_to_factor, rank_of, refuse_unknown

FC = LayerFacts(name="fc", kind="linear", weights=64 * 64, out_channels=64, in_channels=64, factors=FactorFacts())


def test_a_square_layer_is_even_at_half_of_its_width():
    """64 x 64 = 32 x 128: three quarters of 32, a half, a quarter, and never less than a step."""
    assert [rank_of(FC, 64, 64, ratio) for ratio in (0.0, 0.25, 0.5, 0.75, 0.99)] == [0, 24, 16, 8, 4]
    assert rank_of(FC, 64, 64, 0.05) == 0, "30.4 is 32 in steps of 4, which saves nothing"


def test_a_kernel_counts_with_the_taps_of_each_factor():
    """16 x 16 x 9 = 24 x (16 x 3 + 16 x 3); with a stride of 2 the first factor works at twice the places: 16."""
    conv = LayerFacts(name="c", kind="conv", weights=2304, out_channels=16, in_channels=16, factors=FactorFacts(taps=3))
    assert rank_of(conv, 16, 16, 0.5) == 12
    strided = LayerFacts(
        name="c", kind="conv", weights=2304, out_channels=16, in_channels=16, factors=FactorFacts(taps=3, places=2.0)
    )
    assert rank_of(strided, 16, 16, 0.5) == 8
    assert rank_of(conv, 8, 16, 0.5) == 8, "of the layer as it is after pruning"


def test_wide_ranks_go_in_steps_of_eight():
    wide = LayerFacts(name="w", kind="linear", weights=512 * 512, out_channels=512, in_channels=512)
    wide = LayerFacts.from_dict({**wide.to_dict(), "factors": {"taps": 1, "places": 1.0}})
    assert rank_of(wide, 512, 512, 0.45) == 144  # 140.8
    assert rank_of(wide, 512, 512, 0.88) == 32  # 30.7


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 3, 5]), st.floats(1, 3), st.floats(0.01, 0.99))
def test_what_is_kept_holds_and_multiplies_less(outputs, inputs, k, places, ratio):
    rank = float(kept_rank(outputs, inputs, taps=k * k, first_taps=k, places=places, ratio=ratio))
    first, second, whole = rank * inputs * k, rank * outputs * k, outputs * inputs * k * k
    assert rank % 4 == 0
    assert first + second < whole
    assert first * places + second < whole
    assert rank <= min(inputs, outputs) * k


def test_many_at_once_are_those_one_by_one():
    outputs, inputs = np.array([64.0, 10.0, 3.0]), np.array([64.0, 64.0, 3.0])
    ranks = kept_rank(outputs, inputs, taps=1.0, first_taps=1.0, places=1.0, ratio=np.array([0.5, 0.3, 0.5]))
    assert ranks.tolist() == [16, 8, 0]  # 640 / 74 = 8.6: 6.05 are 8 in steps of 4
    assert kept_rank(64.0, 64.0, taps=9.0, first_taps=1.0, places=np.inf, ratio=0.5) == 0, "cannot be factored"


def test_inputs_go_with_the_groups_that_feed_them():
    layer = LayerFacts(
        name="fc", kind="linear", weights=490, out_channels=10, in_channels=49, sources={"a": 4.0, "gone": 9.0}
    )
    groups = tuple(GroupFacts(name=n, channels=10, granule=1, layers=(n,)) for n in ("a", "gone"))
    facts = ModelFacts(layers=(layer,), groups=groups)
    assert inputs_left(layer, facts, {"a": 7, "gone": 0}) == 49 - 3 * 4
    assert inputs_left(layer, facts, {}) == 49


def test_a_plan_may_only_factor_what_can_be():
    facts = ModelFacts(layers=(FC,), groups=())
    refuse_unknown(CompressionPlan(rank_ratio={"fc": 0.5, "conv1": 0.0}), facts)
    with pytest.raises(ValueError, match="the plan factors 'conv1', which cannot be; known are fc"):
        refuse_unknown(CompressionPlan(rank_ratio={"conv1": 0.5}), facts)


def test_wide_linear_layers_are_factored_without_being_asked_for_where_they_hold_most_of_the_weights():
    def linear(name: str, out: int, into: int, positions: int = 1) -> LayerFacts:
        return LayerFacts(
            name=name, kind="linear", weights=out * into, out_channels=out, in_channels=into, positions=positions
        )

    wide, head = linear("wide", 512, 784), linear("head", 10, 512)
    conv = LayerFacts(name="conv", kind="conv", weights=9 * 256 * 256, out_channels=256, in_channels=256)
    assert layers_to_factor((), [wide, head]) == [wide]
    assert layers_to_factor((), [wide, head, conv]) == [], "590 thousand weights of a convolution, 401 thousand here"
    assert layers_to_factor((), [linear("token", 512, 784, positions=16), head]) == []
    assert layers_to_factor((), [linear("narrow", 255, 784), head]) == []
    assert layers_to_factor((0.0,), [wide, head]) == []
    assert layers_to_factor((0.0, 0.5), [wide, head, conv]) == [wide, head, conv]
