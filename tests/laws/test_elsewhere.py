"""Law: no method mixes devices, and hardly one lets the host wait for its device; shown without having one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from laws.elsewhere import FORWARDS, KINDS, OURS
from laws.test_rows import BY_INDEX
from laws.zoo import ZOO

TESTS = Path(__file__).parents[1]


def allowed(method: str, kind: str) -> int:
    """How often a forward may wait: for a sentence about its rows, or a choice between two ways."""
    if method == "pasta":  # Is there a special token in every row?
        return 2 if ZOO[kind].encoder_decoder else 1
    if method == "tiny_attention":  # Is there padding in causal rows?
        return int(ZOO[kind].causal)
    # Is there padding on the left, where prompts would be apart from their text?
    return int(method in ("prefix_propagation", "attempt") and kind in BY_INDEX)


def test_no_device_is_mixed_with_another() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "laws.elsewhere"]
    done = subprocess.run(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("bank") == 1  # PASTA's
    wrong = {cell: said for cell, said in found.items() if not isinstance(said, int)}
    assert not wrong
    late = {cell: count for cell, count in found.items() if count > FORWARDS * allowed(*cell.split())}
    assert not late
    assert len(found) == len(OURS) * len(KINDS) - 1  # PASTA is refused on T5
