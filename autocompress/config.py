"""One schema for a study, whatever it came from: a TOML file, `--set`, the environment or Python.

Says what a study file may contain and what the defaults are. It does not import the model or
read the data; `zoo/factory.py` and `recover/data.py` do that.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from autocompress.errors import UsageError
from autocompress.plan import Activations, Importance, Levels, Rounding, SparsityKind

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d)?\s*")
_DURATION_S = {"s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(b|kb|mb|gb)?\s*", re.IGNORECASE)
_SIZE_BYTES = {"b": 1, "": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
SHARE_METRICS = ("accuracy", "balanced_accuracy", "recall", "f1")  # larger is better, from 0 to 1
ERROR_METRICS = ("mse", "mae")  # smaller is better
BUILTIN_METRICS = (*SHARE_METRICS, "topK_accuracy", *ERROR_METRICS)
_OBJECTIVES = ("accuracy", "size", "compressed", "latency")
_TOP_K = re.compile(r"top([1-9]\d*)_accuracy")
SAMPLERS = ("front", "knobs", "gp", "tpe", "nsga2", "random", "sweep")


def parse_duration(value: Any) -> float:
    """Seconds of "90s", "10m", "2h", "1d" or a plain number.

    Raises:
        ValueError: not a duration, or not above 0.
    """
    match = _DURATION.fullmatch(str(value).lower()) if not isinstance(value, bool) else None
    seconds = float(match[1]) * _DURATION_S[match[2]] if match else 0.0
    if not match or seconds <= 0:
        raise ValueError(f"a duration above 0 such as 90s, 10m or 2h was expected, got {value!r}")
    return seconds


def parse_size(value: Any) -> int | None:
    """Bytes of "50kB", "1.5MB" (1 kB is 1000 bytes) or a plain number.

    Raises:
        ValueError: not a size, or not above 0.
    """
    if value is None:
        return None
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    size = int(float(match[1]) * _SIZE_BYTES[(match[2] or "").lower()]) if match else 0
    if not match or size <= 0:
        raise ValueError(f"a size above 0 such as 50kB or 1.5MB was expected, got {value!r}")
    return size


def top_k(metric: str) -> int | None:
    """K of "top5_accuracy"; None for every other metric."""
    match = _TOP_K.fullmatch(metric)
    return int(match[1]) if match else None


def is_builtin_metric(metric: str) -> bool:
    """Whether a metric's name is known here; every other is a function of the user's own."""
    return metric in SHARE_METRICS + ERROR_METRICS or top_k(metric) is not None


def is_minimized(metric: str, direction: str | None) -> bool:
    """Whether smaller values are better: built-in metrics know it, `direction` says it of any other."""
    return metric in ERROR_METRICS or direction == "minimize"


Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Size = Annotated[int | None, BeforeValidator(parse_size)]


class Table(BaseModel):
    """A table of the study file: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class ModelConfig(Table):
    """`[model]`: where the trained network comes from."""

    factory: str = Field("", description='"package.module:function" returning an nn.Module, or a built-in network')
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    weights: str | None = Field(None, description="safetensors, or a state-dict .pt; omitted: the teacher is trained")
    epochs: int = Field(8, ge=1, description="epochs for training the teacher when no weights are given")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate for training the teacher")


class TeacherNetwork(Table):
    """One of `[teacher]` networks."""

    factory: str = Field(description='"package.module:function" returning an nn.Module, or a built-in network')
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    weights: str = Field(description="safetensors, or a state-dict .pt")


class TeacherConfig(Table):
    """`[teacher]`: who teaches the compressed networks, if it is not the model itself."""

    networks: tuple[TeacherNetwork, ...] = Field(
        (), description='[{ factory = "...", weights = "..." }]: trained networks with the outputs of the model'
    )
    with_model: bool = Field(False, description="the model teaches along with them; several teach their mean")


class DataConfig(Table):
    """`[data]`: what the network was trained for."""

    factory: str = Field("", description='a built-in data set by name, or "package.module:function"')
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    download: bool = Field(False, description="let a data set fetch its files from the internet")
    augment: Literal["none", "hflip", "shift", "hflip+shift"] = Field(
        "none", description="random changes of training images, in trainings of a teacher and of 20 epochs or more"
    )
    val_share: float = Field(0.1, gt=0, lt=1, description="share of train used for validation if there is no val")
    test_share: float = Field(0.1, gt=0, lt=1, description="share of train used as test if there is no test")
    max_val: int = Field(5000, ge=1, description="validation samples used to judge a trial, at most")


