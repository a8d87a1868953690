"""Proposes the plan that is expected to add most to the front, as an Optuna sampler.

    prices -> solver -> whole plans -> cost models and surrogate -> expected hypervolume gain -> the best one

Size and latency of a plan are predicted almost exactly, so only its accuracy is uncertain, and the
expected gain has a closed form. Trials are trained for the same time, so the largest gain is also the
largest per second. The sampler learns from every trial of the study, whoever proposed it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from autocompress.front.hypervolume import Direction, expected_gain, metric_drop
from autocompress.plan import ACTIVATIONS, CompressionPlan
from autocompress.search.cost import LatencyModel, SizeModel
from autocompress.search.options import Candidates, Flags, Floats, Ints, Options, stack
from autocompress.search.ranges import distributions
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.solver import Prices, Solver
from autocompress.search.stopping import Constraints, broken_bound, foreseen
from autocompress.search.surrogate import SUREST, DamageModel, after_training, trained_on, training_factor
from autocompress.search.worth import UNSURE, chance_below
from autocompress.space.search_space import Parameter, SearchSpace

BELIEF = "autocompress:belief"
_SOLVED, _MUTATED = 24, 12  # plans per proposal
_PAIRS = 12_000  # solver's arrays: fewer prices at once for larger networks
_STEEPEST, _STEPS = 2.8, 4  # towards the bounds: the first step of the logarithm of prices, and how many there are
_KEEPS, _LOSES_TOO_MUCH, _TOO_LARGE_OR_SLOW = 0.0, 1.0, 2.0  # how a result stands to the bounds, the better the lower
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_NORMAL = (_NODES, _WEIGHTS / _WEIGHTS.sum())  # points and weights that stand for a normal variable
_FEWEST = 8  # plans, of which half are brought near the bounds
_SIZE_PRICES, _LATENCY_PRICES = (1e-3, 0.3), (1e-3, 0.5)  # drop for the whole file, for the whole latency
_RECENT = 5  # trials
_SETTINGS = (
    "levels", "rounding", "importance", "distill/temperature", "distill/weight", "learning_rate", "distill/hints",
    "distill/attention", "distill/mean_teacher",
)  # fmt: skip
_FAILED = 50  # of the latest plans that failed are remembered for their likes
_WORST = 1.0  # drop that is learned from: an error may be a hundred times the baseline's, and says no more than that
_ZEROS = 0.25  # chance of a change of the share of zeros, where that is searched
_RANKS = 0.25  # of a change of one layer's rank, where those are
_ORIGINAL = 0.8  # chance of the first choice for each setting of the recovery


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What trials are compared with.

    Attributes:
        metric, size_bytes, latency_ms: of the baseline; bytes of the zipped file where "compressed" is an objective.
        objectives: of the study, in the order of its values.
        noise: standard deviation of a measured drop.
        latency_noise: of a measured latency, relative.
        train_s: usual training of one trial in seconds.
        later: training that the last stage gives to what is worth it, in units of `train_s`.
    """

    metric: float
    size_bytes: int
    latency_ms: float
    direction: Direction = "maximize"
    objectives: tuple[str, ...] = ("accuracy", "size", "latency")
    noise: float = 0.003
    latency_noise: float = 0.0
    train_s: float = 1.0
    later: float = 0.0


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
        self._narrowest = (self._options.allowed.sum(1) - 1).tolist()
        self._factored = np.flatnonzero(self._options.factored).tolist()
        self._solver = Solver(self._options)
        shaped = int((self._options.feeds > 0).sum()) + len(self._options.channels)
        self._pairs = max(1, shaped) * self._options.widths.shape[-1] * (2 if self._options.factors else 1)
        zipped = "compressed" in reference.objectives
        self._size = SizeModel(self._options, zipped=zipped)
        self._file = SizeModel(self._options) if zipped else self._size  # what `max_size` is about
        self._latency = LatencyModel(self._options, noise=reference.latency_noise)
        tables = (sensitivity or Sensitivity()).tables(self._options)
        self._damage = DamageModel(self._options, **tables, learns="surrogate" not in without)
        self._weighs = bool({"size", "compressed"} & set(reference.objectives))
        self._times = "latency" in reference.objectives
        raw = space.raw()
        self._raw = distributions(raw)
        self._choices = {n: p.choices for n, p in raw.items() if n in _SETTINGS}
        self._random = np.random.default_rng(seed)
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
        pool, sources = self._pool()
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
        """The plan to propose, and of all what `_from_kin` and `_cheap` say and the gain after the last stage."""
        parts, cheap = self._from_kin(pool), self._cheap(pool)
        later = trained_on(self._usual_training(), self._reference.later)
        gains = self._gains(*after_training(*parts[:2], later, parts[2]), cheap)
        gains *= self._small(pool) & self._fast(pool)
        if len(self._failed):  # what is like a plan that failed may fail as well
            gains *= self._damage.unlike(pool, self._failed).min(1)
        return self._best_unseen(pool, gains), parts, cheap, gains

    def _timed_twins(self, one: Candidates) -> Candidates:
        """The plan with other activations, of which it was in doubt whether they are faster, and which are timed now.

        Which are faster depends on the processor and on the widths, and until some files of either kind were timed near
        a plan, a belief about the one says nothing of the other.
        """
        twins = self._twins(one) if self._timer is not None and self._times else one.take(slice(0))
        doubtful = np.abs(self._latency.predict(twins) - self._latency.predict(one)) < self._latency.sd(twins)
        for row in np.flatnonzero(doubtful).tolist():
            twin = twins.take(slice(row, row + 1))
            if self._timer is not None:
                self._learn_latency(twin, self._timer(self._space.decode(self._options.params(twin, 0))))
        return twins.take(np.flatnonzero(doubtful))

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
            self._learn_size(one, size, trial.user_attrs.get("size_bytes"))
        if latency is not None and (plan.activations == "float" or max(asked, default=32) <= 8):
            self._latency.observe(one, np.array([latency / self._reference.latency_ms]))
        at_rung = trial.user_attrs.get("rung_drop")
        if not trial.values:
            self._learn_stopped(one, at_rung)
            return
        direction = self._reference.direction
        drop = min(metric_drop(trial.values[0], self._reference.metric, direction=direction), _WORST)
        ratios = (
            (size or 0.0) / self._reference.size_bytes if self._weighs else 0.0,
            (latency or 0.0) / self._reference.latency_ms if self._times else 0.0,
        )
        longer = unit = 1.0
        if plan.trains:
            units = float(trial.user_attrs.get("trained_s") or self._reference.train_s) / self._reference.train_s
            self._trainings.append(max(1.0, units))
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
            self._latency.observe(one, np.array([latency_ms / self._reference.latency_ms]))

    def _standing(self, drop: float, file_bytes: float, latency_ms: float) -> float:
        """How a result stands to the bounds; one that loses too much is told from others only where there is a goal.

        A front is to be had on both sides of a bound on the drop, a file of another size or latency is of no use.
        """
        limits = self._constraints
        if broken_bound(file_bytes, latency_ms, limits):
            return _TOO_LARGE_OR_SLOW
        too_bad = limits.is_goal and limits.max_drop is not None and drop > limits.max_drop
        return _LOSES_TOO_MUCH if too_bad else _KEEPS

    def _learn_size(self, one: Candidates, size: float | None, file_bytes: float | None) -> None:
        if size is not None:
            self._size.observe(one, np.array([size]))
        if file_bytes is not None and self._file is not self._size:
            self._file.observe(one, np.array([file_bytes], float))

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

    def _pool(self) -> tuple[Candidates, list[str]]:
        parts = [self._drawn() if "solver" in self._without else self._solved()]
        sources = ["random dials" if "solver" in self._without else "solver"] * len(parts[0])
        if len(self._parents):
            mutated = self._mutated()
            parts.append(mutated)
            sources += ["change of a trained plan"] * len(mutated)
        return stack(parts), sources

    def _solved(self) -> Candidates:
        """The solver's plans at prices drawn over their whole ranges, or at those where plans just keep the bounds."""
        options, draw = self._options, self._random
        count = max(2, min(_PAIRS // self._pairs, _SOLVED))
        stepwise = self._constraints.bounds_file and count >= _FEWEST  # several times takes too long in large networks
        count //= 2 if stepwise else 1
        turn = self._looked if count < len(options.activations) else 0  # of few plans each kind has its turn
        prices = self._prices(options.activations[(turn + np.arange(count)) % len(options.activations)])
        solved = self._within_bounds(prices) if stepwise else self._solver.solve(prices)
        return replace(solved, zeroed=draw.choice(options.zeroed, len(solved))) if len(options.zeroed) > 1 else solved

    def _within_bounds(self, prices: Prices) -> Candidates:
        """Plans near the bounds on size and latency, two from each of these prices.

        The price of each rises where its bound is broken and falls half as far where it is kept, by steps that are
        halved; the plans of the last two are taken.
        """
        limits, found = self._constraints, [self._solver.solve(prices)]
        for step in _STEEPEST / 2.0 ** np.arange(_STEPS):
            small, fast = self._small(found[-1]), self._fast(found[-1])
            size = prices.size * np.exp(np.where(small, -step / 2, step) * (limits.max_size is not None))
            latency = prices.latency * np.exp(np.where(fast, -step / 2, step) * (limits.max_latency is not None))
            prices = replace(prices, size=size, latency=latency)
            found.append(self._solver.solve(prices))
        return stack(found[-2:])

    def _prices(self, kinds: Ints) -> Prices:
        """Prices for a plan of each of these kinds of activations, with damages as they may well be."""
        options, draw, limits = self._options, self._random, self._constraints
        known = {kind: self._latency.layer_shares(kind) for kind in set(kinds.tolist())}
        shares = [known[kind] for kind in kinds.tolist()]
        width, bits, blocks, rank = self._damage.tables(draw)
        weighed, timed = self._weighs or limits.max_size is not None, self._times or limits.max_latency is not None
        narrow = int(np.argmax(options.bits <= 8)) if (options.bits <= 8).any() else 0
        return Prices(
            width=width,
            bits=bits,
            rank=rank,
            blocks=blocks,
            size=_log_uniform(draw, _SIZE_PRICES, len(kinds)) * weighed / self._reference.size_bytes,
            latency=_log_uniform(draw, _LATENCY_PRICES, len(kinds)) * timed,
            multiply=np.array([s[0] for s in shares]),
            move=np.array([s[1] for s in shares]),
            activations=kinds,
            least_bits=np.where(kinds > 0, narrow, 0),
            lanes=self._latency.lanes,
        )

    def _drawn(self) -> Candidates:
        plans = []
        for _ in range(_SOLVED):
            dials = {name: self._draw(parameter) for name, parameter in self._space.knobs().items()}
            plans.append(self._space.from_knobs(dials))
        return self._options.encode(plans)

    def _draw(self, parameter: Parameter) -> Any:
        if parameter.choices:
            return parameter.choices[self._random.integers(len(parameter.choices))]
        return self._random.uniform(parameter.low, parameter.high)

    def _mutated(self) -> Candidates:
        """Plans of the front with one width, the bits or rank of one layer, or the activations changed."""
        parents = self._parents.take(self._random.integers(len(self._parents), size=_MUTATED))
        changed = self._options.searched(parents)  # references may have what is not searched
        chances = self._random.random((_MUTATED, 1 + 3 * 4)).tolist()  # drawn at once: a call each takes longer
        for row, (count, *drawn) in enumerate(chances):
            for k in range(1 + int(3 * count)):
                self._change_(changed.take(slice(row, row + 1)), *drawn[4 * k : 4 * k + 4])  # a view
        return changed

    def _change_(self, one: Candidates, zeros: float, ranks: float, what: float, which: float) -> None:
        """Change one thing of one plan.

        Args:
            zeros, ranks, what: numbers drawn from [0, 1) that choose the kind of the change.
            which: the same for the group, layer, block or share, and for wider or narrower.
        """
        options = self._options
        if len(options.zeroed) > 1 and zeros < _ZEROS:
            one.zeroed[:] = options.zeroed[int(which * len(options.zeroed))]
        elif options.factors and ranks < _RANKS:
            place, step = _step(which, len(self._factored))
            layer = self._factored[place]
            one.rank[0, layer] = min(max(one.rank[0, layer] + step, 0), len(options.ratios) - 1)
        elif what < 2 / 6 and one.width.size:
            group, step = _step(which, one.width.shape[1])
            one.width[0, group] = min(max(one.width[0, group] + step, 0), self._narrowest[group])
        elif what < 4 / 6 and one.bits.size:
            layer, step = _step(which, one.bits.shape[1])
            one.bits[0, layer] = min(max(one.bits[0, layer] + step, 0), len(options.bits) - 1)
        elif what < 5 / 6 and one.removed.size:
            block = int(which * one.removed.shape[1])
            one.removed[0, block] = not one.removed[0, block]
        else:
            one.activations[:] = options.activations[int(which * len(options.activations))]

    def _cheap(self, pool: Candidates) -> Floats:
        """(size ratio, latency ratio) of each plan, 0 for what is no objective, [n, 2]."""
        none = np.zeros(len(pool))
        size = self._size.predict(pool) / self._reference.size_bytes if self._weighs else none
        latency = self._latency.predict(pool) if self._times else none
        return np.stack([size, latency], axis=1)

    def _gains(self, mean: Floats, sd: Floats, cheap: Floats) -> Floats:
        """What plans are expected to add after the last stage if their files keep the bounds, [n].

        For a goal there is one last training: a plan adds what it is worth more than the best of those that were
        tried, once its own trial has told its drop.
        """
        bound = self._constraints.max_drop
        if not self._constraints.is_goal:
            gains = expected_gain(mean, sd, cheap, self._within)
            return gains if bound is None else gains * chance_below(bound, mean, sd)
        tried = self._front[self._front[:, 3] == _LOSES_TOO_MUCH]
        best = self._prospects(tried[:, 0], tried[:, 1:3]).max(initial=0.0)
        added = np.zeros(len(mean))
        for node, weight in zip(*_NORMAL, strict=True):
            added += weight * np.maximum(self._prospects(mean + node * sd, cheap) - best, 0.0)
        return added

    def _prospects(self, drop: Floats, cheap: Floats) -> Floats:
        """What plans are worth whose drop after the last training is foreseen, [n]."""
        assert self._constraints.max_drop is not None
        foreseen = np.maximum(drop, 0.0)
        spread = np.maximum(UNSURE * foreseen, SUREST)
        gains = expected_gain(foreseen, spread, cheap, self._within)
        return gains * chance_below(self._constraints.max_drop, foreseen, spread)

    @property
    def _within(self) -> Floats:
        """The front that new plans have to beat, [n, 3]: what breaks a bound takes nothing from what keeps it."""
        return self._front[self._front[:, 3] == _KEEPS, :3]

    def _small(self, pool: Candidates) -> Flags:
        """Whether each plan is expected to keep the bound on the file's bytes."""
        bound = self._constraints.max_size
        return np.full(len(pool), True) if bound is None else self._file.predict(pool) <= bound

    def _fast(self, pool: Candidates) -> Flags:
        """Whether each plan is expected to keep the bound on latency by more than its noise."""
        bound = self._constraints.max_latency
        if bound is None:
            return np.full(len(pool), True)
        return self._latency.predict(pool) <= bound / self._reference.latency_ms / (1 + self._latency.spread)

    def _settings(self) -> dict[str, Any]:
        """Settings of the recovery: mostly the first choices, which are the study file's best guess."""
        found = {}
        for name, choices in self._choices.items():
            usual = self._random.random() < _ORIGINAL
            found[name] = choices[0 if usual else self._random.integers(len(choices))]
        return found


def _step(which: float, count: int) -> tuple[int, int]:
    """(one of `count` places, -1 or 1) for a number in [0, 1), all as likely."""
    place, up = divmod(int(2 * count * which), 2)
    return place, 2 * up - 1


def _keys(options: Options, candidates: Candidates) -> list[bytes]:
    """What makes two plans one: what is inside of a removed block does not."""
    at = options.layout(candidates)
    width, bits = candidates.width * at.groups_left, candidates.bits * at.layers_left
    zeroed = (candidates.zeroed[:, None] * 1000).round()
    rank = candidates.rank * at.layers_left if options.factors else candidates.rank
    parts = np.concatenate([width, bits, candidates.removed, candidates.activations[:, None], zeroed, rank], axis=1)
    return [row.astype(np.int16).tobytes() for row in parts]


def _log_uniform(draw: np.random.Generator, bounds: tuple[float, float], count: int) -> Floats:
    low, high = np.log(bounds)
    drawn: Floats = np.exp(draw.uniform(low, high, count))
    return drawn


def belief_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the sampler believed of a trial, from Optuna's system attributes; empty if it was not its own."""
    found: dict[str, Any] = attributes.get(BELIEF, {})
    return found


assert ACTIVATIONS[0] == "float"  # `Options` and the cost models count on it
