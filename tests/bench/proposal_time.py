"""How long the front sampler takes to propose over 200 groups after 1,000 trials: by default, with all techniques."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import optuna

from autocompress.config import SpaceConfig
from autocompress.records import BlockFacts, FactorFacts, GroupFacts, LayerFacts, ModelFacts
from autocompress.search.front_sampler import FrontSampler, Reference
from autocompress.search.ranges import distributions
from autocompress.space.search_space import SearchSpace

GROUPS, TRIALS, PROPOSALS = 200, 1000, 20


# Ranks of every layer, shares of zeros and what is added to the distillation are searched, and every fourth
# convolution is a block that may be left out.
EVERYTHING = SpaceConfig(
    rank_ratio=(0.0, 0.5, 0.75),
    sparsity=(0.0, 0.5, 0.8),
    levels=("uniform", "codebook"),
    hints=(0.0, 1.0),
    attention=(0.0, 1.0),
    mean_teacher=(0.0, 1.0),
)


def chain(count: int, config: SpaceConfig | None = None) -> SearchSpace:
    """A chain of `count` convolutions of 64 channels."""
    names = [f"g{i}" for i in range(count)]
    layers = tuple(
        LayerFacts(
            name=name,
            kind="conv",
            weights=9 * 64 * 64,
            out_channels=64,
            in_channels=64,
            positions=49,
            group=name,
            sources={names[index - 1]: 1.0} if index else {},
            factors=FactorFacts(taps=3) if config else None,
        )
        for index, name in enumerate(names)
    )
    groups = tuple(GroupFacts(name=n, channels=64, granule=8, layers=(n,)) for n in names)
    blocks = tuple(BlockFacts(name=f"block-{n}", layers=(n,), groups=(n,)) for n in names[::4]) if config else ()
    return SearchSpace(config=config or SpaceConfig(), facts=ModelFacts(layers=layers, groups=groups, blocks=blocks))


def main() -> None:
    """Print the time of each part of a proposal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for title, config in (("the default space", None), ("every technique", EVERYTHING)):
        print(f"{title}:")
        measure(chain(GROUPS, config))


def measure(space: SearchSpace) -> None:
    """Print the times over one space."""
    generator = np.random.default_rng(0)
    sampler = FrontSampler(
        space, sensitivity=None, reference=Reference(metric=0.95, size_bytes=30_000_000, latency_ms=1.0)
    )
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    ranges = distributions(space.raw())

    def add_trial() -> None:
        level = generator.uniform(0, 0.7)
        params = space.encode(space.from_knobs({"knob/prune_level": level, "knob/bits": 4}))
        assert params is not None
        values = [0.95 - 0.05 * level**2 + generator.normal(0, 0.002), 3e7 * (1 - level) / 8, 1 - level]
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, values=values))

    for _ in range(TRIALS):
        add_trial()
    with sampler._threads.limit(limits=1, user_api="blas"):  # as where Optuna asks
        start = time.perf_counter()
        sampler._learn(study)
        print(f"  learning from {TRIALS} trials at once: {1e3 * (time.perf_counter() - start) / TRIALS:.2f} ms each")
        learned, proposed = [], []
        for _ in range(PROPOSALS):
            add_trial()
            start = time.perf_counter()
            sampler._learn(study)
            middle = time.perf_counter()
            sampler.propose()
            learned.append(1e3 * (middle - start))
            proposed.append(1e3 * (time.perf_counter() - middle))
    total = np.add(learned, proposed)
    print(f"  a proposal: median {np.median(proposed):.1f} ms, slowest {max(proposed):.1f} ms")
    print(f"  with learning from the trial before it: median {np.median(total):.1f} ms, slowest {max(total):.1f} ms")
    tracemalloc.start()  # it slows what it watches
    for _ in range(PROPOSALS):
        sampler.propose()
    print(f"  memory of {PROPOSALS} proposals: peak {tracemalloc.get_traced_memory()[1] / 2**20:.1f} MiB")
    tracemalloc.stop()


if __name__ == "__main__":
    main()