class TaskConfig(Table):
    """`[task]`: how good an artifact is."""

    metric: str = Field("accuracy", description=f'one of {", ".join(BUILTIN_METRICS)}, or "module:function"')
    direction: Literal["maximize", "minimize"] | None = Field(
        None, description="for a metric of your own; built-in metrics know theirs"
    )
    kind: Literal["auto", "classification", "multilabel", "regression"] = Field(
        "auto", description="what the targets are, and so the loss; auto: told by them and the metric"
    )

    @model_validator(mode="after")
    def _known_metric(self) -> TaskConfig:
        if not is_builtin_metric(self.metric) and ":" not in self.metric:
            raise ValueError(_unknown("metric", self.metric, BUILTIN_METRICS) + ', or "module:function"')
        errors = self.metric in ERROR_METRICS
        if (errors and self.kind in ("classification", "multilabel")) or (
            is_builtin_metric(self.metric) and not errors and self.kind == "regression"
        ):
            raise ValueError(f"{self.metric} does not measure a {self.kind}; leave task.kind out")
        return self


class DeviceConfig(Table):
    """`[device]`: where latency is measured."""

    name: str = Field("local", description="the machine that runs the search")
    runtime: str = Field("onnxruntime", description="what executes the artifact")
    threads: int = Field(1, ge=1, description="threads of the runtime while latency is measured")
    batch: int = Field(1, ge=1, description="samples per run while latency is measured")

    @model_validator(mode="after")
    def _known(self) -> DeviceConfig:
        if self.name != "local":
            raise ValueError(_unknown("device", self.name, ("local",)))
        if self.runtime not in ("onnxruntime", "openvino"):
            raise ValueError(_unknown("runtime", self.runtime, ("onnxruntime", "openvino")))
        return self


class SpaceConfig(Table):
    """`[space]`: what is searched, and in which range.

    A list with one entry is not searched. The first entry is what the references and the uniform sweep use, which have
    bits and activations of their own.
    """

    max_prune_ratio: float = Field(0.9, ge=0, lt=1, description="largest share of channels removed from a group")
    round_to: int = Field(8, ge=1, description="widths are multiples of this (4 below 32 channels)")
    weight_bits: tuple[Literal[1, 2, 3, 4, 5, 6, 8, 16, 32], ...] = Field((3, 4, 8, 32), min_length=1)
    activations: tuple[Activations, ...] = Field(
        ("float", "uint8", "dynamic"),
        min_length=1,
        description="of the whole network; dynamic: where matrix products do most of the work",
    )
    levels: tuple[Levels, ...] = Field(
        ("uniform",), min_length=1, description="of weights with 2 to 6 bits: uniform, codebook (k-means), power_of_two"
    )
    rounding: tuple[Rounding, ...] = Field(
        (), description="nearest or feedback, below 8 bits; empty: feedback where no batch norms make up for rounding"
    )
    sparsity: tuple[Share, ...] = Field(
        (0.0,), min_length=1, description="shares of single weights that are zeroed; only a zipped file gets smaller"
    )
    sparsity_kind: tuple[SparsityKind, ...] = Field(
        ("magnitude",), min_length=1, description="how they are chosen: magnitude, fisher, or the pattern 2:4 or 1:4"
    )
    rank_ratio: tuple[Share, ...] = Field(
        (),
        description="shares of a layer that two factors of low rank save, 0: it stays whole; empty: 0, 0.7 and 0.9 for "
        "wide linear layers where they hold most of the weights",
    )
    importance: tuple[Importance, ...] = Field(("l1",), min_length=1)
    temperature: tuple[float, ...] = Field((4.0, 2.0, 8.0), min_length=1, description="distillation temperatures")
    distill_weight: tuple[float, ...] = Field((0.9,), min_length=1, description="weights of the soft targets")
    hints: tuple[NotNegative, ...] = Field(
        (0.0,), min_length=1, description="weights of hints from inside the teacher; 0: none"
    )
    attention: tuple[NotNegative, ...] = Field(
        (0.0,), min_length=1, description="weights of attention transfer; 0: none"
    )
    mean_teacher: tuple[NotNegative, ...] = Field(
        (0.0,), min_length=1, description="weights of a running average of the student as a second teacher; 0: none"
    )
    learning_rate: tuple[float, ...] = Field((2e-3,), min_length=1, description="peak learning rates of the recovery")
    remove_blocks: bool = Field(True, description="whether whole residual blocks may be left out")
    skip: tuple[str, ...] = Field((), description="layers that are left as they are, by name")


