"""What stands before the replicas: reads which tasks a request names and hands it, as it is, to a replica.

Keys, limits, problem documents and streams are the replica's: it runs the server's own application.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from attentune.serving.guard import Bounded
from attentune.serving.limits import Limits
from attentune.serving.meters import merged
from attentune.serving.problems import AGAIN, Problem
from attentune.serving.server import LINES

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds beyond a request's own limit until a replica that is silent is given up."""
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
GONE = (RayActorError, TaskCancelledError, BackPressureError, DeploymentUnavailableError, RequestCancelledError)
"""The replica is not there, or not any more: another one would answer."""


class Gateway:
    """The entrance of the Ray Serve application."""

    def __init__(self, replicas: DeploymentHandle[Any], limits: Limits) -> None:
        self.replicas, self.limits = replicas, limits
        self.streams: Any = replicas.options(stream=True, method_name="answer")

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        scope = {key: request.scope[key] for key in SCOPE if key in request.scope}
        given = Bounded(request.receive, scope, self.limits)
        try:
            body = await Request(request.scope, given).body()
        except ClientDisconnect:
            if given.problem is None:
                raise
            return given.problem
        try:
            if scope["path"] == "/metrics":
                return await self._meters(scope)
            return await self._forward(scope, body)
        except GONE:
            return Problem(503, "the replica has gone or has too much to do; try again", AGAIN)
        except TimeoutError:
            return Problem(503, "no replica has answered; try again", AGAIN)
        except RayError:
            log.exception("%s %s failed", scope["method"], scope["path"])
            return Problem(500, "the server failed; its log says why")

    async def _forward(self, scope: dict[str, Any], body: bytes) -> Response:
        stream = self.streams.remote(tasks_named(scope["path"], body), scope, body)
        try:
            async with asyncio.timeout(self.limits.request_timeout_s + GRACE):
                start, *first = await anext(stream)
        except BaseException:
            stream.cancel()
            raise
        if first and not first[-1].get("more_body"):
            answer = Response(b"".join(message["body"] for message in first), start["status"])
        else:
            answer = StreamingResponse(_rest(start, first, stream), start["status"])
        answer.raw_headers = [tuple(header) for header in start["headers"]]
        return answer

    async def _meters(self, scope: dict[str, Any]) -> Response:
        """Those of all replicas, each with its name."""
        async with asyncio.timeout(GRACE):
            found = await self.replicas.broadcast("whole", scope).results_async(return_exceptions=True)
        told = [one for one in found if not isinstance(one, BaseException)]
        if not told:
            raise TimeoutError
        for _, status, content in told:
            if status != 200:
                return Response(content, status, media_type=Problem.media_type)
        pages = {name: content.decode() for name, _, content in told}
        return Response(merged(pages), media_type="text/plain; version=0.0.4")


def tasks_named(path: str, body: bytes) -> tuple[str, ...]:
    """The tasks that a request is about, in order of name; none where it cannot be read: any replica will say why."""
    match path.strip("/").split("/"):
        case ["v1", "tasks", name, *_] | ["v2", "models", name, *_]:
            return (name,)
        case ["v1", "predict"]:
            with suppress(ValueError, TypeError, LookupError, RecursionError):
                named = [item["task"] for item in json.loads(body)["items"]]
                return tuple(sorted({str(t) for n in named for t in ([n] if isinstance(n, str) else n)}))
        case _:
            pass
    return ()


async def _rest(start: dict[str, Any], first: list[dict[str, Any]], stream: Any) -> AsyncIterator[bytes]:
    """The body of a stream; if its replica dies a last line says so, where lines are answers."""
    for message in first:
        yield message["body"]
    try:
        async for messages in stream:
            yield b"".join(message["body"] for message in messages)
    except GONE:
        if LINES not in dict(start["headers"]).get(b"content-type", b"").decode("latin-1"):
            raise
        yield json.dumps({"error": {"status": 503, "detail": "the replica has gone; try again"}}).encode() + b"\n"
    finally:
        stream.cancel()
