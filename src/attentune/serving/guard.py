"""Around every request: its size and how it comes, how many are in work, how long it took; and what a key may do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from attentune.serving.keys import Key, Keys
from attentune.serving.limits import Limits
from attentune.serving.meters import OTHER, Meters
from attentune.serving.problems import AGAIN, Problem, Refused

FREE = ("/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths that answer however busy the server is."""
KeyOf = Callable[..., Awaitable[Key]]
"""A dependency of a route: the key of a request."""
GONE = {"type": "http.disconnect"}
CLOSE = {"Connection": "close"}


def admit(keys: Keys, given: str | None, scope: str) -> Key:
    """The key that was given, if it may do that.

    Raises:
        Refused: it is none of the keys (401), or does not have the scope (403).
    """
    key = keys.find(given)
    if key is None:
        raise Refused(401, "a valid API key is wanted: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    if scope not in key.scopes:
        raise Refused(403, f"this key does not have the scope {scope!r}")
    return key


class Guard:
    """ASGI middleware; plain, because a wrapper around streams would hold them back."""

    def __init__(self, app: Any, limits: Limits, meters: Meters) -> None:
        self.app, self.limits, self.meters, self.running = app, limits, meters, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, body = time.perf_counter(), 500, Bounded(receive, scope, self.limits)

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def unless_refused(message: Any) -> None:
            if body.problem is None:
                await answer(message)

        free = scope["path"] in FREE
        self.running += not free
        self.meters.running.set(self.running)
        try:
            refusal = None if free else self._refusal(scope)
            if refusal is None:
                await self.app(scope, body, unless_refused)
                refusal = body.problem
            if refusal is not None:
                await refusal(scope, receive, answer)
        finally:
            self.running -= not free
            self.meters.running.set(self.running)
            route = getattr(scope.get("route"), "path", OTHER)
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.latency.labels(route).observe(time.perf_counter() - begin)

    def _refusal(self, scope: Any) -> Problem | None:
        if self.running > self.limits.max_concurrent_requests:
            detail = f"{self.limits.max_concurrent_requests} requests are in work; try again"
            return Problem(503, detail, AGAIN)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit():
            return Problem(400, "content-length is a number")
        limit = _limit(scope, self.limits)
        return _too_long(limit) if int(length) > limit else None


class Bounded:
    """A body of so many bytes at most, whatever its head said, in time; else it ends as if the client had gone.

    The seconds of a request are those of its body, too. An upload may be large and its way narrow: there they are
    those until its next piece.
    """

    def __init__(self, receive: Any, scope: Any, limits: Limits) -> None:
        self.receive, self.limit, self.seconds = receive, _limit(scope, limits), limits.request_timeout_s
        self.problem: Problem | None = None
        """What is to be answered, where it does not keep to this."""
        self._left, self._whole = self.limit, False
        self._end = None if _is_upload(scope) else asyncio.get_running_loop().time() + self.seconds

    async def __call__(self) -> Any:
        """The next message."""
        if self.problem is not None:
            return GONE
        if self._whole:
            return await self.receive()
        try:
            async with asyncio.timeout(self.seconds) if self._end is None else asyncio.timeout_at(self._end):
                message = await self.receive()
        except TimeoutError:
            self.problem = Problem(408, f"the rest of the body has not come within {self.seconds:g} s", CLOSE)
            return GONE
        self._whole = not message.get("more_body")
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.problem = _too_long(self.limit)
            return GONE
        return message


def _is_upload(scope: Any) -> bool:
    return scope["method"] == "PUT" and scope["path"].startswith("/v1/tasks/")


def _limit(scope: Any, limits: Limits) -> int:
    """Bytes that the body of a request may have."""
    return limits.upload_limit if _is_upload(scope) else limits.payload_limit


def _too_long(limit: int) -> Problem:
    return Problem(413, f"the body may have {limit} bytes", CLOSE)
