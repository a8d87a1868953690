"""Errors as a client sees them: RFC 9457 problem documents, with the field of the study file that is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from autocompress.errors import AutocompressError, ConstraintError, NotFoundError, UsageError
from autocompress.service.jobs import Busy, KeyReused, QueueFull

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[AutocompressError], int], ...] = (
    (NotFoundError, 404),
    (ConstraintError, 422),
    (Busy, 409),
    (KeyReused, 422),
    (QueueFull, 429),
    (UsageError, 422),
)


class Problem(HTTPException):  # of that kind, so that FastAPI lets one pass that a body raises
    """Something that a client should know.

    Args:
        status: HTTP status.
        detail: one sentence and the next step.
        errors: (field, what is wrong with it); a field is a dotted key of the study file or of the request.
    """

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[tuple[str, str]] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = tuple(errors)


def problem_response(problem: Problem) -> Response:
    """The document of a problem."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status_code).phrase,
        "status": problem.status_code,
        "detail": problem.detail,
    }
    if problem.errors:
        document["errors"] = [{"field": field, "detail": detail} for field, detail in problem.errors]
    return Response(
        json.dumps(document), problem.status_code, headers=dict(problem.headers or {}), media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Turn every exception of the app into a problem document."""

    @app.exception_handler(Problem)
    async def _problem(_request: Request, error: Problem) -> Response:
        return problem_response(error)

    @app.exception_handler(AutocompressError)
    async def _ours(_request: Request, error: AutocompressError) -> Response:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        return problem_response(Problem(status, str(error)))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        errors = [(_field(entry["loc"]), str(entry["msg"])) for entry in error.errors()[:20]]
        first = f"{errors[0][0]}: {errors[0][1]}" if errors else "the request is not valid"
        return problem_response(Problem(422, first, errors=errors))

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        return problem_response(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})))


def _field(location: Sequence[Any]) -> str:
    """("body", "search", "budget") as "search.budget"."""
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return ".".join(parts) or "body"
