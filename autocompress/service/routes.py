"""Reading: studies, trials, fronts, figures and events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from autocompress.bundle import card_text
from autocompress.config import StudyConfig
from autocompress.doctor import devices as local_devices
from autocompress.front.compare import compare_document
from autocompress.front.point import point_document
from autocompress.front.summary import point_of
from autocompress.front.table import trial_columns
from autocompress.records import TrialState
from autocompress.service.admission import DATA_SETS, builtin_studies
from autocompress.service.problems import Problem
from autocompress.service.schemas import ProblemView, StudyDetail, StudyList, TrialList
from autocompress.service.state import is_current, not_modified, service, tagged
from autocompress.service.views import StudyView, as_json

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ProblemView}, "5XX": {"model": ProblemView}}
router = APIRouter(prefix="/api/v1", responses=PROBLEMS)

Limit = Annotated[int, Query(ge=1, le=1000)]


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON without NaN."""
    return Response(as_json(content), status, headers=headers, media_type="application/json")


@router.get("/health", tags=["server"])
def health(request: Request) -> Response:
    """Whether the server works: its queue is looked after, and its database can be read."""
    from autocompress import __version__

    parts = service(request)
    parts.views.snapshot()
    ok = parts.scheduler.alive
    return json_response({"status": "ok" if ok else "failing", "version": __version__}, status=200 if ok else 503)


@router.get("/studies", tags=["studies"], responses={200: {"model": StudyList}})
def studies(
    request: Request, limit: Limit = 50, after: str | None = Query(None, max_length=40), name: str | None = None
) -> Response:
    """Studies, newest first; `after`: the `next` of the page before; `name`: only the study of this name."""
    views = service(request).views
    names = [n for n in views.names() if name is None or n == name]
    if after is not None:
        names = names[names.index(last) + 1 :] if (last := views.name_of(after)) in names else []
    page = [views.summary(n) for n in names[:limit]]
    return json_response({"items": page, "next": page[-1]["id"] if len(names) > limit else None})


@router.get("/studies/{study_id}", tags=["studies"], responses={200: {"model": StudyDetail}})
def study(request: Request, study_id: str) -> Response:
    """A study: its configuration, what the network is made of, what was skipped and why, where the time went."""
    views = service(request).views
    name = views.name_of(study_id)
    return Response(views.detail(name), media_type="application/json")


@router.get("/studies/{study_id}/front", tags=["studies"])
def front(request: Request, study_id: str) -> Response:
    """The Pareto front, exactly as `autocompress front STUDY --json` prints it."""
    views = service(request).views
    name = views.name_of(study_id)
    if (view := views.view(name)) is None:
        raise Problem(409, "the study waits in the queue; it has no front yet")
    spent = round(views.summary(name)["spent_s"])  # the document tells the time that is spent
    etag = f'"front-{view.version}-{spent}"'
    if is_current(request, etag):
        return not_modified(etag)
    document = {**view.document, "spent_s": views.summary(name)["spent_s"]}
    return json_response(document, headers=tagged(etag))


@router.get("/studies/{study_id}/trials", tags=["trials"], responses={200: {"model": TrialList}})
def trials(
    request: Request,
    study_id: str,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    after: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
    state: TrialState | None = None,
) -> Response:
    """Trials in the order of their numbers; `after`: the `next` of the page before."""
    views = service(request).views
    name = views.name_of(study_id)
    view = views.view(name)
    etag = f'"trials-{view.version if view else 0}-{after}-{limit}-{state}"'
    if is_current(request, etag):
        return not_modified(etag)
    rows, following = views.trial_page(name, after=after, limit=limit, state=state) if view else ("[]", None)
    text = f'{{"items":{rows},"next":{json.dumps(following)}}}'
    return Response(text, media_type="application/json", headers=tagged(etag))


