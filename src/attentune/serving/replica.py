"""One copy of the backbone with all tasks of a folder, as a replica of Ray Serve: the server's application, unchanged.

A gateway hands it requests as ASGI scopes with their bodies and gets ASGI messages back.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from attentune.allocator import keep_freed_memory
from attentune.errors import AttentuneError, StoreError
from attentune.serving.folder import Folder
from attentune.serving.launch import application
from attentune.serving.router import COLD_TASKS

Message = dict[str, Any]


class Replica:
    """The application of a server, asked by method calls; `options` are those of `launch.application`."""

    def __init__(self, folder: Path, **options: Any) -> None:
        """Load backbone and tasks; a loop runs already.

        Raises:
            StoreError: this machine does not see the folder that is served.
        """
        _check_shared(Folder(folder))
        keep_freed_memory()
        self.app = application(folder, **options)
        self.engine, self.registry = self.app.state.service.engine, self.app.state.service.registry
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def answer(self, tasks: Sequence[str], scope: dict[str, Any], body: bytes) -> AsyncGenerator[list[Message]]:
        """What the application sends, as many messages at a time as there are; `tasks` are read on the way here."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in given:
                return message
            return await asyncio.Future()  # Who goes away cancels the call.

        async def send(message: Any) -> None:
            sent.put_nowait(message)

        async def run() -> None:
            try:
                await self.app(scope, receive, send)
            finally:
                sent.put_nowait(None)

        work = asyncio.create_task(run())
        try:
            done = False
            while not done:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                done = messages[-1] is None
                if found := [message for message in messages if message is not None]:
                    yield found
            # What went wrong is answered and logged by the application, and raised nevertheless.
            await asyncio.gather(work, return_exceptions=True)
        finally:
            work.cancel()

    async def whole(self, scope: dict[str, Any]) -> tuple[str, int, bytes]:
        """A replica's name, and the status and body of its answer to a request without a body."""
        messages = [m async for batch in self.answer((), scope, b"") for m in batch]
        name = f"{socket.gethostname()}:{os.getpid()}"
        return name, messages[0]["status"], b"".join(m["body"] for m in messages[1:])

    def names(self) -> list[str]:
        """The tasks."""
        return self.registry.names

    def record_routing_stats(self) -> dict[str, Any]:
        """What Ray Serve tells the routers."""
        return {COLD_TASKS: dict.fromkeys(self.engine.bank.cold)}

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if not self.engine.alive:
            raise AttentuneError("the engine has ended")

    async def _live(self) -> None:
        async with self.app.router.lifespan_context(self.app):
            await asyncio.Future()


def _check_shared(folder: Folder) -> None:
    seen = folder.path.is_dir()
    if not seen or (os.access(folder.path, os.W_OK) and not folder.revision()):
        found = "another folder of that name" if seen else "none"
        raise StoreError(f"{folder.path} must be the same folder on every machine; {socket.gethostname()} has {found}")
