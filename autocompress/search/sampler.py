"""Optuna samplers over the space: the seam where any `BaseSampler` can be put in.

`KnobSampler` is ours for now: TPE over a few shared dials, decoded to a value for every raw
parameter. The others are Optuna's own on the raw space.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.space.search_space import SWEEP, Parameter, SearchSpace, uniform_knobs

_KNOBS = "autocompress:knobs"
_STARTUP = 8
_Params = tuple[tuple[str, Any], ...]


def distributions(parameters: dict[str, Parameter]) -> dict[str, BaseDistribution]:
    """Optuna's form of a space."""
    return {
        name: CategoricalDistribution(p.choices) if p.choices else FloatDistribution(p.low, p.high, step=p.step)
        for name, p in parameters.items()
    }


def make_sampler(name: str, space: SearchSpace, *, seed: int) -> BaseSampler:
    """The sampler of a study file: "knobs", "tpe", "nsga2" or "random".

    Args:
        seed: give a resumed study another one, or it proposes again what it proposed before.
    """
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=_STARTUP)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=16)
    if name == "random":
        return RandomSampler(seed=seed)
    return KnobSampler(space, seed=seed)


class KnobSampler(BaseSampler):
    """Multi-objective TPE over the space's dials; the study it serves sees only raw parameters.

    The dials of each trial are kept as a system attribute, so a resumed study goes on where it was. A
    trial that was stopped before training counts as one of the worst accuracy seen, at its own size and
    latency, which keeps the search from proposing it again.

    Args:
        space: decodes the dials.
        seed: of the sampling.
    """

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        self._space = space
        self._dials = distributions(space.knobs())
        self._raw = distributions(space.raw())
        self._uniform = _uniform_dials(space)
        self._tpe = TPESampler(seed=seed, n_startup_trials=_STARTUP)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All raw parameters: a proposal is always a whole plan."""
        return self._raw

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A value for every raw parameter, decoded from freshly sampled dials."""
        dials = self._sample_dials(study)
        study._storage.set_trial_system_attr(trial._trial_id, _KNOBS, dials)
        params = self._space.encode(self._space.from_knobs(dials))
        return {n: v for n, v in (params or {}).items() if n in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that are not of the space."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _sample_dials(self, study: optuna.Study) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shadow = optuna.create_study(directions=study.directions, sampler=self._tpe)
            for past in self._history(study):
                shadow.add_trial(past)
            return dict(shadow.ask(self._dials).params)

    def _history(self, study: optuna.Study) -> list[FrozenTrial]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        known = [(t, self._dials_of(t)) for t in trials]
        seen: Sequence[float] = [t.values[0] for t, d in known if d is not None and t.values]
        if not seen:
            return []
        worst = min(seen) if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else max(seen)
        history = []
        for trial, dials in known:
            values = trial.values or [worst, *trial.user_attrs.get("size_and_latency", [])]
            if dials is not None and len(values) == len(study.directions):
                history.append(optuna.create_trial(params=dials, distributions=self._dials, values=values))
        return history

    def _dials_of(self, trial: FrozenTrial) -> dict[str, Any] | None:
        dials = trial.system_attrs.get(_KNOBS)
        if dials is None and trial.params:
            dials = self._uniform.get(_key(trial.params))
        return dials if dials is not None and set(dials) == set(self._dials) else None


def _uniform_dials(space: SearchSpace) -> dict[_Params, dict[str, Any]]:
    """The dials of the uniform sweep by the raw parameters they decode to: the sampler learns from the sweep too."""
    dials = space.knobs()
    centre = {name: p.choices[0] if p.choices else 0.0 for name, p in dials.items()}
    found = {}
    for kind in space.config.activations:
        for ratio, bits in SWEEP:
            knobs = centre | {n: v for n, v in uniform_knobs(ratio, bits, kind).items() if n in dials}
            params = space.encode(space.from_knobs(knobs))
            if params is not None:
                found[_key(params)] = knobs
    return found


def _key(params: Mapping[str, Any]) -> _Params:
    return tuple(sorted(params.items()))