@router.get("/studies/{study_id}/trials/{number}", tags=["trials"])
def trial(request: Request, study_id: str, number: int) -> Response:
    """One trial with everything that is known of it: its layers, its curve, why it was tried, and its card."""
    name, view = _begun(request, study_id)
    trials = service(request).views.trials(name)
    document = point_document(view.record, trials, number)
    card = card_text(point_of(next(t for t in trials if t.trial == number)), view.record) if document["words"] else None
    return json_response({"id": study_id, **document, "card": card})


@router.get("/studies/{study_id}/trials/{number}/figures/{figure}", tags=["trials"])
def trial_figure(request: Request, study_id: str, number: int, figure: str) -> Response:
    """A figure of one trial for plotly.js: its layers or its training."""
    name, view = _begun(request, study_id)
    etag = f'"{number}-{figure}-{view.version}"'
    if is_current(request, etag):
        return not_modified(etag)
    from autocompress.figures import point_figure

    document = point_document(view.record, service(request).views.trials(name), number)
    return _drawn(point_figure(figure, document), etag)


@router.get("/studies/{study_id}/table", tags=["trials"])
def table(request: Request, study_id: str) -> Response:
    """All trials as columns, for pages that filter and sort thousands of them."""
    name, view = _begun(request, study_id)
    etag = f'"table-{view.version}"'
    if is_current(request, etag):
        return not_modified(etag)
    views = service(request).views
    text = views.kept(name, "table", lambda: as_json(trial_columns(view.record, views.trials(name))))
    return Response(text, media_type="application/json", headers=tagged(etag))


@router.get("/studies/{study_id}/figures/{figure}", tags=["studies"])
def study_figure(
    request: Request, study_id: str, figure: str, target: Literal["loss", "size", "latency"] = "loss"
) -> Response:
    """A figure for plotly.js: data, layout and config; `target`: what importance is told of."""
    name, view = _begun(request, study_id)
    etag = f'"{figure}-{target}-{view.version}"'
    if is_current(request, etag):
        return not_modified(etag)
    views = service(request).views

    def draw() -> str:
        from autocompress.figures import study_figure

        return _figure_json(study_figure(figure, view.record, views.trials(name), target=target))

    return Response(views.kept(name, f"{figure}/{target}", draw), media_type="application/json", headers=tagged(etag))


async def _admitted(request: Request) -> AsyncIterator[None]:
    """A place among the streams while one lasts; refuses before it begins: later no status is left to say so."""
    parts = service(request)
    if parts.hub.open >= parts.settings.max_streams:
        raise Problem(503, "too many clients listen already; try again later", headers={"retry-after": "10"})
    parts.hub.open += 1
    try:
        yield
    finally:
        parts.hub.open -= 1


def _known(request: Request, study_id: str) -> str:
    return service(request).views.name_of(study_id)


LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=30)]


