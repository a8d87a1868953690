"""What clients send and what they get, for the checks of requests and for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MAX_DEPTH = 4


def _depth(value: Any) -> int:
    """Levels of lists and tables in a value; stops counting where there are too many."""
    level, depth = [value], 0
    while depth <= _MAX_DEPTH and level:
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewStudy(_Request):
    """A search to start: a built-in study or the text of a study file, and what to change of it."""

    builtin: str | None = Field(None, max_length=100, description="name of a built-in study")
    study_file: str | None = Field(None, description="a study file, as TOML")
    name: str | None = Field(None, max_length=100, description="of the study; the first free one if omitted")
    budget: str | float | None = Field(None, description="wall-clock for everything: 90s, 10m, 2h")
    seed: int | None = None
    max_trials: int | None = None
    device: str | None = Field(None, max_length=100, description="where latency is measured; device.name")
    priority: int = Field(0, ge=-100, le=100, description="higher goes first")
    set: dict[str, Any] = Field(default_factory=dict, max_length=100, description="values by dotted key")

    @field_validator("set")
    @classmethod
    def _shallow(cls, values: dict[str, Any]) -> dict[str, Any]:
        if any(_depth(value) > _MAX_DEPTH for value in values.values()):
            raise ValueError("a value is nested too deeply")
        return values


class Refinement(_Request):
    """A search around one trial of a study."""

    trial: int = Field(ge=0, lt=2**31)
    budget: str | float | None = None
    name: str | None = Field(None, max_length=100)
    priority: int = Field(0, ge=-100, le=100)


class NewExport(_Request):
    """A bundle to make."""

    pick: str | None = Field(None, max_length=40, description="knee, accurate, small, fast or trial:N")
    max_drop: float | None = Field(None, ge=0)
    max_size: str | int | None = None
    max_latency: float | None = Field(None, gt=0)


class JobView(BaseModel):
    """How the latest search of a study stands in the queue."""

    id: str
    state: str
    priority: int
    position: int | None
    attempt: int
    cancel_requested: bool
    actor: str


class StudySummary(BaseModel):
    """A line of the list of studies."""

    id: str
    study: str
    state: str
    stage: str | None
    job: JobView | None
    budget_s: float
    spent_s: float
    deadline: str | None
    now: str
    device: str | None
    created: str
    trials: dict[str, int]
    hypervolume: float | None
    best: list[str]
    error: str | None
    exit_code: int | None = Field(description="of the command line for this error")


class StudyList(BaseModel):
    """A page of studies, newest first."""

    items: list[StudySummary]
    next: str | None


class StudyDetail(StudySummary):
    """A study with its configuration and facts."""

    config: dict[str, Any]
    facts: dict[str, Any] | None
    time: dict[str, float]
    record: dict[str, Any] | None


class TrialList(BaseModel):
    """A page of trials in the order of their numbers, each as `show --json` gives it, without its curve."""

    items: list[dict[str, Any]]
    next: int | None


class ExportView(BaseModel):
    """How an export stands."""

    id: str
    study: str
    state: str
    trial: int | None
    size_bytes: int | None
    error: str | None
    exit_code: int | None = Field(description="of the command line for this error")


class ProblemView(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []
