"""The facts that a study leaves behind: plain frozen data, JSON both ways, no torch and no database.

Stages hand these to each other, the store writes them, and the command line, the figures and the
bundle read them. Units are in the names: bytes, milliseconds, seconds; shares are 0 to 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from autocompress.plan import CompressionPlan

OBJECTIVES = ("accuracy", "size", "latency")  # of a study that does not say


class TrialState(StrEnum):
    """How a trial ended. `stopped`: not worth training; `infeasible`: breaks a constraint or cannot be built."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    INFEASIBLE = "infeasible"
    FAILED = "failed"


class StudyState(StrEnum):
    """Where a study stands. `interrupted` can be resumed."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Record:
    """JSON both ways for frozen dataclasses made of plain values, plans and other records."""

    def to_dict(self) -> dict[str, Any]:
        return {f.name: _to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Unknown keys are dropped, so that an older program reads what a newer one wrote."""
        hints = _hints(cls)  # type: ignore[arg-type]
        names = [f.name for f in dataclasses.fields(cls) if f.name in data]  # type: ignore[arg-type]
        return cls(**{name: _from_json(hints[name], data[name]) for name in names})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)  # evaluates text: a study has a hundred records, a workspace thousands


def finite(value: Any) -> Any:
    """Plain values as JSON has them: no NaN and no infinity, what could not be measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, tuple | list) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, Record | CompressionPlan):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(v) for v in value]
    return value


def _from_json(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _from_json(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        return tuple(_from_json(args[0], v) for v in value)
    if isinstance(hint, type) and issubclass(hint, Record | CompressionPlan):
        return hint.from_dict(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Record):
    """One timing of a candidate interleaved with the baseline.

    Attributes:
        latency_ms: `ratio` times the baseline's own latency.
        ratio: median over blocks of candidate / baseline.
        ratio_ci: 95 % bootstrap interval of that median.
        blocks: how many interleaved blocks were kept.
        contended: another process had the core during the measurement, also after the repeats.
    """

    latency_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    blocks: int
    contended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Record):
    """What was measured on one artifact.

    Attributes:
        val: the study's metric on validation data, computed by the runtime from the file; None before training.
        test: the same on test data; only the final stage looks at it.
        val_ci, test_ci: their 95 % intervals over samples; None for a metric of one's own.
        size_bytes: bytes of the exported file; `compressed_bytes`: of the same file zipped (zlib level 9).
        macs: multiply-accumulates for one sample.
    """

    val: float | None
    size_bytes: int
    compressed_bytes: int
    latency: Latency
    params: int
    macs: int
    test: float | None = None
    val_ci: tuple[float, float] | None = None
    test_ci: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade(Record):
    """Two networks of a study in one file: the first answers, and the second where the first is unsure.

    Attributes:
        first, second: trials whose files were joined; 0 is the dense model.
        threshold: of the first one's largest softmax probability; below it the second one answers.
        passed_on: share of the validation samples that the second one answers.
        second_plan: of the second network; the trial's own plan is that of the first.
        samples: of the validation data that the mean latency was first measured on, at most.
        passed_on_ms: latency of a sample that the second one answers: of both files, as they were timed alone.
    """

    first: int
    second: int
    threshold: float
    passed_on: float
    second_plan: CompressionPlan
    samples: int = 0
    passed_on_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord(Record):
    """One trial, finished or not.

    Attributes:
        trial: number in the study, from 0.
        origin: "baseline", "anchor" (the plans everybody would try), "search", "longer" (trained longer
            during the search), "final" (by the last stage), "variant" (a trained network with other bits), "soup" (the
            mean of several networks' weights) or "cascade" (two networks in one file).
        parent: the trial whose weights this one started from; None: the teacher's.
        trained_s: seconds of training in its weights, those of its parents included.
        equivalent_s: seconds of one single training that brings as much as these one after another.
        trained_samples: that those trainings have seen.
        rung_drop: of the metric, on a part of the validation data when a part of the training was done.
        rung_s: seconds of the training until then, that look included.
        belief: what the sampler expected of the plan: drop, sd, size_ratio, latency_ratio, gain, source.
        reason: why a trial was stopped, is infeasible or failed; how it was measured otherwise.
        artifact: path of the exported file relative to the workspace.
        widths: channels kept per group; 0 for a group that went with a removed block.
        durations_s: seconds per stage: prune, emit, latency, train, check, quality.
        spent_s: seconds of the study's budget spent when the trial ended.
        learning_curve: (seconds of training, loss), thinned.
        cascade: what was joined, where the file holds two networks; `plan` and `widths` are then the first one's.
    """

    trial: int
    state: TrialState
    plan: CompressionPlan
    origin: str = "search"
    parent: int | None = None
    reason: str = ""
    measurement: Measurement | None = None
    artifact: str | None = None
    widths: dict[str, int] = field(default_factory=dict)
    durations_s: dict[str, float] = field(default_factory=dict)
    spent_s: float = 0.0
    learning_curve: tuple[tuple[float, float], ...] = ()
    trained_s: float = 0.0
    equivalent_s: float = 0.0
    trained_samples: int = 0
    rung_drop: float | None = None
    rung_s: float | None = None
    belief: dict[str, Any] = field(default_factory=dict)
    cascade: Cascade | None = None

    def structure_key(self) -> str:
        """Digest of what decides bytes and latency. The time of a cascade depends on its weights: each has its own."""
        return self.plan.structure_key() if self.cascade is None else f"cascade-{self.trial}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorFacts(Record):
    """How a layer becomes two of low rank.

    Attributes:
        taps: of the kernel that the first one has: all of 1, k of k x k.
        places: at which the first one is computed, per place of the layer's output; above 1 with a stride.
    """

    taps: int = 1
    places: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts(Record):
    """A layer with weights.

    Attributes:
        kind: "conv", "depthwise" or "linear".
        group: the group its outputs belong to.
        in_channels: input channels that each output sees.
        positions: places of the output at which it is computed, for one sample; 49 for 7x7.
        sources: by group, input channels that go when one of the group's channels goes.
        factors: how it may be factored; None where it may not be, or that was not asked for.
    """

    name: str
    kind: str
    weights: int
    out_channels: int
    group: str | None = None
    in_channels: int = 1
    positions: int = 1
    sources: dict[str, float] = field(default_factory=dict)
    factors: FactorFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts(Record):
    """Layers whose channels shrink together. Widths are multiples of `granule`, at least one of it."""

    name: str
    channels: int
    granule: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFacts(Record):
    """A residual block that can be left out as a whole: without it, its input goes on as it is.

    Attributes:
        layers: its Conv and Linear layers.
        groups: the groups that live entirely inside; those that its input and output belong to reach beyond it.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip(Record):
    """Something that is left as it is.

    `what`: "prune", "quantize" (its weights), "integers" (its arithmetic) or "factor".
    """

    name: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts(Record):
    """What the space was built from: layers, groups and blocks in the order of the model, what is skipped and why.

    Attributes:
        batch_norms: whether there are any; studies that are older than this do not say.
    """

    layers: tuple[LayerFacts, ...]
    groups: tuple[GroupFacts, ...]
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockFacts, ...] = ()
    batch_norms: bool = True

    def layers_in(self, blocks: Collection[str]) -> frozenset[str]:
        """Layers that go with these blocks."""
        return frozenset(layer for block in self.blocks if block.name in blocks for layer in block.layers)

    def groups_in(self, blocks: Collection[str]) -> frozenset[str]:
        """Groups that go with these blocks."""
        return frozenset(group for block in self.blocks if block.name in blocks for group in block.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts(Record):
    """Where latency is measured."""

    name: str = "local"
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline(Record):
    """The dense artifact, measured like every other.

    Attributes:
        compressed_bytes: 0 in studies older than that number.
        latency_sd: relative standard deviation of a timing, from the baseline timed against itself.
    """

    metric: str
    val: float
    test: float | None
    size_bytes: int
    latency_ms: float
    params: int
    macs: int
    artifact: str
    val_ci: tuple[float, float] | None = None
    test_ci: tuple[float, float] | None = None
    compressed_bytes: int = 0
    latency_sd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord(Record):
    """A study as its readers see it.

    Attributes:
        config: the resolved `StudyConfig` as JSON values.
        durations_s: seconds of the budget per stage of the study: setup, teacher, baseline, search, final.
        versions: of Python and the libraries that decide the numbers.
        data_sizes: samples per split, "train", "val" and "test".
        base: folder of the study file, which its paths and modules are relative to.
    """

    name: str
    state: StudyState
    seed: int
    config: dict[str, Any]
    config_hash: str
    budget_s: float
    spent_s: float
    created: str
    device: DeviceFacts
    objectives: tuple[str, ...] = OBJECTIVES
    baseline: Baseline | None = None
    facts: ModelFacts | None = None
    durations_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data_sizes: dict[str, int] = field(default_factory=dict)
    message: str = ""
    base: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint(Record):
    """One non-dominated artifact, with everything the contract's JSON says of it."""

    trial: int
    val: float
    test: float | None
    size_bytes: int
    compressed_bytes: int
    latency_ms: float
    latency_ratio: float
    latency_ratio_ci: tuple[float, float]
    params: int
    macs: int
    artifact: str
    origin: str
    plan: CompressionPlan
    val_ci: tuple[float, float] | None = None
    test_ci: tuple[float, float] | None = None
    cascade: Cascade | None = None


def weighed_bytes(measured: Measurement | FrontPoint | Baseline, objectives: Collection[str]) -> int:
    """The bytes that count in a study: of the zipped file where that is an objective, else of the file."""
    return measured.compressed_bytes if "compressed" in objectives else measured.size_bytes


def cheap_ratios(
    measured: Measurement | FrontPoint, baseline: Baseline, objectives: Collection[str]
) -> tuple[float, float]:
    """(bytes, latency) over the baseline's, those that count in a study; 0 for what is no objective of it."""
    latency = measured.latency_ratio if isinstance(measured, FrontPoint) else measured.latency.ratio
    weighs = not {"size", "compressed"}.isdisjoint(objectives)
    size = weighed_bytes(measured, objectives) / max(1, weighed_bytes(baseline, objectives)) if weighs else 0.0
    return size, latency if "latency" in objectives else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Record):
    """What a study is doing now. `stage`: setup, teacher, baseline, search, final or finished."""

    stage: str
    message: str
    spent_s: float
    budget_s: float
