"""Changing things: start, cancel, resume, refine and delete a search, and make a bundle of a point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from autocompress.config import StudyConfig
from autocompress.errors import UsageError
from autocompress.records import StudyState
from autocompress.service.admission import (
    Asked,
    admit,
    builtin_studies,
    parse_study_file,
    refined,
    validated,
    with_settings,
)
from autocompress.service.jobs import Busy, Job
from autocompress.service.problems import Problem
from autocompress.service.removal import remove_study
from autocompress.service.routes import PROBLEMS, json_response
from autocompress.service.schemas import ExportView, NewExport, NewStudy, Refinement, StudySummary
from autocompress.service.state import Service, actor, service
from autocompress.service.views import study_id
from autocompress.study.store import StudyStore

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)
Key = Annotated[str | None, Header(max_length=200)]
_TRIES = 20
_SUMMARY: dict[int | str, dict[str, Any]] = {201: {"model": StudySummary}}


@router.post("/studies", tags=["studies"], status_code=201, responses=_SUMMARY)
def create(request: Request, asked: NewStudy, idempotency_key: Key = None) -> Response:
    """Start a search; it waits in the queue until its device is free.

    With an `Idempotency-Key`, a request that is sent again gives the same study and starts nothing.
    """
    parts = service(request)
    digest = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
    if idempotency_key and (job := parts.jobs.by_request(idempotency_key)):  # its name is taken by now: by itself
        return _replayed(parts, job, digest)
    parts.check_disk()
    wanted = _wanted(asked)
    for _ in range(_TRIES):
        try:
            job, new = _submit(request, asked, wanted, key=idempotency_key, digest=digest)
        except Busy:  # somebody else took the name that was free a moment ago
            if wanted.named:
                raise
        else:
            break
    else:
        raise Problem(503, "no free name was found; give the study one")
    if not new:
        return _replayed(parts, job, digest)
    budget_s = job.spec["config"]["search"]["budget"]
    parts.note(request, "create", job.study, job=job.id, budget_s=budget_s, priority=job.priority)
    return _started(parts, job)


@router.post("/studies/{identifier}/cancel", tags=["studies"], responses={200: {"model": StudySummary}})
def cancel(request: Request, identifier: str) -> Response:
    """End a search within seconds; what it found stays, and it can be resumed."""
    parts = service(request)
    name = parts.views.name_of(identifier)
    job = parts.jobs.cancel(name)
    if job is None:
        _cancel_by_hand(parts, name)
    parts.scheduler.wake()
    parts.note(request, "cancel", name, job=job.id if job else None)
    return json_response(parts.views.summary(name))


@router.post("/studies/{identifier}/resume", tags=["studies"], status_code=201, responses=_SUMMARY)
def resume(request: Request, identifier: str) -> Response:
    """Go on with an interrupted search, with what is left of its budget."""
    parts = service(request)
    parts.check_disk()
    name = parts.views.name_of(identifier)
    summary, view = parts.views.summary(name), parts.views.view(name)
    if summary["state"] in ("queued", "running", "finalising"):
        raise Problem(409, f"study {name!r} is {summary['state']}")
    if view is not None and view.record.state is StudyState.FINISHED:
        raise Problem(409, f"study {name!r} is finished; start a refined search, or another study")
    before = parts.views.snapshot()[1].get(name)
    config = view.record.config if view else before.spec["config"] if before else {}
    job, _ = parts.jobs.submit(
        name,
        {"config": config, "base": view.record.base if view else None},
        device=summary["device"] or "local",
        actor=actor(request),
        max_queue=parts.settings.max_queue,
    )
    parts.note(request, "resume", name, job=job.id)
    return _started(parts, job)


@router.post("/studies/{identifier}/refine", tags=["studies"], status_code=201, responses=_SUMMARY)
def refine(request: Request, identifier: str, asked: Refinement) -> Response:
    """Start a search around one trial: about as small and fast, with its activations, its bits and the next wider.

    The teacher is the one of the trial's study; none is trained.
    """
    parts = service(request)
    parts.check_disk()
    origin = parts.views.name_of(identifier)
    record, trial = parts.views.store.study(origin), parts.views.store.trial(origin, asked.trial)
    if not record.config["model"]["factory"]:
        raise Problem(409, f"study {origin!r} was started from Python, with a network that only that process has")
    tables = refined(StudyConfig.model_validate(record.config), trial)
    if asked.budget is not None:
        tables = with_settings(tables, {"search.budget": asked.budget})
    teacher = parts.settings.workspace / "artifacts" / origin / "teacher.safetensors"
    if teacher.is_file():  # also one whose training was cut, which no other study takes: the trial was made of it
        tables = with_settings(tables, {"model.weights": str(teacher.absolute())})
    name = asked.name or _free_name(parts, f"{origin}-around-{asked.trial}"[:90])
    if name in parts.views.taken():
        raise Problem(409, f"study {name!r} exists; choose another name", errors=[("name", "taken")])
    config = validated({key: value for key, value in tables.items() if key != "name"}, name=name)
    if config.search.budget > parts.settings.max_budget_s:
        raise Problem(422, "the budget is larger than this server gives", errors=[("search.budget", "too large")])
    job, _ = parts.jobs.submit(
        name,
        {"config": config.model_dump(mode="json"), "base": record.base},
        device=config.device.name,
        actor=actor(request),
        priority=asked.priority,
        max_queue=parts.settings.max_queue,
    )
    parts.note(request, "refine", name, job=job.id, of=origin, trial=asked.trial)
    return _started(parts, job)


@router.delete("/studies/{identifier}", tags=["studies"], status_code=204, response_class=Response)
def delete(request: Request, identifier: str) -> Response:
    """Delete a study that neither waits nor runs, with its trials, files, logs and bundles. Nothing brings it back."""
    parts = service(request)
    name = parts.views.name_of(identifier)
    gone = remove_study(parts.settings.workspace, name)
    parts.note(request, "delete", name, trials=gone.trials, files=gone.files, bytes=gone.size_bytes)
    return Response(status_code=204)


@router.post("/studies/{identifier}/exports", tags=["exports"], status_code=202, responses={202: {"model": ExportView}})
def export(request: Request, identifier: str, asked: NewExport) -> Response:
    """Have a bundle made: the measured file, its card and what is needed to run it, as a zip file."""
    parts = service(request)
    parts.check_disk()
    name = parts.views.name_of(identifier)
    spec = asked.model_dump(exclude_none=True)
    document = parts.exports.ask(name, spec, actor=actor(request))
    parts.note(request, "export", name, export=document["id"], **spec)
    return json_response(document, status=202, headers={"location": f"/api/v1/exports/{document['id']}"})


@router.get("/exports/{identifier}", tags=["exports"], responses={200: {"model": ExportView}})
def export_state(request: Request, identifier: str) -> Response:
    """How an export stands: queued, done or failed."""
    return json_response(service(request).exports.get(identifier))


@router.get("/exports/{identifier}/file", tags=["exports"])
def export_file(request: Request, identifier: str) -> Response:
    """The bundle."""
    parts = service(request)
    document = parts.exports.get(identifier)
    path = parts.exports.file(identifier)
    if path is None:
        status = 410 if document["state"] == "done" else 409
        raise Problem(
            status, "the bundle was removed; make it again" if status == 410 else "the bundle is not made yet"
        )
    parts.note(request, "download", document["study"], export=identifier)
    name = f"{document['study']}-trial-{document['trial']}.zip"
    return FileResponse(path, media_type="application/zip", filename=name)


@router.get("/models", tags=["models"])
def models(request: Request) -> Response:
    """The built-in networks with the schema of their arguments, and the weights that were uploaded for them."""
    found = service(request).models
    architectures = [{"name": name, "args": schema} for name, schema in found.architectures.items()]
    return json_response({"architectures": architectures, "uploaded": found.listed()})


@router.post("/models", tags=["models"], status_code=201)
async def upload_model(
    request: Request,
    architecture: Annotated[str, Query(max_length=100)],
    args: Annotated[str, Query(max_length=4000, description="arguments of the network, as a JSON object")] = "{}",
) -> Response:
    """Upload weights of a built-in network: the body is a safetensors file.

    A study names them with `weights = "model:ID"`, the same network and the same arguments.
    """
    parts = service(request)
    parts.check_disk()
    try:
        given = json.loads(args)
    except (ValueError, RecursionError) as error:
        raise Problem(422, "args is no JSON object", errors=[("args", "is no JSON object")]) from error
    wanted = await run_in_threadpool(parts.models.checked_arguments, architecture, given)
    file = await parts.models.receive(request.stream())
    add = partial(parts.models.add, file, architecture=architecture, args=wanted, actor=actor(request))
    entry, new = await run_in_threadpool(add)
    await run_in_threadpool(partial(parts.note, request, "upload", None, model=entry["id"], bytes=entry["size_bytes"]))
    return json_response({**entry, "weights": f"model:{entry['id']}"}, status=201 if new else 200)


# -- what the routes share


def _submit(request: Request, asked: NewStudy, wanted: Asked, *, key: str | None, digest: str) -> tuple[Job, bool]:
    parts = service(request)
    name = wanted.name if wanted.named else _free_name(parts, wanted.name)
    config = admit(validated(wanted.tables, name=name), parts.settings, models=parts.models)
    if wanted.named and name in parts.views.taken():
        detail = f"study {name!r} exists; choose another name, or resume it"
        raise Problem(409, detail, errors=[("name", detail)])
    return parts.jobs.submit(
        name,
        {"config": config.model_dump(mode="json"), "base": None},
        device=config.device.name,
        actor=actor(request),
        priority=asked.priority,
        max_queue=parts.settings.max_queue,
        request_key=key,
        request_hash=digest,
    )


def _wanted(asked: NewStudy) -> Asked:
    if (asked.builtin is None) == (asked.study_file is None):
        raise Problem(422, "give either builtin or study_file", errors=[("builtin", "give either this or study_file")])
    if asked.builtin is not None:
        known = builtin_studies()
        if asked.builtin not in known:
            detail = f"no built-in study {asked.builtin!r}; there are {', '.join(known)}"
            raise Problem(422, detail, errors=[("builtin", detail)])
        tables = known[asked.builtin]
    else:
        tables = parse_study_file(asked.study_file or "")
    flags = {"search.budget": asked.budget, "search.seed": asked.seed, "search.max_trials": asked.max_trials}
    flags |= {"device.name": asked.device}
    tables = with_settings(tables, {**asked.set, **{k: v for k, v in flags.items() if v is not None}})
    own = tables.pop("name", None)
    named = asked.name or (own if isinstance(own, str) and own else None)
    return Asked(tables=tables, name=named or asked.builtin or "study", named=named is not None)


def _free_name(parts: Service, base: str) -> str:
    taken = parts.views.taken()
    return next(n for i in range(1, len(taken) + 2) if (n := f"{base}-{i}" if i > 1 else base) not in taken)


def _replayed(parts: Service, job: Job, digest: str) -> Response:
    if not parts.jobs.was_asked_by(job, digest):
        raise Problem(422, "this Idempotency-Key was used for another request; send a new key")
    return _started(parts, job, extra={"idempotent-replayed": "true"})


def _started(parts: Service, job: Job, *, extra: Mapping[str, str] | None = None) -> Response:
    parts.scheduler.wake()
    headers = {"location": f"/api/v1/studies/{study_id(job.study)}", **(extra or {})}
    return json_response(parts.views.summary(job.study), status=201, headers=headers)


def _cancel_by_hand(parts: Service, name: str) -> None:
    """Ask a search to end that somebody started beside the queue."""
    view = parts.views.view(name)
    if view is None or view.record.state is not StudyState.RUNNING:
        state = parts.views.summary(name)["state"]
        raise Problem(409, f"study {name!r} is not running, it is {state}; there is nothing to cancel")
    try:
        with StudyStore(parts.settings.workspace) as store:
            store.request_cancel(name)
    except UsageError as error:
        raise Problem(503, str(error)) from error
