"""What takes too long, or is wanted no more, is given up; and nothing else waits for it."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request

from attentune.serving import Ask
from attentune.serving.keys import EVERYONE
from attentune.serving.launch import application
from attentune.serving.limits import Limits
from attentune.serving.problems import AGAIN, Refused
from attentune.serving.service import READERS, Service, Wanted, unless_gone
from attentune.store import WEIGHTS
from serving.app import called, predicted
from serving.process import until

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["sun"]}
PATHS: dict[str, Any] = {
    "/v1/predict": {"items": [{"task": "tone", "input": "sun"}]},
    "/v2/models/tone/infer": {"inputs": [TENSOR]},
}


@dataclass(frozen=True)
class Slow:
    client: TestClient
    service: Service
    go_on: Callable[[], object]
    queued: list[Future[Any]]

    def ask(self, task: str) -> Future[list[dict[str, Any]]]:
        """Ask from this thread."""
        assert self.client.portal is not None
        return self.client.portal.start_task_soon(self.service.all, [Wanted(task, "sun")], EVERYONE)


def slow_server(tiny_bert: Path, folder: Path, limits: Limits) -> Iterator[Slow]:
    """A server whose task "tone" is cold, in a file that cannot be read to its end before `go_on`; "topic" is warm."""
    app = application(folder, str(tiny_bert), limits=limits, warm_bytes=1)
    file, pipe = folder / "tone" / WEIGHTS, folder / "pipe"
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    engine, queued = app.state.service.engine, list[Future[Any]]()
    submit = engine.submit

    def seen(asks: list[Ask]) -> list[Future[Any]]:
        queued.extend(found := submit(asks))
        return found

    def go_on(seconds: float = 20) -> None:
        """Once it is being read: who reads gets the content from the pipe, who comes later from the file."""
        ends: list[int] = []
        until(lambda: ends.append(os.open(file, os.O_WRONLY | os.O_NONBLOCK)) or ends, seconds)
        file.rename(pipe)
        file.write_bytes(content)
        os.set_blocking(ends[0], True)
        with os.fdopen(ends[0], "wb") as end:
            end.write(content)

    engine.submit = seen
    with TestClient(app) as client:
        yield Slow(client, app.state.service, go_on, queued)
        with suppress(AssertionError):
            go_on(0)  # A thread that still reads would outlive the tests.


@pytest.fixture
def slow(tiny_bert: Path, folder: Path) -> Iterator[Slow]:
    """Nothing that it queues is run in this time."""
    yield from slow_server(tiny_bert, folder, Limits(request_timeout_s=1.0, max_wait_ms=60_000))


@pytest.fixture
def hung(tiny_bert: Path, folder: Path) -> Iterator[Slow]:
    """What is not cold is answered."""
    yield from slow_server(tiny_bert, folder, Limits(request_timeout_s=2.0))


@pytest.fixture
def without_end() -> Iterator[Callable[[Callable[[], object]], object]]:
    """What ends a test that waits for ever."""
    timers: list[threading.Timer] = []

    def after(end: Callable[[], object]) -> None:
        timers.append(threading.Timer(20, end))
        timers[-1].start()

    yield after
    for timer in timers:
        timer.cancel()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_read_too_late_is_not_queued(slow: Slow, path: str, without_end: Any) -> None:
    without_end(slow.go_on)
    late = slow.client.post(path, json=PATHS[path])
    assert (late.status_code, late.json()["detail"]) == (503, "not answered within 1 s")
    assert late.headers["retry-after"] == "1"
    assert slow.service.reading.borrowed_tokens == 1
    slow.go_on()
    until(lambda: not slow.service.reading.borrowed_tokens, 20)
    assert not slow.queued


def test_what_is_queued_too_late_is_withdrawn(slow: Slow) -> None:
    with slow.service.engine._encoding:
        late = slow.client.post("/v1/predict", json={"items": [{"task": "topic", "input": "sun"}]})
        assert (late.status_code, late.json()["detail"]) == (503, "not answered within 1 s")
        assert not slow.queued
    until(lambda: slow.queued and all(future.cancelled() for future in slow.queued), 20)


def test_what_is_read_for_a_client_that_went_is_not_queued(slow: Slow) -> None:
    async def leave() -> None:
        asked = asyncio.ensure_future(slow.service.all([Wanted("tone", "sun")], EVERYONE))
        while not (slow.service.reading.borrowed_tokens or asked.done()):
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()

    assert slow.client.portal is not None
    slow.client.portal.call(leave)
    slow.go_on()
    until(lambda: not slow.service.reading.borrowed_tokens, 20)
    assert not slow.queued


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_goes_is_noticed(slow: Slow, path: str) -> None:
    body = [{"type": "http.request", "body": json.dumps(PATHS[path]).encode()}]

    async def receive() -> Any:
        if body:
            return body.pop()
        while not slow.service.reading.borrowed_tokens:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    status, problem = called(slow.client, "POST", path, receive)
    slow.go_on()
    assert (status, problem["detail"]) == (400, "the client has gone")


def test_whom_the_end_of_the_server_cuts_off_may_come_again() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    async def ended() -> Refused:
        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        answer = asyncio.ensure_future(unless_gone(request, asyncio.sleep(60)))
        await asyncio.sleep(0.05)
        answer.cancel()
        with pytest.raises(Refused) as refused:
            await answer
        return refused.value

    problem = asyncio.run(ended())
    assert (problem.status, problem.detail, problem.headers) == (503, "the server is shutting down", AGAIN)


def test_a_disk_that_hangs_takes_no_thread_that_others_need(hung: Slow, without_end: Any) -> None:
    without_end(hung.go_on)
    for late in [hung.ask("tone") for _ in range(50)]:
        with pytest.raises(Refused, match="not answered within 2 s"):
            late.result(15)
    assert predicted(hung.client, "topic")["label"]
    assert hung.client.get("/v1/tasks").status_code == hung.client.get("/metrics").status_code == 200
    left = hung.service.reading.statistics()
    assert (left.borrowed_tokens, left.tasks_waiting) == (READERS, 0)
    hung.go_on()
    until(lambda: not hung.service.reading.borrowed_tokens, 20)
    assert predicted(hung.client, "tone")["label"]


def test_who_waits_for_the_tokenizer_takes_no_thread_that_others_need(hung: Slow, without_end: Any) -> None:
    assert predicted(hung.client, "topic")["label"]
    tokenizer = hung.service.engine._encoding
    with tokenizer:
        without_end(tokenizer.release)  # Then it is released twice, which is an error.
        asked = [hung.ask("topic") for _ in range(50)]
        for late in asked:
            with pytest.raises(Refused, match="not answered within 2 s"):
                late.result(15)
        assert hung.client.get("/v1/tasks").status_code == hung.client.get("/metrics").status_code == 200
        left = hung.service.queueing.statistics()
        assert (left.borrowed_tokens, left.tasks_waiting) == (1, 0)
    assert predicted(hung.client, "topic")["label"]
