"""Errors as problem documents (RFC 9457): what was wanted and what was found, nothing of the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from attentune.errors import AttentuneError, OverloadedError, UnknownTaskError

log = logging.getLogger(__name__)


class Problem(JSONResponse):
    """application/problem+json."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        title = HTTPStatus(status).phrase
        super().__init__({"type": "about:blank", "title": title, "status": status, "detail": detail}, status, headers)


class Refused(Exception):  # noqa: N818, it is an answer and not a fault
    """A request that is answered by a problem document."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def status_of(error: AttentuneError) -> int:
    """The HTTP status of what attentune refuses."""
    if isinstance(error, UnknownTaskError):
        return 404
    return 503 if isinstance(error, OverloadedError) else 422


def describe(error: Exception) -> dict[str, Any]:
    """An error as an item of an answer: {"status", "detail"}."""
    if isinstance(error, AttentuneError):
        return {"status": status_of(error), "detail": str(error)}
    return {"status": 500, "detail": "the answer could not be computed"}


def install(app: FastAPI) -> None:
    """Let every error of an app end in a problem document."""

    async def refused(_: Request, error: Any) -> Problem:
        return Problem(error.status, error.detail, error.headers)

    async def ours(_: Request, error: Any) -> Problem:
        status = status_of(error)
        return Problem(status, str(error), {"Retry-After": "1"} if status == 503 else None)

    async def invalid(_: Request, error: Any) -> Problem:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return Problem(422, f"{where or 'the body'}: {first['msg']}")

    async def http(_: Request, error: Any) -> Problem:
        return Problem(error.status_code, str(error.detail), dict(error.headers or {}))

    async def broken(request: Request, error: Exception) -> Problem:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "the server failed; its log says why")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(AttentuneError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)
