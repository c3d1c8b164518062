"""The page as routes of the server, beside its own: every other path stays what it is."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from nicegui import ui
from starlette.routing import Route, WebSocketRoute

from attentune.serving.keys import Keys
from attentune.serving.playground import page
from attentune.serving.service import Service

PATHS = ("/", "/_nicegui/{rest:path}", "/_nicegui_ws/{rest:path}")
SOCKET = PATHS[-1]
AWAY = 15.0
"""Seconds that a page may be out of reach before it begins anew."""
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#2f6f8f"/>'
    '<path d="M4 11V8m4 3V5m4 6V7" stroke="#fff" stroke-width="2" stroke-linecap="round"/></svg>'
)


def mount(app: FastAPI, service: Service, keys: Keys) -> None:
    """Show the playground at `/`. NiceGUI knows one application a process, so that the last one mounted has the page.

    Its websocket leads to pages that were fetched before, by an id that only their visitor knows, and a page holds
    nothing of the tasks before its key.
    """

    @ui.page("/")
    def playground() -> None:  # pyright: ignore[reportUnusedFunction]
        page.build(service, keys)

    frame = FastAPI(openapi_url=None)
    ui.run_with(
        frame,
        title="attentune",
        favicon=ICON,
        language="en-US",
        reconnect_timeout=AWAY,
        tailwind=False,
        show_welcome_message=False,
    )
    pages = [Route(path, frame, include_in_schema=False) for path in PATHS]
    app.router.routes.extend([*pages, WebSocketRoute(SOCKET, frame)])
    inner: Any = app.router.lifespan_context

    @asynccontextmanager
    async def life(outer: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            # It looks for its server among all objects of the process, and some of torch's complain of being looked at.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                await stack.enter_async_context(frame.router.lifespan_context(frame))
            await stack.enter_async_context(inner(outer))
            yield

    app.router.lifespan_context = life
