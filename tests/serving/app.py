"""A server in this process, and what is asked of it."""

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
