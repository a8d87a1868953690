"""Parameters to plans and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.config import SpaceConfig
from autocompress.plan import CompressionPlan
from autocompress.records import GroupFacts, LayerFacts, ModelFacts
from autocompress.space.search_space import SearchSpace, snap, width_after

GROUPS = (
    GroupFacts(name="conv1", channels=64, granule=8, layers=("conv1", "conv3")),
    GroupFacts(name="conv2", channels=24, granule=4, layers=("conv2",)),
    GroupFacts(name="conv4", channels=9, granule=3, layers=("conv4",)),
)
LAYERS = tuple(
    LayerFacts(name=name, kind="conv", weights=100, out_channels=8) for name in ("conv1", "conv2", "conv3", "fc")
)
SPACE = SearchSpace(config=SpaceConfig(), facts=ModelFacts(layers=LAYERS, groups=GROUPS))


def test_a_group_keeps_the_nearest_multiple_of_its_granule_and_never_nothing():
    group = GROUPS[0]
    assert [width_after(group, r) for r in (0.0, 0.05, 0.1, 0.4, 0.5, 0.75, 0.99)] == [64, 64, 56, 40, 32, 16, 8]
    assert snap(group, 0.4) == pytest.approx(1 - 40 / 64)


@given(st.sampled_from(GROUPS), st.floats(0, 0.999))
def test_snapping_twice_changes_nothing(group, ratio):
    once = snap(group, ratio)
    assert snap(group, once) == once
    assert width_after(group, once) == width_after(group, ratio)
    assert width_after(group, ratio) % group.granule == 0


def test_parameters_keep_their_lasting_names():
    assert set(SPACE.raw()) == {
        "prune_ratio/conv1", "prune_ratio/conv2", "prune_ratio/conv4",
        "weight_bits/conv1", "weight_bits/conv2", "weight_bits/conv3", "weight_bits/fc",
        "activations", "distill/temperature", "learning_rate",
    }  # fmt: skip
    assert {n for n in SPACE.knobs() if n.startswith("knob/")} == {
        "knob/prune_level", "knob/prune_slope", "knob/prune_coupled", "knob/bits", "knob/bits_ends",
    }  # fmt: skip


def test_what_has_a_single_choice_is_not_a_parameter():
    fixed = SpaceConfig(
        weight_bits=(8,), activations=("uint8",), temperature=(4.0,), learning_rate=(1e-3,), max_prune_ratio=0.0
    )
    space = SearchSpace(config=fixed, facts=SPACE.facts)
    assert space.raw() == {}
    assert space.decode({}).weight_bits == dict.fromkeys(("conv1", "conv2", "conv3", "fc"), 8)
    assert space.decode({}).activations == "uint8"


def test_ratios_go_in_steps_of_the_granule_up_to_the_largest_allowed():
    raw = SPACE.raw()
    assert (raw["prune_ratio/conv1"].step, raw["prune_ratio/conv1"].high) == (0.125, 0.75)
    assert raw["prune_ratio/conv2"].high == pytest.approx(4 / 6)
    assert raw["prune_ratio/conv4"].high == pytest.approx(2 / 3)


def _params():
    raw = SPACE.raw()
    return st.fixed_dictionaries(
        {
            name: st.sampled_from(p.choices)
            if p.choices
            else st.integers(0, round(p.high / p.step)).map(lambda n, p=p: min(p.high, n * p.step))
            for name, p in raw.items()
        }
    )


@given(_params())
def test_a_decoded_plan_encodes_to_its_parameters(params):
    encoded = SPACE.encode(SPACE.decode(params))
    assert encoded is not None
    assert encoded == {n: pytest.approx(v) for n, v in params.items()}
    assert SPACE.decode(encoded) == SPACE.decode(params)


def test_a_plan_outside_of_the_space_has_no_parameters():
    inside = SPACE.decode({})
    assert SPACE.encode(inside) is not None
    two_bits = CompressionPlan(weight_bits={**inside.weight_bits, "fc": 2}, learning_rate=inside.learning_rate)
    too_narrow = SPACE.decode({"prune_ratio/conv1": 0.875})
    assert SPACE.encode(two_bits) is None
    assert SPACE.encode(too_narrow) is None


def test_a_level_knob_prunes_every_group_alike_up_to_its_widths():
    plan = SPACE.from_knobs({"knob/prune_level": 0.5, "knob/bits": 4, "knob/bits_ends": 1})
    assert {g.name: width_after(g, plan.prune_ratio[g.name]) for g in GROUPS} == {"conv1": 32, "conv2": 12, "conv4": 6}
    assert plan.weight_bits == {"conv1": 8, "conv2": 4, "conv3": 4, "fc": 8}


def test_slope_moves_pruning_to_late_groups_and_coupled_spares_shared_ones():
    tilted = SPACE.from_knobs({"knob/prune_level": 0.4, "knob/prune_slope": 0.6})
    assert tilted.prune_ratio["conv1"] < tilted.prune_ratio["conv4"]
    spared = SPACE.from_knobs({"knob/prune_level": 0.5, "knob/prune_coupled": -0.6})
    assert width_after(GROUPS[0], spared.prune_ratio["conv1"]) == 48  # 0.5 * 0.4 of 64, in eights
    assert width_after(GROUPS[1], spared.prune_ratio["conv2"]) == 12


@given(
    st.sampled_from((0.75, 0.7, 0.3)),
    st.floats(0, 1),
    st.floats(-0.6, 0.6),
    st.floats(-0.6, 0.3),
    st.sampled_from((3, 4, 8, 32)),
)
def test_every_setting_of_the_knobs_is_a_plan_of_the_space(highest, level, slope, coupled, bits):
    space = SearchSpace(config=SpaceConfig(max_prune_ratio=highest), facts=SPACE.facts)
    dials = {"knob/prune_level": level * highest, "knob/prune_slope": slope, "knob/prune_coupled": coupled}
    assert space.encode(space.from_knobs({**dials, "knob/bits": bits})) is not None


def test_the_references_are_half_floats_and_post_training_int8():
    (half_name, half), (int8_name, int8) = SPACE.references()
    assert (half_name, int8_name) == ("fp16", "int8")
    assert set(half.weight_bits.values()) == {16}
    assert set(int8.weight_bits.values()) == {8}
    assert (half.activations, int8.activations) == ("float", "uint8")
    assert not half.trains
    assert not int8.trains


def test_the_sweep_has_no_plan_twice():
    plans = [p for _, p in SPACE.sweep("uint8")]
    assert len(plans) == 6
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])
    assert {p.activations for p in plans} == {"uint8"}