class SearchConfig(Table):
    """`[search]`: how long, towards what, and by which sampler."""

    budget: Duration = Field("10m", description="wall-clock for everything: 90s, 10m, 2h")  # type: ignore[assignment]
    objectives: tuple[Literal["accuracy", "size", "compressed", "latency"], ...] = Field(
        ("accuracy", "size", "latency"),
        description="what the front is over; accuracy is the task's metric, compressed, instead of size, a zipped file",
    )
    sampler: Literal["front", "knobs", "gp", "tpe", "nsga2", "random", "sweep"] = Field(
        "front", description="what proposes plans after the anchors; sweep: nothing does"
    )
    sweep: int = Field(3, ge=0, le=14, description="uniform plans to try; front proposes after the first")
    without: tuple[Literal["solver", "surrogate", "compensation", "ladder", "stop", "inherit", "blocks"], ...] = Field(
        (), description="parts of the engine to leave out, to see what they are worth"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    max_trials: int | None = Field(None, ge=1, description="end after so many trials, of whatever origin but cascades")
    train_s: float | None = Field(
        None, gt=0, description="seconds of training per trial; omitted: from the budget, less at first"
    )
    final_share: float = Field(
        0.45, ge=0, le=0.8, description="share of the time that the final stage has at least, once all is prepared"
    )
    soup: bool = Field(False, description="average the weights of trained networks of one shape before the last look")
    front_teacher: bool = Field(False, description="the best of the front teach along in the last trainings")
    cascade: bool = Field(
        False, description="join two of the front in one file: the second answers where the first is unsure"
    )
    batch_size: int = Field(128, ge=1, description="samples per training step")
    max_drop: float | None = Field(None, ge=0, description="largest loss of the metric; 0.01 is one point of accuracy")
    max_size: Size = Field(None, description="largest artifact: 50kB")
    max_latency: float | None = Field(None, gt=0, description="largest latency in milliseconds")

    @field_validator("objectives", mode="after")
    @classmethod
    def _in_order(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        """Accuracy first, whatever the file's order: values are told to the sampler in this one."""
        return tuple(sorted(objectives, key=_OBJECTIVES.index))

    @model_validator(mode="after")
    def _needs_accuracy(self) -> SearchConfig:
        if "accuracy" not in self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(
                "objectives must name accuracy, and size, latency or both, each once; "
                "the smallest and fastest model without accuracy is an empty file"
            )
        if len(self.objectives) < 2:
            raise ValueError("objectives must name size, latency or both beside accuracy; there is no front otherwise")
        if {"size", "compressed"} <= set(self.objectives):
            raise ValueError(
                "objectives must name size or compressed, not both: a front has one axis for bytes; "
                "the other one is stored and shown all the same"
            )
        return self


class StudyConfig(Table):
    """Everything a study needs to know before it starts."""

    name: str = ""
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    device: DeviceConfig = DeviceConfig()
    space: SpaceConfig = SpaceConfig()
    search: SearchConfig = SearchConfig()

    def digest(self) -> str:
        """Short hash of everything that decides the result; the name of the study does not."""
        text = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_config(
    data: Mapping[str, Any], *, name: str, overrides: tuple[str, ...] = (), origin: str = "study"
) -> StudyConfig:
    """Validate the tables of a study file.

    Args:
        data: what the TOML file holds.
        name: name of the study where the file gives none.
        overrides: "table.key=value" texts; the value is read as TOML, and as a string if it is none.
        origin: what to call the input in an error.
    Raises:
        UsageError: naming the key, what was wrong with it and the nearest known one.
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in data.items()}
    for text in overrides:
        _apply_override(merged, text)
    merged.setdefault("name", name)
    try:
        return StudyConfig.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(error, origin)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the study file {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}; `autocompress init` writes a correct one") from error


def parse_override(text: str) -> tuple[str, str, Any]:
    """Table, key and value of "table.key=value"; the value is read as TOML, and as a string if it is none.

    Raises:
        UsageError: it has another form.
    """
    key, equals, value = text.partition("=")
    table, dot, field = key.strip().partition(".")
    if not (equals and dot and field):
        raise UsageError(f"--set takes table.key=value, got {text!r}; for example --set search.sampler=tpe")
    try:
        return table, field, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return table, field, value


def _apply_override(merged: dict[str, Any], text: str) -> None:
    table, field, parsed = parse_override(text)
    target = merged.setdefault(table, {})
    if not isinstance(target, dict):
        raise UsageError(f"--set {text}: {table!r} is not a table; {_unknown('table', table, _tables())}")
    target[field] = parsed


def tables_with(key: str) -> list[str]:
    """The tables of a study file that have such a key."""
    return [table for table in _tables() if key in _keys(table)]


def _tables() -> tuple[str, ...]:
    return tuple(n for n in StudyConfig.model_fields if n != "name")


def _keys(table: str) -> tuple[str, ...]:
    return tuple(StudyConfig.model_fields[table].annotation.model_fields)  # type: ignore[union-attr]


def _unknown(what: str, got: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {got!r}; {hint}known are {', '.join(known)}"


def _explain(error: ValidationError, origin: str) -> str:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        table, _, key = location.rpartition(".")
        known = _keys(table) if table in StudyConfig.model_fields else tuple(StudyConfig.model_fields)
        return f"{origin}: in [{table or 'the top level'}], {_unknown('key', key, known)}"
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"{origin}: {location}: {message}, got {first['input']!r}"
        if "got" not in message and "unknown" not in message
        else f"{origin}: {location}: {message}"
    )
