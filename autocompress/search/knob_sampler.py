"""Samples a handful of shared dials instead of every group and layer, with any Optuna sampler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.search.ranges import distributions
from autocompress.space.search_space import SWEEP, SearchSpace, uniform_knobs

_KNOBS = "autocompress:knobs"
_Params = tuple[tuple[str, Any], ...]


class KnobSampler(BaseSampler):
    """Another sampler over the space's few dials; the study it serves sees only raw parameters.

    The dials of each trial are kept as a system attribute, so a resumed study goes on where it was. A
    trial that was stopped before training counts as one of the worst accuracy seen, at its own size and
    latency, which keeps the search from proposing it again.

    Args:
        space: decodes the dials.
        inner: samples the dials, for several objectives.
        seed: of what is not a dial.
    """

    def __init__(self, space: SearchSpace, *, inner: BaseSampler, seed: int) -> None:
        self._space = space
        self._dials = distributions(space.knobs())
        self._raw = distributions(space.raw())
        self._uniform = _uniform_dials(space)
        self._inner = inner
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
            shadow = optuna.create_study(directions=study.directions, sampler=self._inner)
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
    for kind in space.activations:
        for ratio, bits in SWEEP:
            knobs = centre | {n: v for n, v in uniform_knobs(ratio, bits, kind).items() if n in dials}
            params = space.encode(space.from_knobs(knobs))
            if params is not None:
                found[_key(params)] = knobs
    return found


def _key(params: Mapping[str, Any]) -> _Params:
    return tuple(sorted(params.items()))
