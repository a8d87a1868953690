"""Proposes the plan that is expected to add most to the front, as an Optuna sampler.

    prices -> solver -> whole plans -> cost models and surrogate -> expected hypervolume gain -> the best one

Size and latency of a plan are predicted almost exactly, so only its accuracy is uncertain, and the
expected gain has a closed form. Whichever plan is proposed next is trained for the same time, so the
largest gain is also the largest per second. The sampler learns from every trial of the study, whoever proposed it,
and however long it was trained.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from autocompress.front.hypervolume import expected_gain, metric_drop
from autocompress.plan import ACTIVATIONS, CompressionPlan
from autocompress.search.files import Files, Reference
from autocompress.search.options import Candidates, Floats, Options, stack
from autocompress.search.pool import Pool
from autocompress.search.ranges import distributions
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.stopping import Constraints, broken_bound, foreseen
from autocompress.search.surrogate import DamageModel, after_training, trained_on, training_factor
from autocompress.search.worth import chance_below, goal_values
from autocompress.space.search_space import SearchSpace

BELIEF = "autocompress:belief"
_KEEPS, _LOSES_TOO_MUCH, _TOO_LARGE_OR_SLOW = 0.0, 1.0, 2.0  # how a result stands to the bounds, the better the lower
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_NORMAL = (_NODES, _WEIGHTS / _WEIGHTS.sum())  # points and weights that stand for a normal variable
_RECENT = 5  # trials
_SETTINGS = (
    "levels", "rounding", "importance", "distill/temperature", "distill/weight", "learning_rate", "distill/hints",
    "distill/attention", "distill/mean_teacher",
)  # fmt: skip
_FAILED = 50  # of the latest plans that failed are remembered for their likes
_WORST = 1.0  # drop that is learned from: an error may be a hundred times the baseline's, and says no more than that
_ORIGINAL = 0.8  # chance of the first choice for each setting of the recovery


class FrontSampler(BaseSampler):
    """Expected hypervolume gain over plans from a solver.

    It serves any Optuna study whose parameters are `SearchSpace.raw()` and whose values are those of
    `Reference.objectives`, also with parallel workers. A trial may say in its user attributes `plan` what it was where
    it has no parameters, `size_and_latency` what was measured before it was stopped, `size_bytes` and `latency_ms` the
    same of what is no objective, `trained_s` how long it was trained, or how long one training takes that brings as
    much, `rung_drop` what it lost part of the way through its training, from which that of a stopped one is foreseen,
    and `interrupted` that its failure says nothing of its plan.

    Args:
        space: of the plans.
        sensitivity: of each group and layer alone; None starts from guesses.
        reference: the baseline and the study.
        constraints: plans that are expected to break them are not proposed.
        without: parts to leave out, "solver" or "surrogate", to see what they are worth.
        timer: milliseconds of a plan's file, which need no training; infinite if there is none. It is asked where the
            sampler doubts which activations make the plan that it would propose faster. None: that is believed.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sensitivity: Sensitivity | None,
        reference: Reference,
        constraints: Constraints | None = None,
        seed: int = 0,
        without: tuple[str, ...] = (),
        timer: Callable[[CompressionPlan], float] | None = None,
    ) -> None:
        self._space, self._reference, self._without, self._timer = space, reference, without, timer
        self._constraints = constraints or Constraints()
        self._options = Options(space)
        self._files = Files(self._options, reference, self._constraints)
        tables = (sensitivity or Sensitivity()).tables(self._options)
        self._damage = DamageModel(self._options, **tables, learns="surrogate" not in without)
        raw = space.raw()
        self._raw = distributions(raw)
        self._choices = {n: p.choices for n, p in raw.items() if n in _SETTINGS}
        self._random = np.random.default_rng(seed)
        self._pool = Pool(
            space, self._options, self._files, self._damage, reference=reference, constraints=self._constraints,
            random=self._random, solves="solver" not in without,
        )  # fmt: skip
        self._independent = RandomSampler(seed=seed)
        self._looked = 0  # trials seen so far
        self._unfinished: list[int] = []  # those of them that had not ended
        self._failed = self._options.encode([])
        self._front, self._parents = np.zeros((0, 4)), self._options.encode([])
        self._unit_drops = np.zeros(0)  # of the parents: what one usual training would leave
        self._trainings: list[float] = []
        self._rungs: list[tuple[float, float]] = []  # drop at the rung and at the end
        self._seen: set[bytes] = set()
        self._timed: set[bytes] = set()  # of no trial
        self._believed: dict[int, float] = {}
        self._open_handles()

    def _open_handles(self) -> None:
        """What cannot be pickled: Optuna's users keep a sampler in a file to go on with it later."""
        self._threads = ThreadpoolController()  # products this small take five times as long on two threads
        self._alone = threading.Lock()  # Optuna's threads share one sampler

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_threads", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_handles()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All raw parameters: a proposal is always a whole plan."""
        return self._raw

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A value for every raw parameter; what is believed of the plan is kept as a system attribute."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            self._learn(study)
            params, belief = self.propose()
        study._storage.set_trial_system_attr(trial._trial_id, BELIEF, belief)
        return {name: value for name, value in params.items() if name in search_space}

    def propose(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The raw parameters of the next plan, and what is believed of it, from what was learned so far.

        The gain is that after the last stage, `drop` and `sd` are those of the trial itself.
        """
        pool, sources = self._pool.draw(self._parents, self._looked)
        best, parts, cheap, gains = self._judged(pool)
        if len(twins := self._timed_twins(pool.take(slice(best, best + 1)))):
            pool, sources = stack([pool, twins]), sources + [sources[best]] * len(twins)
            best, parts, cheap, gains = self._judged(pool)
        drop, spread = after_training(*parts[:2], self._usual_training(), parts[2])
        belief: dict[str, Any] = {
            "drop": float(drop[best]), "sd": float(spread[best]), "size_ratio": float(cheap[best, 0]),
            "latency_ratio": float(cheap[best, 1]), "gain": float(gains[best]), "source": sources[best],
        }  # fmt: skip
        return {**self._settings(), **self._options.params(pool, best)}, belief

    def _judged(self, pool: Candidates) -> tuple[int, tuple[Floats, Floats, Floats], Floats, Floats]:
        """The plan to propose, and of all: `_from_kin`, the ratios of their files, the gain after the last stage."""
        parts, cheap = self._from_kin(pool), self._files.ratios(pool)
        later = trained_on(self._usual_training(), self._reference.later)
        gains = self._gains(*after_training(*parts[:2], later, parts[2]), cheap)
        gains *= self._files.small(pool) & self._files.fast(pool)
        if len(self._failed):  # what is like a plan that failed may fail as well
            gains *= self._damage.unlike(pool, self._failed).min(1)
        return self._best_unseen(pool, gains), parts, cheap, gains

    def _timed_twins(self, one: Candidates) -> Candidates:
        """The plan with other activations, of which it was in doubt whether they are faster, and which are timed now.

        Which are faster depends on the processor and on the widths, and until some files of either kind were timed near
        a plan, a belief about the one says nothing of the other.
        """
        if self._timer is None or not self._files.times:
            return one.take(slice(0))
        twins, latency = self._twins(one), self._files.latency
        doubtful = np.flatnonzero(np.abs(latency.predict(twins) - latency.predict(one)) < latency.sd(twins))
        for row in doubtful.tolist():
            took = self._timer(self._space.decode(self._options.params(twins, row)))
            self._learn_latency(twins.take(slice(row, row + 1)), took)
        return twins.take(doubtful)

    def _twins(self, one: Candidates) -> Candidates:
        """The plan with all other activations that its bits go with and that were not timed before."""
        options = self._options
        few = (options.bits[one.bits[0]] <= 8).all()
        kinds = [k for k in options.activations.tolist() if k != one.activations[0] and (k == 0 or few)]
        twins = replace(one.take(np.zeros(len(kinds), np.int64)), activations=np.array(kinds, np.int64))
        known = self._timed | self._seen
        return twins.take(np.array([k not in known for k in _keys(options, twins)], bool).nonzero()[0])

    def _from_kin(self, pool: Candidates) -> tuple[Floats, Floats, Floats]:
        """The sum of parts, mean and standard deviation, and what of its misfit is unknown, each [n].

        What the sum cannot explain of a trained plan it cannot explain of plans like it either: they inherit it, as
        far as they are alike, and drawing one of them again is no new chance.
        """
        mean, sd = self._damage.sum_of_parts(pool)
        if not len(self._parents) or "surrogate" in self._without:
            return mean, sd, np.ones(len(pool))
        unlike = self._damage.unlike(pool, self._parents)
        nearest = unlike.argmin(1)
        least = unlike[np.arange(len(pool)), nearest]
        unexplained = self._unit_drops - self._damage.mean_sum(self._parents)
        return mean + (1 - least) * unexplained[nearest], sd, least

    def _best_unseen(self, pool: Candidates, gains: Floats) -> int:
        """The plan of the largest gain that was not trained yet, or the very largest if all were."""
        order: list[int] = np.argsort(-gains, kind="stable").tolist()
        fresh = (i for i in order if _keys(self._options, pool.take(slice(i, i + 1)))[0] not in self._seen)
        return next(fresh, order[0])

    def believed_drops(self, study: optuna.Study) -> Mapping[int, float]:
        """What is believed of the drop of every trained trial, its measurement included, by the trial's number."""
        with self._alone:
            self._learn(study)
            return dict(self._believed)

    def learn_latency(self, plan: CompressionPlan, latency_ms: float) -> None:
        """Learn from a file that was timed and belongs to no trial."""
        with self._alone:
            self._learn_latency(self._options.encode([plan]), latency_ms)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that are not of the space."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    # -- learning

    def _learn(self, study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=False)
        numbers = [*self._unfinished, *range(self._looked, len(trials))]
        self._looked, self._unfinished = len(trials), []
        for number in numbers:
            if trials[number].state.is_finished():
                self._learn_from(trials[number])
            else:
                self._unfinished.append(number)

    def _learn_from(self, trial: FrozenTrial) -> None:
        plan = self._plan_of(trial)
        if plan is None or trial.user_attrs.get("interrupted"):
            return
        one = self._options.encode([plan])
        self._seen.update(_keys(self._options, one))
        if trial.state is TrialState.FAIL:
            self._failed = stack([self._failed.take(slice(-_FAILED + 1, None)), one])
            return
        size, latency = self._weighed(trial)
        gone = self._space.facts.layers_in(plan.removed_blocks)
        asked = {plan.weight_bits.get(n.name, 32) for n in self._space.facts.layers if n.name not in gone}
        if asked <= set(self._options.bits.tolist()):
            self._files.learn_size(one, size, trial.user_attrs.get("size_bytes"))
        if latency is not None and (plan.activations == "float" or max(asked, default=32) <= 8):
            self._files.learn_latency(one, latency)
        at_rung = trial.user_attrs.get("rung_drop")
        if not trial.values:
            self._learn_stopped(one, at_rung)
            return
        direction = self._reference.direction
        drop = min(metric_drop(trial.values[0], self._reference.metric, direction=direction), _WORST)
        ratios = (
            (size or 0.0) / self._reference.size_bytes if self._files.weighs else 0.0,
            (latency or 0.0) / self._reference.latency_ms if self._files.times else 0.0,
        )
        longer = unit = 1.0
        if plan.trains:
            units = float(trial.user_attrs.get("trained_s") or self._reference.train_s) / self._reference.train_s
            self._trainings.append(units)
            if at_rung is not None:
                self._rungs.append((at_rung, drop))
            self._damage.observe(one, drop, training=units, noise=self._reference.noise)
            drop = self._damage.weighed(one, drop, training=units, noise=self._reference.noise)
            self._believed[trial.number] = drop
            longer = trained_on(units, self._reference.later) / units
            unit = training_factor(units)
        later = max(0.0, drop) * training_factor(longer)
        standing = self._standing(later, trial.user_attrs.get("size_bytes") or size or 0.0, latency or 0.0)
        self._enter(one, (later, *ratios, standing), max(0.0, drop) / unit)

    def _learn_stopped(self, one: Candidates, at_rung: float | None) -> None:
        """Learn from a training that ended at its rung what its end would have been, or its like is proposed again."""
        if at_rung is not None and (end := foreseen(at_rung, self._rungs)):
            noise = float(np.hypot(self._reference.noise, end[1]))
            self._damage.observe(one, min(end[0], _WORST), training=self._usual_training(), noise=noise)

    def _learn_latency(self, one: Candidates, latency_ms: float) -> None:
        self._timed.update(_keys(self._options, one))
        if latency_ms < math.inf:
            self._files.learn_latency(one, latency_ms)

    def _standing(self, drop: float, file_bytes: float, latency_ms: float) -> float:
        """How a result stands to the bounds; one that loses too much is told from others only where there is a goal.

        A front is to be had on both sides of a bound on the drop, a file of another size or latency is of no use.
        """
        limits = self._constraints
        if broken_bound(file_bytes, latency_ms, limits):
            return _TOO_LARGE_OR_SLOW
        too_bad = limits.is_goal and limits.max_drop is not None and drop > limits.max_drop
        return _LOSES_TOO_MUCH if too_bad else _KEEPS

    def _enter(self, plan: Candidates, point: tuple[float, float, float, float], unit_drop: float) -> None:
        """Add (drop, size ratio, latency ratio, how it stands to the bounds) as the last stage would leave them.

        What they beat goes, but nothing that keeps the bounds is beaten by what does not.
        """
        if ((self._front <= point).all(1) & (self._front < point).any(1)).any():
            return
        stays = ~((point <= self._front).all(1) & (point < self._front).any(1))
        self._front = np.vstack([self._front[stays], point])
        self._parents = stack([self._parents.take(np.flatnonzero(stays)), plan])
        self._unit_drops = np.append(self._unit_drops[stays], unit_drop)

    def _usual_training(self) -> float:
        """Training that a proposal will have had, its parents' included: as much as the last ones."""
        return fmean(self._trainings[-_RECENT:]) if self._trainings else 1.0

    def _plan_of(self, trial: FrozenTrial) -> CompressionPlan | None:
        if "plan" in trial.user_attrs:
            return CompressionPlan.from_dict(trial.user_attrs["plan"])
        return self._space.decode(trial.params) if trial.params else None

    def _weighed(self, trial: FrozenTrial) -> tuple[float | None, float | None]:
        known = list(trial.values[1:]) if trial.values else list(trial.user_attrs.get("size_and_latency") or [])
        named = {"size": trial.user_attrs.get("size_bytes"), "latency": trial.user_attrs.get("latency_ms")}
        named |= dict(zip(self._reference.objectives[1:], known, strict=False))
        return named.get("compressed" if "compressed" in self._reference.objectives else "size"), named["latency"]

    # -- proposing

    def _gains(self, mean: Floats, sd: Floats, cheap: Floats) -> Floats:
        """What plans are expected to add after the last stage if their files keep the bounds, [n].

        For a goal there is one last training: a plan adds what it is worth more than the best of those that were
        tried, once its own trial has told its drop.
        """
        bound = self._constraints.max_drop
        if not self._constraints.is_goal:
            gains = expected_gain(mean, sd, cheap, self._within)
            return gains if bound is None else gains * chance_below(bound, mean, sd)
        tried = self._front[self._front[:, 3] < _TOO_LARGE_OR_SLOW]
        best = self._prospects(tried[:, 0], tried[:, 1:3]).max(initial=0.0)
        added = np.zeros(len(mean))
        for node, weight in zip(*_NORMAL, strict=True):
            added += weight * np.maximum(self._prospects(mean + node * sd, cheap) - best, 0.0)
        return added

    def _prospects(self, drop: Floats, cheap: Floats) -> Floats:
        """What plans are worth for a goal whose drop after the last training is foreseen, [n]."""
        bound = self._constraints.max_drop
        assert bound is not None
        return goal_values(drop, cheap, max_drop=bound, noise=self._reference.noise)

    @property
    def _within(self) -> Floats:
        """The front that new plans have to beat, [n, 3]: what breaks a bound takes nothing from what keeps it."""
        return self._front[self._front[:, 3] == _KEEPS, :3]

    def _settings(self) -> dict[str, Any]:
        """Settings of the recovery: mostly the first choices, which are the study file's best guess."""
        found = {}
        for name, choices in self._choices.items():
            usual = self._random.random() < _ORIGINAL
            found[name] = choices[0 if usual else self._random.integers(len(choices))]
        return found


def _keys(options: Options, candidates: Candidates) -> list[bytes]:
    """What makes two plans one: what is inside of a removed block does not."""
    at = options.layout(candidates)
    width, bits = candidates.width * at.groups_left, candidates.bits * at.layers_left
    zeroed = (candidates.zeroed[:, None] * 1000).round()
    rank = candidates.rank * at.layers_left if options.factors else candidates.rank
    parts = np.concatenate([width, bits, candidates.removed, candidates.activations[:, None], zeroed, rank], axis=1)
    return [row.astype(np.int16).tobytes() for row in parts]


def belief_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the sampler believed of a trial, from Optuna's system attributes; empty if it was not its own."""
    found: dict[str, Any] = attributes.get(BELIEF, {})
    return found


assert ACTIVATIONS[0] == "float"  # `Options` and the cost models count on it
