"""What the authors' own code computed, against ours: outputs to 1e-5, gradients to 1e-4.

The cases are those of the folder in ATTENTUNE_GOLDEN, else the committed subset of them in tests/golden.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

import pytest
from golden_cases import FAMILIES, prefix_propagation
from golden_cases.case import COMMITTED, INDEX, Case, folder, names
from golden_cases.summary import LEFT_OUT, NEAR
from peft import get_peft_model

from attentune.errors import UnsupportedError
from attentune.methods import BUILT_IN

KNOWN = {"02b15baf1adf": 66, "217b0640f551": 22}
"""The start of the sha256 of a known folder's index -> how many cases lie beside it."""
CASES = names(folder())
FUSED = [
    name
    for name in CASES
    if Case(folder(), name).about.get("config_class") in ("BertConfig", "RobertaConfig", "GPT2Config")
]
"""Cases of architectures that also have transformers' default, fused attention."""


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, record_property: Callable[[str, object], None]) -> None:
    case = Case(folder(), name)
    if prefix_propagation.excluded(case):
        with pytest.raises(UnsupportedError, match="no way into it"):
            get_peft_model(case.backbone(), prefix_propagation.config(case))
        record_property(LEFT_OUT, [name, prefix_propagation.REASON])
        pytest.skip(prefix_propagation.REASON)
    ledger = FAMILIES[case.method](case)
    for key, reason in ledger.left_out.items():
        record_property(LEFT_OUT, [f"{name} {key}", reason])
    record_property(NEAR, ledger.close())


@pytest.mark.parametrize("name", FUSED)
def test_case_with_fused_attention(name: str) -> None:
    case = Case(folder(), name, "sdpa")
    FAMILIES[case.method](case).close()


def test_no_case_is_lost() -> None:
    assert CASES, f"no cases in {folder()}"
    index = folder() / INDEX
    if index.is_file():
        text = index.read_bytes()
        assert sorted(entry["case"] for entry in json.loads(text)) == CASES
        assert KNOWN.get(sha256(text).hexdigest()[:12], len(CASES)) == len(CASES)


def test_committed_subset_is_small_and_has_every_method() -> None:
    assert len(names(COMMITTED)) == 22
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) <= 4_000_000
    methods = Counter(Case(COMMITTED, name).method for name in names(COMMITTED))
    assert methods.keys() == {method.name for method in BUILT_IN}
    assert min(methods.values()) >= 3
