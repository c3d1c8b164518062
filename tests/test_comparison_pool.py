"""The pool: every item once, results as they finish, in one process, several, or a Ray cluster."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import wait
from itertools import islice
from pathlib import Path

import psutil
import pytest

from attentune.comparison import pool
from attentune.errors import AttentuneError, ConfigError, DataError


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def meet(folder: str) -> int:
    """Ends only when two processes are at it at the same time."""
    if not Path(folder).is_dir():
        raise DataError(folder)
    (Path(folder) / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < 2:
        assert time.monotonic() < until, "nobody came"
        time.sleep(0.02)
    return os.getpid()


def fail(x: int) -> int:
    raise ConfigError(f"{x} cannot be meant")


def invert(x: int) -> float:
    return 1 / x


def die(x: int) -> int:
    os._exit(x)


def test_without_workers_it_is_this_process_which_takes_items_when_it_needs_them() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in range(4):
            taken.append(x)
            yield x

    results = pool.map(square, items())
    assert next(results) == (0, (0, os.getpid()))
    assert taken == [0]
    assert [(x, y) for x, (y, _) in results] == [(1, 1), (2, 4), (3, 9)]


def test_two_processes_work_at_the_same_time(tmp_path: Path) -> None:
    folder = str(tmp_path)
    found = {process for _, process in pool.map(meet, [folder, folder], workers=2)}
    assert len(found) == 2
    assert os.getpid() not in found


def test_each_item_has_a_fresh_process() -> None:
    processes = [process for _, (_, process) in pool.map(square, range(3), workers=1)]
    assert len({*processes, os.getpid()}) == 4


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_later_items_may_wait_for_results(workers: int) -> None:
    waiting = [2, 3]
    seen: list[int] = []

    def ask() -> int | None:
        """The squares of the first items are items too."""
        return waiting.pop(0) if waiting else None

    for _, (y, _) in pool.drain(square, ask, workers):
        seen.append(y)
        if y < 10:
            waiting.append(y)
    assert sorted(seen) == [4, 9, 16, 81]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_through(workers: int) -> None:
    with pytest.raises(ConfigError, match="7 cannot be meant"):
        list(pool.map(fail, [7], workers))


def test_a_dead_worker_is_a_sentence() -> None:
    with pytest.raises(AttentuneError, match="a worker process died"):
        list(pool.map(die, [1], workers=2))


def part(given: tuple[str, str]) -> None:
    """Work on for ever, in a folder of its own, or end in some way once another one is at that."""
    folder, how = given
    if how == "stay":
        with tempfile.TemporaryDirectory(dir=folder) as own:
            (Path(own) / str(os.getpid())).touch()
            time.sleep(600)
    until = time.monotonic() + 60
    while not list(Path(folder).glob("*/*")):
        assert time.monotonic() < until, "nobody came"
        time.sleep(0.02)
    (Path(folder).parent / "pid").write_text(next(Path(folder).glob("*/*")).name)
    if how == "die":
        os._exit(1)
    if how == "fail":
        raise ConfigError("it cannot be meant")


@pytest.mark.parametrize(("how", "error"), [("fail", ConfigError), ("die", AttentuneError), ("return", None)])
def test_who_ends_waits_for_none_that_is_at_work(tmp_path: Path, how: str, error: type[Exception] | None) -> None:
    """The others end where they are, and leave no file behind."""
    folder = tmp_path / "work"
    folder.mkdir()
    results = pool.map(part, [(str(folder), "stay"), (str(folder), how)], workers=2)
    with pytest.raises(error) if error else contextlib.nullcontext():
        assert next(results)[0][1] == "return"
    results.close()
    assert list(folder.iterdir()) == []
    assert not is_at_work(int((tmp_path / "pid").read_text()))


def test_what_others_made_comes_before_an_error() -> None:
    place = pool._Processes(invert, 4)
    with contextlib.closing(place):
        tickets = [place.start(x) for x in (0, 1, 2, 4)]
        wait(tickets)
        found = place.finished(tickets)
        assert sorted(value for _, value in islice(found, 3)) == [0.25, 0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            next(found)


LEFT_ALONE = """
import os, sys, time
from pathlib import Path
from attentune.comparison import pool

def wait(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(pool.map(wait, [sys.argv[1]] * 2, workers=2))
"""


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_of_a_killed_process_end_too(tmp_path: Path) -> None:
    script, pids = tmp_path / "left_alone.py", tmp_path / "pids"
    script.write_text(LEFT_ALONE, encoding="utf-8")
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(workers := [int(file.name) for file in pids.iterdir()]) < 2:
        assert parent.poll() is None
        assert time.monotonic() < until, "nobody came"
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while any(map(is_at_work, workers)):
        assert time.monotonic() < until, "they work on for nobody"
        time.sleep(0.1)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"0 \(this process\) or more workers are needed, found workers=-1"):
        list(pool.map(square, [1], workers=-1))
    with pytest.raises(ConfigError, match="on a cluster at least one worker is needed, found workers=0"):
        list(pool.map(square, [1], workers=0, ray_address="local"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own threads and sockets, at its start and end
def test_a_ray_cluster_of_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the workers, which import this file
    waiting, found = [str(tmp_path), str(tmp_path)], set[int]()

    def ask() -> str | None:
        if not waiting and len(found) == 2:
            return "no folder"
        return waiting.pop() if waiting else None

    results = pool.drain(meet, ask, workers=2, ray_address="local")
    found.update(process for _, process in islice(results, 2))
    assert len(found) == 2
    assert os.getpid() not in found
    # Ray's own default, nice 15, starves them on a busy machine.
    assert {psutil.Process(one).nice() for one in found} == {psutil.Process().nice()}
    with pytest.raises(DataError, match="no folder"):
        next(results)
