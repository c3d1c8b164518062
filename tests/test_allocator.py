"""Freed memory stays with the process, where the system can be asked and nobody has decided otherwise."""

import platform
import subprocess
import sys

import pytest

from attentune import allocator

BLOCKS, PAGES = 8, 1024
"""Of 4 MB, which are so many pages each."""
ROUNDS = 18
ASK = f"""
import resource
from attentune.allocator import keep_freed_memory
import torch
print(keep_freed_memory())
for i in range({ROUNDS} + 2):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**20) for _ in range({BLOCKS})]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked, and this system has another")
def test_batch_after_batch_takes_the_same_pages() -> None:
    # Without being asked glibc mostly faults for all of them; now and then blocks lie so that it need not.
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)  # nobody has decided there
    kept, faults = done.stdout.split()
    assert kept == "True"
    assert int(faults) < ROUNDS * BLOCKS * PAGES / 10


GIVE = """
import psutil, torch
from attentune.allocator import give_back_freed_memory, keep_freed_memory
from attentune.comparison.measure import Memory
keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss
small = [torch.ones(2**16)]
def use():
    global small
    blocks = [torch.ones(2**20) for _ in range(100)]
    small.append(torch.ones(2**16))  # stands in the way of the end of the heap
use()
held = resident()
with Memory() as memory:
    pass
print(held - max(memory.resident))
use()
print(give_back_freed_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked, and this system has another")
def test_what_a_run_freed_is_given_back_before_the_next_is_measured() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE], env={}, capture_output=True, text=True, check=True)
    given, asked = done.stdout.split()
    assert int(given) > 300 * 2**20
    assert asked == "True"


@pytest.mark.parametrize("name", allocator.CHOSEN)
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072" if name.startswith("MALLOC") else "glibc.malloc.trim_threshold=131072")
    assert not allocator.keep_freed_memory()


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
    assert not allocator.give_back_freed_memory()