@router.get(
    "/studies/{study_id}/events", tags=["events"], response_class=EventSourceResponse, dependencies=[Depends(_admitted)]
)
async def study_events(
    request: Request, name: Annotated[str, Depends(_known)], last_event_id: LastId = None
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a study: `trial`, `state`, `front`, `job`, `deleted` and `heartbeat`."""
    async for event in service(request).hub.listen(name, _number(last_event_id)):
        yield event


@router.get("/events", tags=["events"], response_class=EventSourceResponse, dependencies=[Depends(_admitted)])
async def events(request: Request, last_event_id: LastId = None) -> AsyncIterator[ServerSentEvent]:
    """What happens to all studies."""
    async for event in service(request).hub.listen(None, _number(last_event_id)):
        yield event


def _number(last_event_id: str | None) -> int | None:
    return int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 19 else None


Studies = Annotated[list[str], Query(alias="study", min_length=2, max_length=6)]


@router.get("/compare", tags=["studies"])
def compare(request: Request, studies: Studies) -> Response:
    """Studies over one another: who covers how much, who is smaller and faster at which loss, which points match."""
    return json_response(_comparison(request, studies))


@router.get("/compare/figures/{figure}", tags=["studies"])
def comparison_figure(request: Request, figure: str, studies: Studies) -> Response:
    """A figure of several studies for plotly.js."""
    from autocompress.figures import compare_figure

    return _drawn(compare_figure(figure, _comparison(request, studies)), None)


# -- what the server knows


@router.get("/builtins", tags=["server"])
def builtins(request: Request) -> Response:
    """The built-in studies, each with its resolved configuration."""
    found = {
        name: StudyConfig.model_validate({**tables, "name": name}).model_dump(mode="json")
        for name, tables in builtin_studies().items()
    }
    return json_response({"items": [{"name": name, "config": config} for name, config in found.items()]})


@router.get("/data", tags=["server"])
def data_sets(request: Request) -> Response:
    """The data sets that a study of a client may name; `data.factory`."""
    return json_response({"items": [{"name": name} for name in DATA_SETS]})


@router.get("/devices", tags=["server"])
def devices(request: Request) -> Response:
    """Where latency can be measured, and what keeps each device busy."""
    views = service(request).views
    active = [s for s in views.summaries() if s["state"] in ("queued", "running", "finalising")]
    items = [
        {
            **device,
            "running": [s["id"] for s in active if s["device"] == device["name"] and s["state"] != "queued"],
            "queued": sum(s["device"] == device["name"] and s["state"] == "queued" for s in active),
        }
        for device in _devices()
    ]
    return json_response({"items": items, "parallel": service(request).settings.parallel})


@router.get("/schema", tags=["server"])
def schema(request: Request) -> Response:
    """The JSON Schema of a study file."""
    return json_response(StudyConfig.model_json_schema())


@router.get("/metrics", tags=["server"])
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    parts = service(request)
    states: dict[str, float] = {}
    trials: dict[str, float] = {}
    for entry in parts.views.summaries():
        states[f'state="{entry["state"]}"'] = states.get(f'state="{entry["state"]}"', 0) + 1
        for state, count in entry["trials"].items():
            if state != "total":
                trials[f'state="{state}"'] = trials.get(f'state="{state}"', 0) + count
    gauges: dict[str, dict[str, float]] = {
        "jobs": {f'state="{state}"': count for state, count in parts.jobs.counts().items()},
        "studies": states,
        "trials": trials,
        "job_memory_bytes": {f'job="{job}"': size for job, size in parts.scheduler.memory_bytes().items()},
        "event_streams": {"": parts.hub.open},
        "scheduler_alive": {"": float(parts.scheduler.alive)},
    }
    return Response(parts.observer.text(gauges), media_type="text/plain; version=0.0.4")


@router.get("/audit", tags=["server"])
def audit(
    request: Request, limit: Limit = 100, before: Annotated[int | None, Query(ge=0, lt=2**62)] = None
) -> Response:
    """Who did what, newest first; `before`: the `next` of the page before."""
    entries = service(request).audit.read(before=before, limit=limit)
    return json_response({"items": entries, "next": entries[-1]["id"] if len(entries) == limit else None})


@cache
def _devices() -> list[dict[str, str | int]]:
    """What is installed does not change while the server runs."""
    return local_devices()


# -- what the routes share


def _begun(request: Request, study_id: str) -> tuple[str, StudyView]:
    """Name and view of a study that is more than a wish."""
    views = service(request).views
    name = views.name_of(study_id)
    if (view := views.view(name)) is None:
        raise Problem(409, "the study waits in the queue; there is nothing to show yet")
    return name, view


def _comparison(request: Request, identifiers: list[str]) -> dict[str, Any]:
    entries = []
    for identifier in dict.fromkeys(identifiers):
        name, view = _begun(request, identifier)
        entries.append((identifier, view.record, service(request).views.trials(name)))
    return compare_document(entries)


def _figure_json(figure: Any) -> str:
    from autocompress.figures import FIGURE_CONFIG

    return f'{figure.to_json()[:-1]},"config":{json.dumps(FIGURE_CONFIG)}}}'


def _drawn(figure: Any, etag: str | None) -> Response:
    return Response(_figure_json(figure), media_type="application/json", headers=tagged(etag) if etag else None)
