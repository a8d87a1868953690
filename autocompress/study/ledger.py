"""The study in Optuna's own tables: what the sampler learns from, and what any Optuna tool can open.

Our records are written first and are the truth. Whatever Optuna's tables miss after a crash is put
right when the study is opened again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from autocompress.config import StudyConfig
from autocompress.front.hypervolume import Direction
from autocompress.plan import CompressionPlan
from autocompress.records import TrialRecord, TrialState
from autocompress.search.front_sampler import FrontSampler, belief_of
from autocompress.search.ranges import distributions
from autocompress.space.search_space import SearchSpace
from autocompress.study.database import explained, open_optuna_storage
from autocompress.study.store import StudyStore

LOST = "the search was interrupted while it ran"
# Optuna's NSGA-II takes no trial for a parent that lacks a generation, those added from outside included.
_FIRST_GENERATION = {"NSGAIISampler:generation": 0}
_NO_PLAN = ("baseline", "cascade")  # origins that are not in the space of the search
_STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.INFEASIBLE: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


class Ledger:
    """Asks the sampler and tells it what came of it.

    Args:
        known: our records of the trials so far.
        direction: of the metric, "maximize" or "minimize".
        sampler: what proposes.
    """

    def __init__(
        self,
        store: StudyStore,
        config: StudyConfig,
        space: SearchSpace,
        known: Sequence[TrialRecord],
        *,
        direction: Direction,
        sampler: optuna.samplers.BaseSampler,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._objectives = space, config.search.objectives
        self._ranges = distributions(space.raw())
        directions: list[Direction] = [direction if name == "accuracy" else "minimize" for name in self._objectives]
        self._path = store.path
        with explained(self._path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metric names are marked experimental since 3.2
            self._study = optuna.create_study(
                study_name=config.name,
                storage=open_optuna_storage(store.path),
                directions=directions,
                sampler=sampler,
                load_if_exists=True,
            )
            self._study.set_metric_names(list(self._objectives))

    @property
    def next_number(self) -> int:
        """Number of the next trial."""
        return len(self._study.get_trials(deepcopy=False))

    def ask(self) -> optuna.Trial:
        """A trial with a value for every raw parameter."""
        with explained(self._path):
            return self._study.ask(self._ranges)

    def belief(self, asked: optuna.Trial) -> dict[str, Any]:
        """What the sampler believed of a plan that it proposed; empty if it keeps that to itself."""
        with explained(self._path):
            return belief_of(self._study._storage.get_trial_system_attrs(asked._trial_id))

    def believed_drops(self) -> Mapping[int, float]:
        """What the sampler believes of the drop of trained trials, measurements included, as far as it has a belief."""
        sampler = self._study.sampler
        if not isinstance(sampler, FrontSampler):
            return {}
        with explained(self._path):
            return sampler.believed_drops(self._study)

    def learn_latency(self, plan: CompressionPlan, latency_ms: float) -> None:
        """Tell the sampler of a file that was timed and belongs to no trial, if it wants to know."""
        if isinstance(self._study.sampler, FrontSampler):
            self._study.sampler.learn_latency(plan, latency_ms)

    def tell(self, record: TrialRecord, asked: optuna.Trial | None = None) -> None:
        """Record a trial that ended: the one that was asked for, or one of our own making."""
        with explained(self._path):
            self._tell(record, asked)

    def _tell(self, record: TrialRecord, asked: optuna.Trial | None) -> None:
        attributes = self._attributes(record)
        values = self._values(record)
        if asked is not None:
            for key, value in attributes.items():
                asked.set_user_attr(key, value)
            self._study.tell(asked, values=values, state=_STATES[record.state])
            return
        params = None if record.origin in _NO_PLAN else self._space.encode(record.plan)
        self._study.add_trial(
            optuna.create_trial(
                state=_STATES[record.state],
                values=values,
                params=params or {},
                distributions=self._ranges if params else {},
                user_attrs=attributes,
                system_attrs=_FIRST_GENERATION if params else {},
            )
        )

    def reconcile(self, known: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Make Optuna's tables agree with ours after a crash; the trials that nobody finished, as failed records."""
        ours = {record.trial: record for record in known}
        lost = []
        for trial in self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
            record = ours.get(trial.number)
            if record is None:
                record = TrialRecord(
                    trial=trial.number,
                    state=TrialState.FAILED,
                    plan=self._space.decode(trial.params),
                    reason=LOST,
                )
                lost.append(record)
            for key, value in self._attributes(record).items():
                self._study._storage.set_trial_user_attr(trial._trial_id, key, value)
            self._study.tell(trial.number, values=self._values(record), state=_STATES[record.state])
        for number in range(self.next_number, max(ours, default=-1) + 1):
            self.tell(ours[number])
        return lost

    def _values(self, record: TrialRecord) -> list[float] | None:
        measured = record.measurement
        if record.state is not TrialState.COMPLETE or measured is None or measured.val is None:
            return None
        return [measured.val, *self._cheap(record)]

    def _cheap(self, record: TrialRecord) -> list[float]:
        measured = record.measurement
        if measured is None:
            return []
        known = {
            "size": float(measured.size_bytes),
            "compressed": float(measured.compressed_bytes),
            "latency": measured.latency.latency_ms,
        }
        return [known[name] for name in self._objectives if name in known]

    def _attributes(self, record: TrialRecord) -> dict[str, object]:
        attributes: dict[str, object] = {
            "state": str(record.state),
            "origin": record.origin,
            "reason": record.reason,
            "artifact": record.artifact,
            "size_and_latency": self._cheap(record),
            "size_bytes": record.measurement.size_bytes if record.measurement else None,
            "latency_ms": record.measurement.latency.latency_ms if record.measurement else None,
            "trained_s": record.equivalent_s,
            "rung_drop": record.rung_drop,
            "interrupted": record.reason == LOST,
        }
        if record.origin in ("search", "cascade"):  # a cascade is no plan: nothing can be learned from it
            return attributes
        return {**attributes, "plan": record.plan.to_dict()}
