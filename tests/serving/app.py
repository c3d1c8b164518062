"""A server in this process, and what is asked of it."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

import attentune
from attentune.serving.keys import Keys
from attentune.serving.launch import application
from attentune.serving.limits import Limits

TEXTS = ["good film", "bad rain the plot is not good", "sun"]


def client_of(tiny_bert: Path, folder: Path, guard: Keys | None = None, **limits: Any) -> TestClient:
    return TestClient(application(folder, str(tiny_bert), guard, Limits(**limits)))


def alone(folder: Path, backbone: Path, texts: list[str]) -> list[Any]:
    return attentune.load(folder, str(backbone)).predict(texts, batch_size=1)


def predicted(client: TestClient, task: str, text: str = "good film") -> dict[str, Any]:
    answer = client.post("/v1/predict", json={"items": [{"task": task, "input": text}]}).json()["answers"][0]
    return answer["answer"]


def called(
    client: TestClient, method: str, path: str, receive: Callable[[], Awaitable[Any]]
) -> tuple[int, dict[str, Any]]:
    """The status and the document of an answer; the body of the request comes as `receive` gives it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message["body"] for message in sent[1:]))
