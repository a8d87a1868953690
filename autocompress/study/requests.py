"""What the driver and the worker say to each other: plain data, no torch, so the driver starts at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autocompress.config import StudyConfig
from autocompress.front.hypervolume import Direction
from autocompress.plan import CompressionPlan
from autocompress.records import Baseline, Latency, ModelFacts, TrialRecord
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.stopping import Constraints, Rival, Rung

MOST_CASCADES = 3  # of a study
TEACHER_CUT = "the teacher's training was cut"  # how the note of it begins
_TIMING_SHARE = 1 / 240  # of the budget times one file at the end
_SHORTEST_TIMING_S, _LONGEST_TIMING_S = 0.4, 0.8  # the shortest is that of a trial
_FIRST_TIMING_SHARE, _FIRST_TIMING_S = 1 / 120, (0.5, 2.0)  # of the baseline: share of the budget, least and most


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a study's model and data come from.

    Attributes:
        budget_s: of the whole study; training a teacher takes at most a third of it.
        base: folder of the study file, importable while it is loaded.
        pickled: model and data handed over from Python, written by this machine's own process; else None.
    """

    config: StudyConfig
    workspace: Path
    budget_s: float
    base: Path | None = None
    pickled: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the study's artifacts are."""
        return self.workspace / "artifacts" / self.config.name

    @property
    def last_timing_s(self) -> float:
        """How long each file of the front is timed at the end: less in a short study, but never less than a trial's."""
        return max(_SHORTEST_TIMING_S, min(_LONGEST_TIMING_S, self.budget_s * _TIMING_SHARE))

    @property
    def first_timing_s(self) -> float:
        """How long the baseline is timed: its latency is measured once, and so longer than others."""
        least, most = _FIRST_TIMING_S
        return max(least, min(most, self.budget_s * _FIRST_TIMING_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the driver is told before the first trial: facts of the model, the baseline, and seconds per stage."""

    facts: ModelFacts
    baseline: Baseline
    data_sizes: dict[str, int]
    durations_s: dict[str, float]
    sensitivity: Sensitivity | None
    direction: Direction
    device_description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trained trial that another one makes use of."""

    trial: int
    plan: CompressionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One trial to run.

    Attributes:
        train_s: seconds of training; `deadline`: monotonic seconds at which the trial must be over.
        beside_s: seconds that a trial usually takes beside its training.
        rivals: every trained trial so far.
        latency: of this structure, if it was measured before.
        parent: trial whose float weights are cut further and trained on, and its plan; None starts from the teacher's.
        seen: samples that the parent was trained on.
        rung: when to look whether the training is worth its end; None: never.
        anchor: evaluated whatever the stop rule says.
        soup: trained trials of this shape whose weights are averaged; nothing is trained then.
        teachers: trained trials that teach along with the model.
    """

    trial: int
    plan: CompressionPlan
    origin: str
    train_s: float
    deadline: float
    beside_s: float = 0.0
    rivals: tuple[Rival, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)
    latency: Latency | None = None
    parent: int | None = None
    parent_plan: CompressionPlan | None = None
    seen: int = 0
    rung: Rung | None = None
    anchor: bool = False
    soup: tuple[Member, ...] = ()
    teachers: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeRequest:
    """One cascade to make of results that are there.

    Attributes:
        trial: its number.
        members: results that may become parts, each with a file.
        rivals: every result so far, the members among them.
        joined: (first, second) of the pairs that were tried before.
        deadline: monotonic seconds after which none is begun.
    """

    trial: int
    members: tuple[TrialRecord, ...]
    rivals: tuple[Rival, ...]
    constraints: Constraints
    deadline: float
    joined: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The final look at one artifact: its metric on test data, the interval of that, and a fresh latency or None."""

    test: float
    latency: Latency | None
    test_ci: tuple[float, float] | None = None
