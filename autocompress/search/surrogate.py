"""What is believed of plans that were not trained yet: a Bayesian linear model, exact and updated in place.

Damage to the metric is taken as a sum over groups, layers and activations of what was measured for
each of them alone, times weights that are learned from trained trials.
"""

from __future__ import annotations

import math
from typing import overload

import numpy as np

from autocompress.search.options import Candidates, Floats, Options

_AT_WORST = (0.06, 0.005, 0.002)  # drop at first believed of the narrowest widths, the fewest bits, integer activations
_LOWEST_RANK = 0.03  # the same of the lowest ranks
_ZEROED = 0.05  # drop at first believed of a network with all single weights zero, by the power below
_STEEP = 4.0  # of the share of zeros with which the damage grows
_OWN_WAY = 0.5  # sd of a group's or layer's own weight, relative to its scale
_AT_LEAST = 0.2  # of the scale: no group and no layer is ever free
_MISFIT, _FLOOR = 0.2, 0.001  # sd of a drop that the sum of parts cannot explain: relative, absolute
SUREST = 1e-4  # sd of any belief
_AT_ONCE = 16  # observations for which a covariance is brought up to date
_DECAY = 0.5  # the damage falls with the square root of the training


class LinearBelief:
    """y = w . x with a Gaussian belief about w; each observation costs O(dimensions squared).

    The covariance is brought up to date for several observations at once: the product of a few rows with themselves
    costs hardly more than that of one.

    Args:
        mean, sd: of the independent prior, [dimensions].
    """

    def __init__(self, mean: Floats, sd: Floats) -> None:
        self.mean = np.array(mean, float)
        self._covariance = np.diag(np.square(np.asarray(sd, float)))
        self._since = np.zeros((0, len(self.mean)))  # rows r, one per observation: the covariance less their r r'

    def observe(self, x: Floats, y: float, noise: float) -> None:
        """Learn that `x` [dimensions] gave `y`, give or take `noise` (one sd, above 0)."""
        direction = self._times_covariance(x)
        spread = float(x @ direction) + noise**2
        self.mean += direction * ((y - float(x @ self.mean)) / spread)
        self._since = np.vstack([self._since, direction / math.sqrt(spread)])
        if len(self._since) == _AT_ONCE:
            self._covariance -= self._since.T @ self._since
            self._since = self._since[:0]

    def mean_of(self, x: Floats) -> Floats:
        """Expected y of rows [n, dimensions], [n]."""
        expected: Floats = x @ self.mean
        return expected

    def sd_of(self, x: Floats) -> Floats:
        """Standard deviation of w . x for rows [n, dimensions], [n]; the noise is not in it."""
        return _root((self._times_covariance(x) * x).sum(1))

    def sd(self) -> Floats:
        """Standard deviation of each weight, [dimensions]."""
        return _root(np.diag(self._covariance) - np.square(self._since).sum(0))

    def _times_covariance(self, x: Floats) -> Floats:
        product: Floats = x @ self._covariance - (x @ self._since.T) @ self._since
        return product


def _root(variance: Floats) -> Floats:
    """Square root of what is not negative but for rounding."""
    deviation: Floats = np.sqrt(np.maximum(variance, 0.0))
    return deviation


