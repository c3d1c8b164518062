"""Bodies that come slowly, or not at all: they hold a place among the requests in work, without a key."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serving.app import called, client_of


def coming(pieces: int, after: float, whole: bool = False) -> Callable[[], Awaitable[Any]]:
    """A body of some pieces, `after` seconds each, and then its end or nothing."""
    left = pieces

    async def receive() -> Any:
        nonlocal left
        if not left:
            await asyncio.Future()
        await asyncio.sleep(after)
        left -= 1
        return {"type": "http.request", "body": b" ", "more_body": left > 0 or not whole}

    return receive


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/predict"), ("POST", "/v2/models/tone/infer"), ("PUT", "/v1/tasks/tone")]
)
def test_a_body_that_does_not_come_keeps_no_place(tiny_bert: Path, folder: Path, method: str, path: str) -> None:
    with client_of(tiny_bert, folder, max_concurrent_requests=1, request_timeout_s=0.2) as client:
        for _ in range(2):
            status, problem = called(client, method, path, coming(1, 0.0))
            assert (status, problem["status"], problem["title"]) == (408, 408, "Request Timeout")
            assert problem["detail"] == "the rest of the body has not come within 0.2 s"
        assert client.get("/v1/tasks").status_code == 200
        page = client.get("/metrics").text
        assert 'status="408"} 2.0' in page
        assert "attentune_requests_running 0.0" in page


def test_the_seconds_of_a_body_are_those_of_the_whole_and_of_an_upload_those_of_a_piece(
    tiny_bert: Path, folder: Path
) -> None:
    with client_of(tiny_bert, folder, request_timeout_s=1.0) as client:
        assert called(client, "POST", "/v1/predict", coming(4, 0.3, whole=True))[0] == 408
        status, problem = called(client, "PUT", "/v1/tasks/tone", coming(4, 0.3, whole=True))
        assert (status, problem["detail"].partition(":")[0]) == (400, "the body is not JSON")
