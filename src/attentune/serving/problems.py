"""Errors as problem documents (RFC 9457): what was wanted and what was found, nothing of the inside."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from attentune.errors import AttentuneError, ConflictError, OverloadedError, StorageError, UnknownTaskError

log = logging.getLogger(__name__)


STATUSES: tuple[tuple[type[AttentuneError], int], ...] = (
    (UnknownTaskError, 404),
    (ConflictError, 409),
    (OverloadedError, 503),
    (StorageError, 503),
)
"""Of errors; all others are 422. A later try may succeed where it is 503."""
AGAIN = {"Retry-After": "1"}


class ProblemDocument(BaseModel):
    """What a request is refused with (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is nothing at /v1/task; /docs says what there is",
                }
            ]
        }
    )
    type: str
    title: str
    status: int
    detail: str


class Problem(JSONResponse):
    """application/problem+json."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        document = ProblemDocument(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
        super().__init__(document.model_dump(), status, headers)


class Refused(Exception):  # noqa: N818, it is an answer and not a fault
    """A request that is answered by a problem document."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def status_of(error: AttentuneError) -> int:
    """The HTTP status of what attentune refuses."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 422)


def headers_of(status: int) -> dict[str, str] | None:
    """What stands beside a problem of that status."""
    return AGAIN if status == 503 else None


def describe(error: Exception) -> dict[str, Any]:
    """An error as an item of an answer: {"status", "detail"}."""
    if isinstance(error, AttentuneError):
        return {"status": status_of(error), "detail": _told(error)}
    return {"status": 500, "detail": "the answer could not be computed"}


def _told(error: AttentuneError) -> str:
    return f"{error}; /v1/tasks lists those there are" if isinstance(error, UnknownTaskError) else str(error)


def install(app: FastAPI) -> None:
    """Let every error of an app end in a problem document."""

    async def refused(_: Request, error: Any) -> Problem:
        return Problem(error.status, error.detail, error.headers)

    async def ours(_: Request, error: Any) -> Problem:
        status = status_of(error)
        return Problem(status, _told(error), headers_of(status))

    async def invalid(_: Request, error: Any) -> Problem:
        return Problem(422, _fault(error.errors()))

    async def http(request: Request, error: Any) -> Problem:
        headers, detail, path = dict(error.headers or {}), str(error.detail), request.scope["path"]
        if error.status_code == 404:
            detail = f"there is nothing at {path}; /docs says what there is"
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request)) or headers.get("Allow", "GET, HEAD")
            detail = f"{path} takes {headers['Allow']}, not {request.method}"
        return Problem(error.status_code, detail, headers)

    async def gone(_: Request, error: Any) -> Problem:
        return Problem(400, "the client has gone")

    async def broken(request: Request, error: Exception) -> Problem:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "the server failed; its log says why")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(AttentuneError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, broken)


BRANCHES = re.compile(r"str|(list|dict)\[.*\]")
"""What pydantic calls the forms that a field may have."""


def _fault(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first fault of a body, in a sentence.

    A field that may have several forms has a fault for each: told is that of the form that was meant, or that it is
    none of them.
    """

    def place(error: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(part) for part in error["loc"][1:] if not BRANCHES.fullmatch(str(part)))

    def other_form(error: Mapping[str, Any]) -> bool:
        return bool(BRANCHES.fullmatch(str(error["loc"][-1]))) and error["type"].endswith("_type")

    first = errors[0]
    same = [error for error in errors if place(error)[: len(place(first))] == place(first)]
    meant = next((error for error in same if not other_form(error)), None)
    told = meant["msg"] if meant else " or ".join(dict.fromkeys(error["msg"] for error in same))
    return f"{'.'.join(place(meant or first)) or 'the body'}: {told}"


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What a path can be asked with; a route knows only its own methods."""
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)
