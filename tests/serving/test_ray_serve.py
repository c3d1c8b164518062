"""Replicas on a Ray cluster: which one is asked, what it answers, and that nobody gets a wrong answer when one dies."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from test_predict import near

import attentune
from attentune.backbones import load_backbone
from attentune.cli import main
from attentune.cluster import PATIENT
from attentune.errors import AttentuneError, ConfigError, StoreError
from attentune.serving.folder import Folder
from attentune.serving.limits import Limits
from attentune.serving.meters import merged
from attentune.serving.scale import Scale, running
from serving.kit import adapter
from serving.process import Server, tar_of, until

pytest.importorskip("ray", reason="Ray is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, to Ray Serve
    from attentune.serving.gateway import Gateway, tasks_named
    from attentune.serving.replica import Replica
    from attentune.serving.router import COLD, COLD_TASKS, Load, order

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own threads and sockets, at its start and end
TEXTS = ["good film", "bad rain the plot is not good", "sun", "Anna visits the river in Paris , very good !", "a a a"]


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, folder = load_backbone(str(tiny_bert)), tmp_path_factory.mktemp("made")
    methods = {"tone": "pasta", "topic": "kernel_mix", "place": "prefix_propagation", "late": "tiny_attention"}
    return {
        name: adapter(base, folder / name, method, seed, labels=2 + seed)
        for seed, (name, method) in enumerate(methods.items())
    }


@pytest.fixture(scope="module")
def wanted(made: dict[str, Path], tiny_bert: Path) -> dict[str, list[Any]]:
    """What each adapter answers alone."""
    return {name: attentune.load(place, str(tiny_bert)).predict(TEXTS, batch_size=1) for name, place in made.items()}


@pytest.fixture(scope="module")
def server(made: dict[str, Path], tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`attentune serve --ray` on a cluster of two nodes with room for one replica each."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("served")
    for name in ("tone", "topic", "place"):
        (folder / name).symlink_to(made[name])
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        cluster: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            scale = ("--replicas", "1:2", "--replica-target", "0.2")
            with Server(tiny_bert, folder, "--ray", "--ray-address", cluster.address, *scale) as server:
                assert json.loads(server.started)["tasks"] == ["place", "tone", "topic"]
                yield server
                server.process.send_signal(signal.SIGTERM)
                server.process.wait(60)
        finally:
            cluster.shutdown()


def replicas(server: Server) -> set[int]:
    """Their process ids, asked for without haste."""
    time.sleep(0.5)
    return {int(found) for found in re.findall(r'replica="[^"]*:(\d+)"', server.get("/metrics"))}


@pytest.mark.slow
def test_load_brings_a_second_replica_and_one_is_killed(server: Server, wanted: dict[str, list[Any]]) -> None:
    assert len(replicas(server)) == 1
    seen: Counter[int] = Counter()
    wrong: list[Any] = []
    done = threading.Event()

    def ask(seed: int) -> None:
        picked = [("tone", "topic", "place")[(seed + i) % 3] for i in range(len(TEXTS))]
        items = [{"task": task, "input": text} for task, text in zip(picked, TEXTS, strict=True)]
        while not done.is_set():
            status, body = server.post(items)
            seen[status] += 1
            if status == 503:
                assert body["detail"]
            elif status != 200 or not all(
                near(line.get("answer"), wanted[task][i])
                for i, (task, line) in enumerate(zip(picked, body["answers"], strict=True))
            ):
                wrong.append((status, body))
            time.sleep(0.1)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in asking:
        thread.start()
    until(lambda: len(replicas(server)) == 2)
    victim = min(replicas(server))
    os.kill(victim, signal.SIGKILL)
    killed = seen[200]
    until(lambda: len(replicas(server) - {victim}) == 2)
    until(lambda: seen[200] > killed + 40)
    done.set()
    for thread in asking:
        thread.join()
    assert not wrong, wrong[:3]
    assert set(seen) <= {200, 503}


@pytest.mark.slow
def test_a_change_reaches_all_replicas_before_it_is_acknowledged(
    server: Server, made: dict[str, Path], wanted: dict[str, list[Any]]
) -> None:
    items = [{"task": "late", "input": TEXTS[0]}]
    for _ in range(2):
        assert server.put("late", tar_of(made["late"])) == 200
        found = together(server, items, 12)
        assert all(near(body["answers"][0].get("answer"), wanted["late"][0]) for _, body in found)
        assert server.delete("late") == 204
        assert {body["answers"][0]["error"]["status"] for _, body in together(server, items, 12)} == {404}


def together(server: Server, items: list[dict[str, Any]], times: int) -> list[tuple[int, Any]]:
    """The same request so often at the same time, that it goes to more than one replica."""
    found: list[tuple[int, Any]] = []
    threads = [threading.Thread(target=lambda: found.append(server.post(items))) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.slow
def test_streams_refusals_and_meters_are_those_of_one_server(server: Server, wanted: dict[str, list[Any]]) -> None:
    body = json.dumps({"items": [{"task": ["tone", "nobody"], "input": text} for text in TEXTS]}).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
    request = urllib.request.Request(f"http://{server.address}/v1/predict", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("application/x-ndjson")
        lines = sorted((json.loads(line) for line in answer), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == list(range(10))
    assert all(near(line["answer"], wanted["tone"][i]) for i, line in enumerate(lines[::2]))
    assert {line["error"]["status"] for line in lines[1::2]} == {404}
    assert server.post([])[0] == 422
    status, problem = server.post([{"task": "tone", "input": "a" * 2_100_000}])
    assert (status, problem["status"], problem["detail"]) == (413, 413, "the body may have 2000000 bytes")
    assert json.loads(server.get("/health")) == {"status": "ok"}
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics"))}
    assert {s.labels["replica"] for s in families["attentune_tasks"].samples} == {
        s.labels["replica"] for s in families["attentune_requests"].samples
    }
    assert {s.value for s in families["attentune_tasks"].samples} == {3.0}


def test_a_warm_replica_is_preferred_until_it_is_busy() -> None:
    def best(tasks: list[str], *loads: tuple[int, list[str] | None]) -> int:
        return order([Load(f"r{i}", requests, cold) for i, (requests, cold) in enumerate(loads)], tasks)[0]

    assert best(["a"], (3, []), (0, ["a"])) == 0
    assert best(["a"], (int(COLD) + 1, []), (0, ["a"])) == 1
    assert best(["a"], (3, ["b"]), (0, ["a", "b"])) == 0
    assert best(["a", "b"], (0, ["a", "b"]), (0, ["a"])) == 1
    assert best(["a"], (0, None), (3, [])) == 1
    assert best([], (4, []), (3, ["a"])) == 1


def test_equal_replicas_share_the_tasks_and_keep_them() -> None:
    loads = [Load(f"r{i}", 0, [f"t{n}" for n in range(300)]) for i in range(3)]
    chosen = {n: loads[order(loads, [f"t{n}"])[0]].id for n in range(300)}
    assert all(count > 60 for count in Counter(chosen.values()).values())
    left = loads[1:]
    again = {n: left[order(left, [f"t{n}"])[0]].id for n in range(300)}
    assert all(again[n] == replica for n, replica in chosen.items() if replica != "r0")


@pytest.mark.parametrize(
    ("path", "body", "tasks"),
    [
        ("/v1/predict", '{"items": [{"task": ["b", "a"]}, {"task": "b"}, {"task": "c"}]}', ("a", "b", "c")),
        ("/v1/predict", '{"items": [{"task": 3}]}', ()),
        ("/v1/predict", '{"items": {"task": "a"}}', ()),
        ("/v1/predict", "[" * 100_000, ()),
        ("/v1/predict", "\xff", ()),
        ("/v2/models/a/infer", "", ("a",)),
        ("/v1/tasks/a/rollback", "", ("a",)),
        ("/v1/tasks", "", ()),
        ("/", "", ()),
    ],
)
def test_the_tasks_of_a_request(path: str, body: str, tasks: tuple[str, ...]) -> None:
    assert tasks_named(path, body.encode("latin-1")) == tasks


@pytest.mark.parametrize(
    ("pieces", "status", "detail"),
    [([b"x"], 408, "the rest of the body has not come within 0.1 s"), ([b"x"] * 3, 413, "the body may have 2 bytes")],
)
def test_a_body_that_does_not_come_in_time_or_is_too_long_goes_to_no_replica(
    pieces: list[bytes], status: int, detail: str
) -> None:
    left = list(pieces)

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(), "more_body": True} if left else await asyncio.Future()

    async def ask() -> Any:
        nowhere: Any = SimpleNamespace(options=lambda **_: None)
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
        return await Gateway(nowhere, Limits(payload_limit=2, request_timeout_s=0.1))(Request(scope, receive))

    answer = asyncio.run(ask())
    assert (answer.status_code, json.loads(answer.body)["detail"]) == (status, detail)


def test_a_replica_answers_as_its_application_does(
    made: dict[str, Path], wanted: dict[str, list[Any]], tiny_bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    with pytest.raises(StoreError, match="must be the same folder on every machine"):
        Replica(folder)
    folder.mkdir()
    with pytest.raises(StoreError, match="another folder of that name"):
        Replica(folder)
    Folder(folder).changed()
    for name in ("tone", "topic"):
        (folder / name).symlink_to(made[name])

    async def ask() -> None:
        replica = Replica(folder, backbone=str(tiny_bert), warm_bytes=0)
        assert replica.names() == ["tone", "topic"]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        body = json.dumps({"items": [{"task": "tone", "input": text} for text in TEXTS]}).encode()
        batches = [messages async for messages in replica.answer(("tone",), scope, body)]
        start, *rest = [message for messages in batches for message in messages]
        assert start["status"] == 200
        answers = json.loads(b"".join(message["body"] for message in rest))["answers"]
        assert all(near(line["answer"], right) for line, right in zip(answers, wanted["tone"], strict=True))
        assert replica.record_routing_stats() == {COLD_TASKS: {"topic": None}}
        name, status, page = await replica.whole({**scope, "method": "GET", "path": "/metrics"})
        assert (name.rsplit(":")[-1], status) == (str(os.getpid()), 200)
        assert b'attentune_answers_total{task="tone"} 5.0' in page
        replica.check_health()
        replica.engine.close()
        with pytest.raises(AttentuneError, match="the engine has ended"):
            replica.check_health()

    asyncio.run(ask())


def test_meters_of_several_replicas_stay_apart() -> None:
    page = '# TYPE n_total counter\nn_total{{task="a"}} {}\n# TYPE g gauge\ng {}\n'
    found = merged({"x:1": page.format(3.0, 1.0), "y:2": page.format(4.0, 2.0)}).decode()
    assert found.count("# TYPE n_total counter") == 1
    for line in ('n_total{replica="x:1",task="a"} 3.0', 'n_total{replica="y:2",task="a"} 4.0', 'g{replica="y:2"} 2.0'):
        assert line in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "2"], "want --ray beside them"),
        (["--ray", "--replicas", "3:2"], "replicas are N or LEAST:MOST"),
        (["--ray", "--host", "0.0.0.0"], "without --keys"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'attentune\[ray\]'"):
        running(tmp_path, Scale(), "127.0.0.1", 0).__enter__()


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"nobody can listen on 127.0.0.1:{port}"):
            running(tmp_path, Scale(), "127.0.0.1", port).__enter__()


def test_how_many_replicas() -> None:
    assert (Scale.of("3").least, Scale.of("3").most) == (3, 3)
    assert (Scale.of("1:4", target=8.0).most, Scale.of("1:4").target) == (4, 16.0)
    for wrong in ("", "0", "3:2", "a", "1:2:3", ":2"):
        with pytest.raises(ConfigError, match="replicas are N or LEAST:MOST"):
            Scale.of(wrong)
    with pytest.raises(ConfigError, match="above 0"):
        Scale(cpus=0)
    with pytest.raises(ConfigError, match="target and CPUs of a replica are above 0, found 16 and 0"):
        Scale.of("2", cpus=0)
