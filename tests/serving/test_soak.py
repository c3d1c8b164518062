"""Under load, with tasks that come, go and change, clients that leave and hostile uploads, nothing is lost."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_predict import near

import attentune
from attentune.backbones import load_backbone
from attentune.store import WEIGHTS
from serving.kit import adapter
from serving.process import Server, tar_of, until

TEXTS = ["good film", "bad rain the plot is not good", "sun", "Anna visits the river in Paris , very good !", "a a a"]
SECONDS = 6


@pytest.mark.slow
def test_nothing_is_lost_or_misrouted(tiny_bert: Path, tmp_path: Path) -> None:
    base = load_backbone(str(tiny_bert))
    made = {
        name: adapter(base, tmp_path / "made" / name, method, i, labels=2 + i)
        for i, (name, method) in enumerate(
            {
                "a": "pasta",
                "b": "kernel_mix",
                "c": "prefix_propagation",
                "one": "tiny_attention",
                "two": "pasta",
            }.items()
        )
    }
    wanted = {
        name: attentune.load(folder, str(tiny_bert)).predict(TEXTS, batch_size=1) for name, folder in made.items()
    }
    with Server(tiny_bert, tmp_path / "served", "--no-watch", "--max-queue", "200", "--keep", "1") as server:
        for name in ("a", "b", "c"):
            assert server.put(name, tar_of(made[name])) == 200
        assert server.put("moving", tar_of(made["one"])) == 200
        seen: Counter[str] = Counter()
        wrong: list[Any] = []
        end = time.monotonic() + SECONDS

        def repeat(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
            def run() -> None:
                draw = random.Random(seed)
                while time.monotonic() < end:
                    try:
                        work(draw)
                    except Exception as error:
                        wrong.append(error)
                        return

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        def ask(draw: random.Random) -> None:
            picked = [(draw.choice("abc") if draw.random() < 0.7 else "moving", draw.randrange(5)) for _ in range(9)]
            status, body = server.post([{"task": task, "input": TEXTS[i]} for task, i in picked])
            seen[f"status {status}"] += 1
            if status == 503:
                return
            for (task, i), line in zip(picked, body["answers"], strict=True):
                versions = ("one", "two") if task == "moving" else (task,)
                if not any(near(line.get("answer"), wanted[v][i]) for v in versions) and not (
                    task == "moving" and line.get("error", {}).get("status") == 404
                ):
                    wrong.append((task, i, line))
                seen["answers"] += 1

        def change(draw: random.Random) -> None:
            seen[f"put {server.put('moving', tar_of(made[draw.choice(['one', 'two'])]))}"] += 1
            if draw.random() < 0.2:
                seen[f"delete {server.delete('moving')}"] += 1

        def attack(draw: random.Random) -> None:
            content = bytearray(tar_of(made["two"]))
            for _ in range(20):
                content[draw.randrange(len(content))] ^= 255
            status = server.put("hostile", bytes(content))
            assert status in (200, 422), status

        def leave(draw: random.Random) -> None:
            connection = http.client.HTTPConnection(server.address, timeout=10)
            body = json.dumps({"items": [{"task": "a", "input": TEXTS[0]}] * 50})
            connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
            time.sleep(draw.random() / 20)
            connection.close()
            seen["left"] += 1

        threads = [repeat(work, seed) for seed, work in enumerate((ask, ask, ask, change, attack, leave))]
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:3]
        assert seen["answers"] > 100
        assert {key for key in seen if key.startswith("status")} <= {"status 200", "status 503"}
        assert {key for key in seen if key.startswith("put")} == {"put 200"}
        # What clients asked for before they left may still be in work; none of it may stay there.
        until(lambda: "attentune_requests_running 0.0" in server.get("/metrics"), 60)
        assert 'status="500"' not in server.get("/metrics")
        _, body = server.post([{"task": "a", "input": TEXTS[0]}])
        assert near(body["answers"][0]["answer"], wanted["a"][0])


@pytest.mark.slow
def test_what_a_kill_leaves_is_whole(tiny_bert: Path, tmp_path: Path) -> None:
    base = load_backbone(str(tiny_bert))
    one, two = (adapter(base, tmp_path / name, "pasta", i) for i, name in enumerate(("one", "two")))
    wanted = [attentune.load(folder, str(tiny_bert)).predict(["sun"])[0] for folder in (one, two)]
    for delay in (0.0, 0.03):
        with Server(tiny_bert, tmp_path / "served", "--no-watch") as server:
            server.put("moving", tar_of(one))
            changing = threading.Thread(target=_ignore_end, args=(server, two, one))
            changing.start()
            time.sleep(delay)
            server.kill()
            changing.join()
        with Server(tiny_bert, tmp_path / "served", "--no-watch") as server:
            _, body = server.post([{"task": "moving", "input": "sun"}])
            assert any(near(body["answers"][0].get("answer"), w) for w in wanted), body


def _ignore_end(server: Server, *folders: Path) -> None:
    try:
        for i in range(200):
            server.put("moving", tar_of(folders[i % len(folders)]))
    except (OSError, http.client.HTTPException):
        return


@pytest.mark.slow
def test_a_poisoned_file_on_disk_is_reported_and_the_rest_served(tiny_bert: Path, tmp_path: Path) -> None:
    base = load_backbone(str(tiny_bert))
    adapter(base, tmp_path / "served" / "good", "pasta")
    bad = adapter(base, tmp_path / "served" / "bad", "pasta")
    (bad / WEIGHTS).write_bytes(b"\xff" * 100)
    with Server(tiny_bert, tmp_path / "served") as server:
        assert [task["name"] for task in json.loads(server.get("/v1/tasks"))] == ["good"]
        assert "bad: " in server.errors()
