"""Freed memory stays with the process, where the system can be asked and nobody has decided otherwise."""

import subprocess
import sys

import pytest

from attentune import allocator

ASK = """
import resource
from attentune.allocator import keep_freed_memory
import torch
KEEP = keep_freed_memory() if {ask} else False
for i in range(20):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**20) for _ in range(8)]
    del blocks
print(KEEP, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def asked(ask: bool, **environment: str) -> tuple[str, int]:
    """Whether it was kept, and the page faults of 18 times 32 MB, in a process of its own."""
    command = [sys.executable, "-c", ASK.format(ask=ask)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked, on Linux")
def test_batch_after_batch_takes_the_same_pages() -> None:
    kept, few = asked(True)
    if kept == "False":
        pytest.skip("no glibc here")
    _, many = asked(False)
    assert few < many / 10


@pytest.mark.parametrize("name", allocator.CHOSEN)
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072" if name.startswith("MALLOC") else "glibc.malloc.trim_threshold=131072")
    assert not allocator.keep_freed_memory()


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
