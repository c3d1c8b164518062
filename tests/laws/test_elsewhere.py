"""Law: no method mixes devices, and hardly one lets the host wait for its device; shown without having one."""

import json
import subprocess
import sys
from pathlib import Path

from laws.elsewhere import KINDS, OURS
from laws.test_rows import BY_INDEX
from laws.zoo import ZOO

TESTS = Path(__file__).parents[1]


def waits(method: str, kind: str) -> int:
    """How often the host waits in two forwards and a training step: for a sentence about rows, or to choose a way."""
    if method == "pasta":  # Is there a special token in every row?
        return 6 if ZOO[kind].encoder_decoder else 3
    if method == "tiny_attention":  # Is there padding in causal rows, while nothing is dropped?
        return 2 if ZOO[kind].causal else 0
    # Is there padding on the left, where prompts would be apart from their text?
    return 3 if method in ("prefix_propagation", "attempt") and kind in BY_INDEX else 0


def test_no_device_is_mixed_with_another() -> None:
    command = [sys.executable, "-m", "laws.elsewhere"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("mixing").startswith("FakeTensorDeviceMismatchError")
    assert found.pop("waiting") == 3
    assert found.pop("bank") == 3  # PASTA's: in the batch of all, and twice alone
    assert found == {cell: waits(*cell.split()) for cell in found}
    assert len(found) == len(OURS) * len(KINDS) - 1  # PASTA is refused on T5
