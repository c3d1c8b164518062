"""Around every request: its size, how many are in work, and how long it took; and what a key may do."""

from __future__ import annotations

import time
from typing import Any

from attentune.serving.keys import Key, Keys
from attentune.serving.limits import Limits
from attentune.serving.meters import OTHER, Meters
from attentune.serving.problems import Problem, Refused

FREE = ("/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths that answer however busy the server is."""


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
        begin, status, body = time.perf_counter(), 500, _Bounded(receive, limit_of(scope, self.limits))

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def unless_too_long(message: Any) -> None:
            if not body.too_long:
                await answer(message)

        free = scope["path"] in FREE
        self.running += not free
        self.meters.running.set(self.running)
        try:
            refusal = None if free else self._refusal(scope)
            if refusal is None:
                await self.app(scope, body, unless_too_long)
            if refusal is not None or body.too_long:
                await (refusal or self._too_long(scope))(scope, receive, answer)
        finally:
            self.running -= not free
            self.meters.running.set(self.running)
            route = getattr(scope.get("route"), "path", OTHER)
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.latency.labels(route).observe(time.perf_counter() - begin)

    def _refusal(self, scope: Any) -> Problem | None:
        if self.running > self.limits.max_concurrent_requests:
            detail = f"{self.limits.max_concurrent_requests} requests are in work; try again"
            return Problem(503, detail, {"Retry-After": "1"})
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit():
            return Problem(400, "content-length is a number")
        return self._too_long(scope) if int(length) > limit_of(scope, self.limits) else None

    def _too_long(self, scope: Any) -> Problem:
        return Problem(413, f"the body may have {limit_of(scope, self.limits)} bytes", {"Connection": "close"})


def limit_of(scope: Any, limits: Limits) -> int:
    """Bytes that the body of a request may have."""
    upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/tasks/")
    return limits.upload_limit if upload else limits.payload_limit


class _Bounded:
    """A body of at most `limit` bytes, whatever its head said; a longer one ends as if the client had gone."""

    def __init__(self, receive: Any, limit: int) -> None:
        self.receive, self.left, self.too_long = receive, limit, False

    async def __call__(self) -> Any:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        self.too_long = self.left < 0
        return {"type": "http.disconnect"} if self.too_long else message
