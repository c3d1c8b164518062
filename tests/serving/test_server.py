"""The server through its own HTTP: answers, streams, problems, figures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_predict import near

from serving.app import TEXTS, alone, client_of, predicted


def test_predict_answers_in_the_order_of_items_and_tasks(
    client: TestClient, made: dict[str, Path], tiny_bert: Path
) -> None:
    items = [{"task": ["topic", "tone", "names"], "input": TEXTS[0]}, {"task": "tone", "input": TEXTS[1]}]
    found = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert [a["task"] for a in found] == ["topic", "tone", "names", "tone"]
    for answer, text in zip(found, [*TEXTS[:1] * 3, TEXTS[1]], strict=True):
        assert near(answer["answer"], alone(made[answer["task"]], tiny_bert, [text])[0])


def test_an_item_that_fails_fails_alone(client: TestClient) -> None:
    items = [
        {"task": "tone", "input": TEXTS[0]},
        {"task": "nobody", "input": TEXTS[0]},
        {"task": "tone", "input": ["two", "texts"]},
        {"task": "tone", "input": TEXTS[0], "coverage": 0.9},
    ]
    good, *bad = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert good["answer"]["label"]
    assert [answer["error"]["status"] for answer in bad] == [404, 422, 422]
    assert bad[0]["error"]["detail"] == "there is no task 'nobody'; /v1/tasks lists those there are"


def test_lines_come_with_their_index(client: TestClient) -> None:
    items = [{"task": ["tone", "topic"], "input": text} for text in TEXTS]
    answer = client.post("/v1/predict", json={"items": items}, headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(6))
    whole = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert all(near(whole[line["index"]]["answer"], line["answer"]) for line in lines)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"items": []}, 422, "items: List should have at least 1 item"),
        ({}, 422, "items: Field required"),
        (
            {"items": [{"task": "tone", "input": 3}]},
            422,
            "items.0.input: Input should be a valid string or Input should be a valid list or",
        ),
        ({"items": [{"task": [], "input": "x"}]}, 422, "items.0.task: List should have at least 1 item"),
        ({"items": [{"task": ["tone", 5], "input": "x"}]}, 422, "items.0.task.1: Input should be a valid string"),
        ({"items": [{"task": "tone", "input": "x", "more": 1}]}, 422, "items.0.more"),
        ({"items": [{"task": "tone", "input": "x"}] * 2000}, 413, "may ask for 1024"),
    ],
)
def test_bad_requests_are_problem_documents(client: TestClient, body: Any, status: int, detail: str) -> None:
    answer = client.post("/v1/predict", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert detail in answer.json()["detail"]
    assert answer.json()["status"] == status


def test_without_a_playground_the_root_says_what_is_here(client: TestClient) -> None:
    found = client.get("/")
    assert (found.status_code, found.json()["docs"]) == (200, "/docs")
    assert "pip install 'attentune[ui]'" in found.json()["playground"]
    assert "tone" not in found.text


def test_the_page_of_the_paths_fetches_nothing_from_elsewhere(client: TestClient) -> None:
    fetched = re.findall(r"""(?:src|href)="([^"]+)\"""", client.get("/docs").text)
    assert len(fetched) > 1
    assert all(client.get(path).status_code == 200 for path in fetched if path.startswith("/"))
    assert [path for path in fetched if not path.startswith("/")] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/v1/task", 404, "there is nothing at /v1/task; /docs says what there is"),
        ("POST", "/static-offline-docs/a", 405, "/static-offline-docs/a takes GET, HEAD, not POST"),
        ("DELETE", "/v1/predict", 405, "/v1/predict takes POST, not DELETE"),
        ("POST", "/v1/tasks/tone", 405, "/v1/tasks/tone takes DELETE, GET, PUT, not POST"),
        ("GET", "/v1/tasks/nobody", 404, "there is no task 'nobody'; /v1/tasks lists those there are"),
    ],
)
def test_what_is_not_there_is_a_problem_document_that_says_what_is(
    client: TestClient, method: str, path: str, status: int, detail: str
) -> None:
    answer = client.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["status"], answer.json()["detail"]) == (status, detail)


def test_the_list_of_tasks_leaves_the_scores_to_each(client: TestClient) -> None:
    listed = client.get("/v1/tasks").json()
    assert [task["name"] for task in listed] == ["names", "tone", "topic"]
    for task in listed:
        found = client.get(f"/v1/tasks/{task['name']}").json()
        assert found.keys() - task.keys() == {"scores"}
        assert found == found | task


def test_a_stream_ends_in_time(tiny_bert: Path, folder: Path) -> None:
    with client_of(tiny_bert, folder, request_timeout_s=0.3, max_wait_ms=0, max_batch_rows=1) as client:
        body = {"items": [{"task": "tone", "input": "good film " * 20}] * 900}
        answer = client.post("/v1/predict", json=body, headers={"Accept": "application/x-ndjson"})
        last = json.loads(answer.text.splitlines()[-1])
        assert last.get("error", last)["status"] == 503


def test_metrics_and_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    predicted(client, "tone")
    client.post("/v1/predict", json={"items": [{"task": "x" * 50, "input": "sun"}]})
    page = client.get("/metrics").text
    assert 'attentune_answers_total{task="tone"} 1.0' in page
    assert 'attentune_failed_answers_total{task="(unknown)"} 1.0' in page
    assert 'attentune_requests_total{route="/v1/predict",status="200"} 2.0' in page
    assert "attentune_tasks 3.0" in page
    assert 'attentune_tier_hits_total{tier="warm"}' in page