class DamageModel:
    """How much of the metric a plan loses after its training, from the damage of each part alone.

    Three scales (widths, bits, activations) start at what the first trained trials say; each group and
    each layer may deviate from its scale. Training longer lowers all of it alike.

    Args:
        width: [groups, options] damage of narrowing one group alone, untrained.
        bits: [layers, options] damage of rounding one layer alone, untrained.
        blocks: [blocks] damage of leaving one block out, untrained.
        activations: [kinds] the same for all activations at once.
        rank: [layers, options] damage of factoring one layer alone, untrained.
        learns: False keeps the prior, for comparison.
    """

    def __init__(
        self,
        options: Options,
        *,
        width: Floats,
        bits: Floats,
        blocks: Floats,
        activations: Floats,
        rank: Floats,
        learns: bool = True,
    ) -> None:
        self._options = options
        self.blocks = np.sqrt(np.maximum(blocks, 0.0))
        self.width = np.sqrt(
            np.maximum(width, 0.0)
        )  # training repairs a large damage to a greater part than a small one
        self.bits, self.activations = np.asarray(bits, float), np.asarray(activations, float)
        self._learns = learns
        groups, layers, count = len(self.width), len(self.bits), len(self.blocks)
        worst = np.array([t.max(-1, initial=0.0).sum() for t in (self.width, self.bits, self.activations)])
        scale = np.array(_AT_WORST) / np.maximum(worst, 1e-9)
        own = np.concatenate([np.full(groups, scale[0]), np.full(layers, scale[1]), np.full(count, scale[0])])
        zeros = np.full(int(options.zeroed.any()), _ZEROED)
        self.rank = np.sqrt(np.maximum(rank, 0.0))
        lowest = self.rank.max(-1, initial=0.0).sum()
        ranks = np.full(1 + len(self.rank), _LOWEST_RANK / max(lowest, 1e-9)) if options.factors else np.zeros(0)
        shared = np.arange(len(ranks)) == 0  # one scale for all layers, and what each of them deviates from it
        self._belief = LinearBelief(
            np.concatenate([scale, np.zeros(len(own)), zeros, ranks * shared]),
            np.concatenate([2 * scale, _OWN_WAY * own, zeros, ranks * np.where(shared, 2.0, _OWN_WAY)]),
        )
        self._ranks = len(scale) + len(own) + len(zeros)  # where they begin
        every = np.arange(self._ranks + len(ranks))
        self._jittered = (every > 2) & (every != self._ranks)  # the scales themselves are not drawn

    def observe(self, one: Candidates, drop: float, *, training: float, noise: float) -> None:
        """Learn from one trained trial.

        Args:
            one: its plan, a single one.
            drop: of the metric, 0.01 is one point.
            training: how long it was trained, in units of one trial's usual training.
            noise: standard deviation of `drop` as measured.
        """
        if self._learns:
            features = self._features(one)[0] * training_factor(training)
            believed = max(float(self._belief.mean_of(features)), _FLOOR)
            # between both: a belief that was far too low must give way, and one failed training not overturn it
            middle = math.sqrt(max(drop, _FLOOR) * believed)
            self._belief.observe(features, drop, float(np.hypot(noise, _MISFIT * middle + _FLOOR)))

    def weighed(self, one: Candidates, drop: float, *, training: float, noise: float) -> float:
        """What is believed of the drop of a trained trial, its measurement included; arguments as of `observe`.

        A measurement on few samples is partly luck, and of many trials the luckiest look best. So it is weighed
        against what all trials together say of the plan: noise against what a sum of parts cannot explain.
        """
        if not self._learns:
            return drop
        believed, misfit = after_training(*self.sum_of_parts(one), training)
        trust = float(misfit[0]) ** 2 / (float(misfit[0]) ** 2 + noise**2)
        return float(believed[0]) + trust * (drop - float(believed[0]))

    def predict(self, candidates: Candidates, *, training: float = 1.0) -> tuple[Floats, Floats]:
        """Expected drop and its standard deviation, each [n]."""
        return after_training(*self.sum_of_parts(candidates), training)

    def sum_of_parts(self, candidates: Candidates) -> tuple[Floats, Floats]:
        """What `after_training` takes: mean and standard deviation of the sum after one usual training, each [n]."""
        features = self._features(candidates)
        return self._belief.mean_of(features), self._belief.sd_of(features)

    def mean_sum(self, candidates: Candidates) -> Floats:
        """The mean alone, which takes a small part of the time, [n]."""
        return self._belief.mean_of(self._features(candidates))

    def unlike(self, candidates: Candidates, others: Candidates) -> Floats:
        """How differently what two plans are believed to lose is spread over the network, from 0 to 1, [n, others].

        A plan that rounds one layer of another one further is nearly alike; plans that narrow other groups are not.
        """
        weights = self._belief.mean.copy()
        groups, layers = len(self.width), len(self.bits)
        own = 3 + np.arange(groups + layers + len(self.blocks))
        weights[own] += np.repeat(weights[[0, 1, 0]], (groups, layers, len(self.blocks)))
        weights[:2] = 0.0  # the sums of what stands behind them
        if self._options.factors:
            weights[self._ranks + 1 :] += weights[self._ranks]
            weights[self._ranks] = 0.0
        weights = np.maximum(weights, 0.0)
        ours, theirs = self._features(candidates) * weights, self._features(others) * weights
        both = np.square(ours).sum(1)[:, None] + np.square(theirs).sum(1)
        apart = np.maximum(both - 2 * ours @ theirs.T, 0.0)
        return _root(apart / np.maximum(both, 1e-12))

    def tables(self, jitter: np.random.Generator | None = None) -> tuple[Floats, Floats, Floats, Floats]:
        """Damage per width, bits, block and rank as now believed, or as drawn from the belief: what the solver adds."""
        theta = self._belief.mean
        if jitter is not None:
            theta = theta + self._belief.sd() * jitter.standard_normal(len(theta)) * self._jittered
        groups, layers = len(self.width), len(self.bits)
        floor = _AT_LEAST * np.maximum(theta[:3], 1e-9)
        by_group = np.maximum(theta[0] + theta[3 : 3 + groups], max(floor[0], 1e-6))
        by_layer = np.maximum(theta[1] + theta[3 + groups : 3 + groups + layers], max(floor[1], 1e-6))
        by_block = np.maximum(
            theta[0] + theta[3 + groups + layers : 3 + groups + layers + len(self.blocks)], max(floor[0], 1e-6)
        )
        rank = self.rank
        if self._options.factors:
            scale, deviations = theta[self._ranks], theta[self._ranks + 1 :]
            rank = rank * np.maximum(scale + deviations, max(_AT_LEAST * scale, 1e-6))[:, None]
        return self.width * by_group[:, None], self.bits * by_layer[:, None], self.blocks * by_block, rank

    def _features(self, candidates: Candidates) -> Floats:
        """What a plan chose of each table, first summed by kind, then one by one, and the zeros, [n, parts]."""
        options, rows = self._options, (np.arange(len(self.width)), np.arange(len(self.bits)))
        at = options.layout(candidates)
        per_group = self.width[rows[0], candidates.width] * at.groups_left
        per_layer = self.bits[rows[1], candidates.bits] * at.layers_left
        per_block = self.blocks * candidates.removed
        per_kind = self.activations[candidates.activations]
        sums = np.stack([per_group.sum(1) + per_block.sum(1), per_layer.sum(1), per_kind], axis=1)
        parts = [sums, per_group, per_layer, per_block]
        if options.zeroed.any():
            parts.append(candidates.zeroed[:, None] ** _STEEP)
        if options.factors:
            per_rank = self.rank[rows[1], candidates.rank] * at.layers_left
            parts += [per_rank.sum(1, keepdims=True), per_rank]
        found: Floats = np.concatenate(parts, axis=1)
        return found


def after_training(mean: Floats, sd: Floats, training: float, unlike: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """Expected drop and its standard deviation, what the sum of parts cannot explain included, each [n].

    Args:
        unlike: share of that which is not known from a plan that is alike.
    """
    left = training_factor(training)
    misfit = unlike * (_FLOOR + _MISFIT * np.maximum(left * mean, 0.0))
    return left * mean, np.maximum(np.hypot(left * sd, misfit), SUREST)


@overload
def training_factor(training: float) -> float: ...
@overload
def training_factor(training: Floats) -> Floats: ...
def training_factor(training: float | Floats) -> float | Floats:
    """What is left of the damage after so much training, in units of one trial's usual one."""
    left: Floats = np.maximum(training, 1e-3) ** -_DECAY
    return left


def trained_on(before: float, own: float) -> float:
    """How long one single training takes that brings as much as `own` after a training worth `before`; same unit.

    Each training begins at the full learning rate again and ends at none: what it can do is a matter of its length.
    Four of 2.5 s one after another bring what one of 5 s does, 10 s after 2.5 s what 12.5 s do, and 2.5 s after 12.5 s
    take nothing away.
    """
    return max(before, own + min(before, own))
