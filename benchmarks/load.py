"""The server under load, in a process of its own: beside the engine, and how long single requests take."""

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from many import Figures, make_adapters, texts, traffic

from attentune.backbones import load_backbone
from attentune.serving import Ask, Engine

CLIENTS, ITEMS, MESSAGES = 8, 32, 5
Item = tuple[str, str]
"""Task and text."""


def server(folder: Path, sizes: argparse.Namespace) -> Figures:
    """Eight clients with 32 texts a request, then single texts at half the rate it can do; PASTA, Zipf traffic."""
    served = folder / "served"
    served.mkdir()
    made = make_adapters(load_backbone("minilm", torch.float32), served, "pasta", min(1000, max(sizes.tasks)))
    names = [path.name for path in made]
    with Engine.load("minilm", dtype=torch.float32) as engine, started(served) as port:
        for path in made:
            engine.bank.add(path.name, path)

        def by_engine(items: list[Item]) -> list[str]:
            return [str(answer["label"]) for answer in engine.answer([Ask(task, text) for task, text in items])]

        local = threading.local()

        def by_server(items: list[Item]) -> list[str]:
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps({"items": [{"task": task, "input": text} for task, text in items]})
            local.connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
            answer = local.connection.getresponse()
            content = json.loads(answer.read())
            assert answer.status == 200, content
            return [str(one["answer"]["label"]) for one in content["answers"]]

        expected: dict[Item, str] = {}
        every = [(task, text) for task in names for text in texts()[:MESSAGES]]
        for start in range(0, len(every), 2000):
            some = every[start : start + 2000]
            expected.update(zip(some, by_engine(some), strict=True))
        rounds: dict[str, list[float]] = {"engine": [], "server": []}
        for turn in range(4):
            for name, ask in (("engine", by_engine), ("server", by_server)):
                done = flood(ask, names, expected, sizes.seconds if turn else 2, turn)
                if turn:
                    rounds[name].append(done)
        best = flood(lambda items: by_server(items[:1]), names, expected, sizes.seconds, 9) / ITEMS
        waits = steady(by_server, names, expected, best / 2, sizes.seconds * 2)
    cut = quantiles(waits, n=100)
    ratios = sorted(b / a for a, b in zip(*rounds.values(), strict=True))
    return {
        "tasks": len(names),
        "engine: texts a second": sorted(rounds["engine"])[1],
        "server: texts a second": sorted(rounds["server"])[1],
        "server: throughput of the engine's": ratios[1],
        "single texts: requests a second, eight clients": best,
        "single texts at half of that: requests": len(waits),
        **{f"single texts at half of that: ms, p{p}": 1000 * cut[p - 1] for p in (50, 95, 99)},
        "answers lost or of another task": 0,
    }


@contextmanager
def started(folder: Path) -> Generator[int]:
    """`attentune serve` on a free port, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "attentune.cli", "serve", str(folder), "--port", str(port), "--json", "--no-watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout is not None
        process.stdout.readline()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        yield port
    finally:
        process.terminate()
        process.wait()


def flood(
    ask: Callable[[list[Item]], list[str]], names: list[str], expected: dict[Item, str], seconds: float, seed: int
) -> float:
    """Clients that ask again as soon as they are answered -> texts a second (of requests of `ITEMS` texts)."""
    end, done, failed = time.monotonic() + seconds, [0] * CLIENTS, list[Any]()

    def client(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        while time.monotonic() < end and not failed:
            items = some(names, draw, ITEMS)
            found = ask(items)
            if found != [expected[item] for item in items[: len(found)]]:
                failed.append(items)
            done[number] += ITEMS

    begin = time.monotonic()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, f"a wrong answer: {failed[0]}"
    return sum(done) / (time.monotonic() - begin)


def steady(
    ask: Callable[[list[Item]], list[str]], names: list[str], expected: dict[Item, str], rate: float, seconds: float
) -> list[float]:
    """Requests of one text that come by chance, `rate` a second, whether others are answered or not -> their seconds.

    The time counts from when a request was due, so that one that had to wait for a client is not flattered.
    """
    draw, begin = random.Random(5), time.monotonic() + 0.1
    due: list[float] = []
    while not due or due[-1] < begin + seconds:
        due.append((due[-1] if due else begin) + draw.expovariate(rate))
    plan = iter([(at, some(names, draw, 1)) for at in due])
    waits, lock, failed = list[float](), threading.Lock(), list[Any]()

    def client() -> None:
        while not failed:
            with lock:
                following = next(plan, None)
            if following is None:
                return
            at, items = following
            time.sleep(max(at - time.monotonic(), 0))
            if ask(items) != [expected[items[0]]]:
                failed.append(items)
            waits.append(time.monotonic() - at)

    threads = [threading.Thread(target=client) for _ in range(4 * CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, f"a wrong answer: {failed[0]}"
    return waits


def some(names: list[str], draw: random.Random, count: int) -> list[Item]:
    """Tasks by Zipf's law, each with one of a few messages."""
    return [(task, draw.choice(texts()[:MESSAGES])) for task in traffic(names, count, "zipf", draw.randrange(1 << 30))]
