"""A folder of adapters -> an application, and a process that serves it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from watchfiles import awatch

from attentune.backbones import load_tokenizer
from attentune.errors import ConfigError
from attentune.serving.bank import Bank
from attentune.serving.batcher import Batcher
from attentune.serving.engine import Engine
from attentune.serving.keys import Keys
from attentune.serving.limits import Limits
from attentune.serving.registry import Registry
from attentune.serving.server import build

log = logging.getLogger("attentune.serving")


def application(
    folder: str | Path,
    backbone: str = "minilm",
    keys: Keys | None = None,
    limits: Limits | None = None,
    keep: int = 5,
    watch: bool = False,
    report: Callable[[str], None] = log.warning,
    playground: bool = False,
    **bank: Any,
) -> FastAPI:
    """The application on all adapters of a folder; with `watch` it follows the folder.

    `playground` is that of `server.build`, `bank` are options of a Bank.
    """
    limits = limits or Limits()
    tasks = Bank(backbone, **bank)
    queue = Batcher(limits.max_batch_tokens, limits.max_batch_rows, limits.max_wait_ms / 1000, limits.max_queue)
    engine = Engine(tasks, load_tokenizer(backbone, tasks.model.backbone), queue)
    registry = Registry(tasks, folder, keep)
    registry.scan(report)
    app = build(registry, engine, keys, limits, playground)
    if watch:
        app.router.lifespan_context = _watching(app.router.lifespan_context, registry, report)
    return app


def run(app: FastAPI, host: str, port: int, grace: float = 30.0) -> None:
    """Serve until the process is told to end; then finish what was accepted, for `grace` seconds at most."""
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=int(grace))


def check_free(host: str, port: int) -> None:
    """ConfigError where nobody can listen."""
    if not 0 < port < 2**16:
        raise ConfigError(f"a port is a number from 1 to {2**16 - 1}, found {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        # Of a taken port Python's own sentence says the address once more.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigError(f"nobody can listen on {host}:{port}: {reason}") from error


def _watching(inner: Any, registry: Registry, report: Callable[[str], None]) -> Any:
    """A lifespan in which the folder is read again whenever it changes."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        stop = asyncio.Event()
        follower = asyncio.create_task(_follow(registry, stop, report))
        try:
            async with inner(app):
                yield
        finally:
            stop.set()
            await follower

    return life


async def _follow(registry: Registry, stop: asyncio.Event, report: Callable[[str], None]) -> None:
    def matters(_: Any, path: str) -> bool:
        parts = Path(path).relative_to(registry.folder.path).parts
        return bool(parts) and not parts[0].startswith(".")

    try:
        async for _ in awatch(registry.folder.path, watch_filter=matters, stop_event=stop, debounce=400, step=100):
            try:
                await asyncio.to_thread(registry.follow, report)
            except Exception as error:  # The next change may be read again.
                report(f"{registry.folder.path} cannot be read again: {error}")
    except Exception as error:
        report(f"{registry.folder.path} is not followed any more: {error}")
