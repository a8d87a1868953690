"""What proposes plans, by the name in the study file: ours, or Optuna's own. Any `BaseSampler` fits here."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.plan import CompressionPlan
from autocompress.search.files import Reference
from autocompress.search.front_sampler import FrontSampler
from autocompress.search.knob_sampler import KnobSampler
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.stopping import Constraints
from autocompress.space.search_space import SearchSpace

_STARTUP = 8
_POPULATION = 8  # budgets allow a few dozen trials


def make_sampler(
    name: str,
    space: SearchSpace,
    *,
    seed: int,
    reference: Reference,
    sensitivity: Sensitivity | None = None,
    constraints: Constraints | None = None,
    without: tuple[str, ...] = (),
    timer: Callable[[CompressionPlan], float] | None = None,
) -> BaseSampler:
    """The sampler of a study file.

    Args:
        name: "front" (ours); "knobs" and "gp" are TPE and a Gaussian process over a few shared dials; "tpe", "nsga2"
            and "random" sample every group and layer.
        seed: give a resumed study another one, or it proposes again what it proposed before.
        reference, sensitivity, constraints, without, timer: for "front".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks some of these experimental
        if name in ("tpe", "knobs"):
            tpe = TPESampler(seed=seed, n_startup_trials=_STARTUP)
            return tpe if name == "tpe" else KnobSampler(space, inner=tpe, seed=seed)
        if name == "gp":
            return KnobSampler(space, inner=GPSampler(seed=seed, n_startup_trials=_STARTUP), seed=seed)
        if name == "nsga2":
            return NSGAIISampler(seed=seed, population_size=_POPULATION)
        if name == "random":
            return RandomSampler(seed=seed)
    return FrontSampler(
        space, sensitivity=sensitivity, reference=reference, constraints=constraints, seed=seed, without=without,
        timer=timer,
    )  # fmt: skip
