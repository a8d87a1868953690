"""Parameters to plans and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from autocompress.config import SpaceConfig
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, FactorFacts, GroupFacts, LayerFacts, ModelFacts
from autocompress.space.search_space import SearchSpace, kept_widths, snap, width_after

GROUPS = (
    GroupFacts(name="conv1", channels=64, granule=8, layers=("conv1", "conv3")),
    GroupFacts(name="conv2", channels=24, granule=4, layers=("conv2",)),
    GroupFacts(name="conv4", channels=9, granule=3, layers=("conv4",)),
)
LAYERS = tuple(
    LayerFacts(name=name, kind="conv", weights=100, out_channels=8) for name in ("conv1", "conv2", "conv3", "fc")
)
SPACE = SearchSpace(
    config=SpaceConfig(max_prune_ratio=0.75, learning_rate=(4e-3, 2e-3)), facts=ModelFacts(layers=LAYERS, groups=GROUPS)
)

BLOCKS = (
    BlockFacts(name="a", layers=("conv2", "conv3"), groups=("conv2",)),
    BlockFacts(name="b", layers=("conv4",), groups=("conv4",)),
)
WITH_BLOCKS = SearchSpace(config=SPACE.config, facts=ModelFacts(layers=LAYERS, groups=GROUPS, blocks=BLOCKS))


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


def test_rounding_takes_feedback_where_no_batch_norm_makes_up_for_it():
    plain = ModelFacts(layers=LAYERS, groups=GROUPS, batch_norms=False)
    asked = SpaceConfig(rounding=("nearest", "feedback"))
    assert SPACE.decode({}).rounding == "nearest"
    assert SearchSpace(config=SpaceConfig(), facts=plain).decode({}).rounding == "feedback"
    assert SearchSpace(config=SpaceConfig(rounding=("nearest",)), facts=plain).decode({}).rounding == "nearest"
    both = SearchSpace(config=asked, facts=plain)
    assert both.raw()["rounding"].choices == ("nearest", "feedback")
    plan = both.decode({"rounding": "feedback"})
    assert both.encode(plan) == {**both.encode(both.decode({})), "rounding": "feedback"}
    assert {plan.rounding for _, plan in SearchSpace(config=SpaceConfig(), facts=plain).references()} == {"feedback"}


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


def test_what_has_a_single_choice_must_be_that_choice():
    floats = SearchSpace(config=SpaceConfig(activations=("float",), weight_bits=(8,)), facts=SPACE.facts)
    assert "activations" not in floats.raw()
    plan = floats.decode({})
    assert floats.encode(plan) is not None
    assert floats.encode(replace(plan, activations="uint8")) is None
    assert floats.encode(replace(plan, weight_bits={**plan.weight_bits, "fc": 4})) is None
    pattern = SearchSpace(config=SpaceConfig(sparsity=(0.6,), sparsity_kind=("2:4",)), facts=SPACE.facts)
    assert pattern.encode(pattern.decode({})) is not None, "two of four are a half, whatever share was asked for"


def test_the_ends_keep_the_most_bits_that_the_study_has():
    few = SearchSpace(config=SpaceConfig(weight_bits=(3, 4)), facts=SPACE.facts)
    plan = few.from_knobs({"knob/bits": 3, "knob/bits_ends": 1})
    assert plan.weight_bits == {"conv1": 4, "conv2": 3, "conv3": 3, "fc": 4}
    assert few.encode(plan) is not None


def test_every_block_is_a_parameter_unless_the_study_says_no():
    assert set(WITH_BLOCKS.raw()) - set(SPACE.raw()) == {"remove_block/a", "remove_block/b"}
    assert WITH_BLOCKS.raw()["remove_block/a"].choices == (False, True)
    assert WITH_BLOCKS.knobs() == SPACE.knobs()
    without = replace(WITH_BLOCKS, config=WITH_BLOCKS.config.model_copy(update={"remove_blocks": False}))
    assert without.raw() == SPACE.raw()
    assert without.encode(WITH_BLOCKS.decode({"remove_block/a": True})) is None
    assert without.encode(WITH_BLOCKS.decode({})) is not None


def test_layers_that_can_be_factored_have_a_ratio_each_and_one_dial_for_all():
    layers = tuple(replace(n, factors=FactorFacts()) if n.name in ("conv2", "fc") else n for n in LAYERS)
    facts = ModelFacts(layers=layers, groups=GROUPS, blocks=BLOCKS)
    space = SearchSpace(config=SpaceConfig(rank_ratio=(0.0, 0.5)), facts=facts)
    assert set(space.raw()) - set(WITH_BLOCKS.raw()) == {"rank_ratio/conv2", "rank_ratio/fc"}
    assert set(space.knobs()) - set(WITH_BLOCKS.knobs()) == {"knob/rank_ratio"}
    plan = space.decode({"rank_ratio/fc": 0.5})
    assert plan.rank_ratio == {"conv2": 0.0, "fc": 0.5}
    assert space.from_knobs({"knob/rank_ratio": 0.5}).rank_ratio == {"conv2": 0.5, "fc": 0.5}
    assert space.decode({"remove_block/a": True, "rank_ratio/conv2": 0.5}).rank_ratio == {"fc": 0.0}
    params = space.encode(plan)
    assert params is not None
    assert space.decode(params) == plan
    unasked = SearchSpace(config=SpaceConfig(), facts=facts)
    assert unasked.rank_ratios == (0.0, 0.7, 0.9), "which layers they are for was decided when the facts were found"
    assert unasked.encode(unasked.decode({"rank_ratio/fc": 0.9})) is not None
    assert unasked.encode(plan) is None
    assert WITH_BLOCKS.rank_ratios == (0.0,)
    assert WITH_BLOCKS.encode(plan) is None, "a ratio that this study does not have"


def test_plans_that_make_the_same_network_are_equal():
    inside = {"prune_ratio/conv2": 1 / 3, "weight_bits/conv2": 3, "weight_bits/conv3": 4}
    plan = WITH_BLOCKS.decode({"remove_block/a": True, "prune_ratio/conv1": 0.5, **inside})
    assert plan == WITH_BLOCKS.decode({"remove_block/a": True, "prune_ratio/conv1": 0.5})
    assert plan.removed_blocks == ("a",)
    assert plan.prune_ratio == {"conv1": 0.5, "conv4": 0.0}  # conv3 went, its group has a layer outside
    assert plan.weight_bits == {"conv1": 32, "fc": 32}
    loose = CompressionPlan(prune_ratio={"conv2": 0.5}, weight_bits={"conv3": 4, "fc": 8}, removed_blocks=("a",))
    assert WITH_BLOCKS.canonical(loose) == CompressionPlan(weight_bits={"fc": 8}, removed_blocks=("a",))
    assert WITH_BLOCKS.canonical(loose).structure_key() != loose.structure_key()


def test_a_plan_without_blocks_is_encoded_and_decoded_with_all_bits_of_the_study():
    space = SearchSpace(config=SpaceConfig(weight_bits=(4, 8)), facts=WITH_BLOCKS.facts)  # 32 is not among them
    plan = space.decode({"remove_block/b": True, "remove_block/a": True, "weight_bits/fc": 4})
    params = space.encode(plan)
    assert params is not None
    assert (params["remove_block/a"], params["remove_block/b"], params["weight_bits/conv2"]) == (True, True, 8)
    assert space.decode(params) == plan
    assert space.encode(CompressionPlan(removed_blocks=("c",))) is None


@given(st.data())
def test_what_is_decoded_with_blocks_comes_back_as_the_same_plan(data):
    params = {n: data.draw(st.sampled_from(p.choices)) for n, p in WITH_BLOCKS.raw().items() if p.choices}
    plan = WITH_BLOCKS.decode(params)
    encoded = WITH_BLOCKS.encode(plan)
    assert encoded is not None
    assert WITH_BLOCKS.decode(encoded) == plan
    assert {n: v for n, v in encoded.items() if n.startswith("remove_block/")} == {
        n: v for n, v in params.items() if n.startswith("remove_block/")
    }


def test_a_group_that_went_with_its_block_keeps_no_channels():
    plan = WITH_BLOCKS.decode({"remove_block/a": True, "prune_ratio/conv1": 0.5})
    assert kept_widths(WITH_BLOCKS.facts, plan) == {"conv1": 32, "conv2": 0, "conv4": 9}


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
    assert len(plans) == 14
    assert [p for _, p in SPACE.sweep("uint8", 3)] == plans[:3], "the most telling first"
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])
    assert {p.activations for p in plans} == {"uint8"}


@pytest.mark.parametrize("granule", [1, 3, 4, 8, 16])
def test_every_width_that_a_group_may_have_can_be_stored_by_optuna(granule):
    # A step of 1/6 four times is 2/3 but for the last digit, and Optuna then takes 1/2 for the highest value.
    for count in range(2, 40):
        group = GroupFacts(name="g", channels=count * granule, granule=granule, layers=("g",))
        space = SearchSpace(config=SpaceConfig(), facts=ModelFacts(layers=(), groups=(group,)))
        parameter = space.raw()["prune_ratio/g"]
        stored = FloatDistribution(parameter.low, parameter.high, step=parameter.step)
        for steps in range(int(0.75 * count + 1e-9) + 1):
            ratio = snap(group, steps / count)
            assert stored._contains(ratio), (group.channels, ratio)
            asked = space.decode({"prune_ratio/g": steps * stored.step})
            assert asked.prune_ratio["g"] == ratio
