"""The JSON of a request, read strictly: what is no JSON, no Unicode, or nested beyond reason ends here with a 400."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException


def read(content: bytes | str) -> Any:
    """JSON -> values; unlike `json.loads` it knows no NaN and no half of a surrogate pair, and no depth without end.

    Raises:
        HTTPException: 400, it is no JSON.
    """
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


class Strict(Request):
    """A request whose JSON is read by `read`."""

    async def json(self) -> Any:
        """The body."""
        return read(await self.body())


class Route(APIRoute):
    """A route whose endpoint gets a `Strict` request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, on the strict request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(Strict(request.scope, request.receive))

        return strict
