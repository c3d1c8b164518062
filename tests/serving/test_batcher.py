"""The batcher: nothing lost, like lengths together, turns between tasks, limits kept."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attentune.errors import ConfigError, OverloadedError, UnsupportedError
from attentune.serving.batcher import Batcher, Piece

ASKS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 300)), min_size=1, max_size=60)


def piece(task: str, length: int) -> Piece:
    held: Any = SimpleNamespace(entry=SimpleNamespace(name=task))
    return Piece(held, {"input_ids": [0] * length})


def drained(batcher: Batcher) -> list[list[Piece]]:
    batcher.close()
    batches: list[list[Piece]] = []
    while (batch := batcher.take()) is not None:
        batches.append(batch)
    return batches


@settings(deadline=None)
@given(ASKS, st.integers(1, 9), st.integers(1, 600))
def test_every_sequence_comes_once_within_the_limits(asks: list[tuple[str, int]], rows: int, tokens: int) -> None:
    batcher = Batcher(tokens, rows, wait=0)
    pieces = [piece(task, length) for task, length in asks]
    batcher.put(pieces)
    batches = drained(batcher)
    assert sorted(map(id, (p for batch in batches for p in batch))) == sorted(map(id, pieces))
    assert len(batcher) == 0
    for batch in batches:
        longest = max(p.length for p in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or longest * len(batch) <= tokens
        assert all(p.length >= longest / 1.25 - 1 or longest <= 10 for p in batch)
        for task in "abcd":
            mine = [pieces.index(p) for p in batch if p.held.entry.name == task]
            assert mine == sorted(mine)


def test_a_flood_delays_others_by_one_batch() -> None:
    batcher = Batcher(rows=4, wait=0)
    batcher.put([piece("flood", 20) for _ in range(40)])
    batcher.put([piece("short", 10), piece("long", 200)])
    batches = drained(batcher)
    first = {
        name: next(i for i, b in enumerate(batches) if any(p.held.entry.name == name for p in b))
        for name in "short long".split()
    }
    assert first["short"] <= 2
    assert first["long"] <= 2


def test_tasks_of_like_length_share_a_batch_in_turn() -> None:
    batcher = Batcher(rows=4, wait=0)
    batcher.put([piece("a", 20) for _ in range(6)] + [piece("b", 21), piece("c", 20)])
    first = batcher.take()
    assert first is not None
    assert [p.held.entry.name for p in first] == ["a", "b", "c", "a"]


def test_a_lone_sequence_waits_for_company_and_not_longer() -> None:
    batcher = Batcher(rows=2, wait=30)
    batcher.put([piece("a", 20)])
    taken: list[list[Piece] | None] = []
    thread = threading.Thread(target=lambda: taken.append(batcher.take()))
    thread.start()
    time.sleep(0.05)
    assert not taken
    batcher.put([piece("b", 20)])
    thread.join(10)
    assert taken[0] is not None
    assert len(taken[0]) == 2
    lone = Batcher(rows=2, wait=0.01)
    lone.put([piece("a", 20)])
    assert lone.take() is not None


def test_the_queue_takes_all_or_none() -> None:
    batcher = Batcher(queue=3, wait=0)
    batcher.put([piece("a", 9), piece("a", 9)])
    with pytest.raises(OverloadedError, match="2 sequences are waiting and at most 3 may"):
        batcher.put([piece("b", 9), piece("b", 9)])
    batcher.put([piece("b", 9)])
    assert len(batcher) == 3
    batcher.close()
    with pytest.raises(OverloadedError, match="shutting down"):
        batcher.put([piece("b", 9)])


def test_what_the_queue_never_holds_is_not_asked_for_again() -> None:
    batcher = Batcher(queue=3, wait=0)
    with pytest.raises(UnsupportedError, match="4 sequences and the queue holds 3; ask for fewer at once"):
        batcher.put([piece("a", 9)] * 4)
    assert len(batcher) == 0


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"rows": -3}, {"queue": 0}])
def test_a_batcher_that_gives_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a batch has 1 row at least"):
        Batcher(**wrong)


def test_withdrawn_sequences_are_not_run() -> None:
    batcher = Batcher(wait=0)
    kept, gone = piece("a", 9), piece("a", 9)
    batcher.put([gone, kept])
    assert gone.logits.cancel()
    assert drained(batcher) == [[kept]]
