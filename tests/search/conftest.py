"""Spaces that are small enough to check by hand or by trying everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.config import SpaceConfig
from autocompress.records import BlockFacts, FactorFacts, GroupFacts, LayerFacts, ModelFacts
from autocompress.search.options import Options
from autocompress.space.search_space import SearchSpace


def conv(
    name: str, group: str | None, ins: int, outs: int, sources: dict[str, float], positions: int = 64
) -> LayerFacts:
    return LayerFacts(
        name=name, kind="conv", weights=9 * ins * outs, out_channels=outs, in_channels=ins, positions=positions,
        group=group, sources=sources,
    )  # fmt: skip


@pytest.fixture
def chain() -> SearchSpace:
    """Image -> a (32) -> b (16) -> c (16) -> 10 classes."""
    layers = (
        conv("a", "a", 3, 32, {}),
        conv("b", "b", 32, 16, {"a": 1.0}),
        conv("c", "c", 16, 16, {"b": 1.0}, positions=16),
        LayerFacts(
            name="fc", kind="linear", weights=160, out_channels=10, in_channels=16, positions=1, sources={"c": 1.0}
        ),
    )
    groups = tuple(GroupFacts(name=n, channels=w, granule=8, layers=(n,)) for n, w in (("a", 32), ("b", 16), ("c", 16)))
    return SearchSpace(config=SpaceConfig(weight_bits=(2, 4, 8)), facts=ModelFacts(layers=layers, groups=groups))


@pytest.fixture
def residual() -> SearchSpace:
    """A stem and the second convolution of a block share their channels; the first one has its own."""
    layers = (
        conv("stem", "stem", 1, 16, {}),
        conv("inner", "inner", 16, 32, {"stem": 1.0}),
        conv("outer", "stem", 32, 16, {"inner": 1.0}),
    )
    groups = (
        GroupFacts(name="stem", channels=16, granule=4, layers=("stem", "outer")),
        GroupFacts(name="inner", channels=32, granule=8, layers=("inner",)),
    )
    return SearchSpace(config=SpaceConfig(weight_bits=(4, 8)), facts=ModelFacts(layers=layers, groups=groups))


@pytest.fixture
def depthwise_options() -> Options:
    """A pointwise convolution widens, a depthwise one of the same channels follows, a pointwise one narrows again."""
    layers = (
        conv("widen", "inside", 8, 24, {}),
        LayerFacts(
            name="each", kind="depthwise", weights=9 * 24, out_channels=24, in_channels=1, positions=64, group="inside"
        ),
        conv("narrow", "out", 24, 16, {"inside": 1.0}),
    )
    groups = (
        GroupFacts(name="inside", channels=24, granule=8, layers=("widen", "each")),
        GroupFacts(name="out", channels=16, granule=8, layers=("narrow",)),
    )
    return Options(SearchSpace(config=SpaceConfig(weight_bits=(4, 8)), facts=ModelFacts(layers=layers, groups=groups)))


@pytest.fixture
def chain_options(chain: SearchSpace) -> Options:
    return Options(chain)


@pytest.fixture
def factored(residual: SearchSpace) -> SearchSpace:
    """The same pair; its second convolution, and the first with a stride of 2, may be two factors."""
    stem, inner, outer = residual.facts.layers
    layers = (
        stem,
        replace(inner, factors=FactorFacts(taps=3, places=2.0)),
        replace(outer, factors=FactorFacts(taps=3)),
    )
    facts = replace(residual.facts, layers=layers)
    return SearchSpace(config=residual.config.model_copy(update={"rank_ratio": (0.0, 0.5, 0.75)}), facts=facts)


@pytest.fixture
def factored_options(factored: SearchSpace) -> Options:
    return Options(factored)


@pytest.fixture
def block_options(residual: SearchSpace) -> Options:
    """The same pair as a block that can be left out."""
    block = BlockFacts(name="block", layers=("inner", "outer"), groups=("inner",))
    return Options(SearchSpace(config=residual.config, facts=replace(residual.facts, blocks=(block,))))


@pytest.fixture
def residual_options(residual: SearchSpace) -> Options:
    return Options(residual)
