"""What the files of plans are expected to weigh and take, against the baseline's and the bounds of a study.

Both are known almost exactly before any training: the models behind this are corrected by every file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress.front.hypervolume import Direction
from autocompress.search.cost import LatencyModel, SizeModel
from autocompress.search.options import Candidates, Flags, Floats, Options
from autocompress.search.stopping import Constraints


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What trials are compared with.

    Attributes:
        metric, size_bytes, latency_ms: of the baseline; bytes of the zipped file where "compressed" is an objective.
        objectives: of the study, in the order of its values.
        noise: standard deviation of a measured drop.
        latency_noise: of a measured latency, relative.
        train_s: training of one trial in seconds, by which all others are counted.
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


class Files:
    """What is foreseen of the files of plans.

    Attributes:
        size: model of the bytes that are an objective; `file`: of those that `max_size` is about, mostly the same.
        latency: of the ratio to the baseline's latency.
        weighs, times: whether size and latency are objectives.
    """

    def __init__(self, options: Options, reference: Reference, constraints: Constraints) -> None:
        self._reference, self._constraints = reference, constraints
        zipped = "compressed" in reference.objectives
        self.size = SizeModel(options, zipped=zipped)
        self.file = SizeModel(options) if zipped else self.size
        self.latency = LatencyModel(options, noise=reference.latency_noise)
        self.weighs = bool({"size", "compressed"} & set(reference.objectives))
        self.times = "latency" in reference.objectives

    def learn_size(self, one: Candidates, size: float | None, file_bytes: float | None) -> None:
        """Learn from one file: bytes of the objective and of the file itself, as far as they are known."""
        if size is not None:
            self.size.observe(one, np.array([size]))
        if file_bytes is not None and self.file is not self.size:
            self.file.observe(one, np.array([file_bytes], float))

    def learn_latency(self, one: Candidates, latency_ms: float) -> None:
        """Learn from one file."""
        self.latency.observe(one, np.array([latency_ms / self._reference.latency_ms]))

    def ratios(self, pool: Candidates) -> Floats:
        """(size ratio, latency ratio) of each plan, 0 for what is no objective, [n, 2]."""
        none = np.zeros(len(pool))
        size = self.size.predict(pool) / self._reference.size_bytes if self.weighs else none
        latency = self.latency.predict(pool) if self.times else none
        return np.stack([size, latency], axis=1)

    def small(self, pool: Candidates) -> Flags:
        """Whether each plan is expected to keep the bound on the file's bytes."""
        bound = self._constraints.max_size
        return np.full(len(pool), True) if bound is None else self.file.predict(pool) <= bound

    def fast(self, pool: Candidates) -> Flags:
        """Whether each plan is expected to keep the bound on latency by more than its noise."""
        bound = self._constraints.max_latency
        if bound is None:
            return np.full(len(pool), True)
        return self.latency.predict(pool) <= bound / self._reference.latency_ms / (1 + self.latency.spread)
