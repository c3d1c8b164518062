"""One text asked of many tasks runs once until they part, and every answer is that of its adapter alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.zoo import rows_of

from attentune.anatomy import stacks_of
from attentune.serving import Bank
from attentune.serving.sharing import plan
from serving.kit import adapter
from serving.test_bank import BACKBONES, BASE, alone, backbone, batch, logits_of

TOP: dict[str, Any] = {"layers_to_transform": [1]}
# Name: method, options. Two of a shelf, two of other methods, one that edits all blocks from the first on.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("kernel_mix", {"parts": "v", **TOP}),
    "two": ("kernel_mix", {"parts": "v", **TOP}),
    "tiny": ("tiny_attention", TOP),
    "whole": ("kernel_mix", {"parts": "v"}),
}
NAMES = ["one", "two", "whole", BASE, "tiny", "one", BASE, "whole"]
TEXTS = [0, 0, 0, 0, 0, 1, 1, 1]


def widths(bank: Bank, names: list[str], inputs: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
    """Logits, and how many rows each block ran on."""
    seen: list[int] = []

    def count(block: Any, args: Any, kwargs: Any) -> None:
        seen.append(len(args[0] if args else kwargs["hidden_states"]))

    _, stack, anatomy = stacks_of(bank.model.backbone)[0]
    blocks: Any = stack.get_submodule(anatomy.blocks)
    handles = [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
    logits = logits_of(bank, names, inputs)
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize("kind", BACKBONES)
def test_rows_that_share_equal_rows_alone(kind: str, tmp_path: Path) -> None:
    bank = Bank(backbone(kind))
    folders = {n: adapter(backbone(kind), tmp_path / n, m, i, **o) for i, (n, (m, o)) in enumerate(FORMS.items())}
    for name, folder in folders.items():
        bank.add(name, folder)
    texts = batch(kind, (9, 12))
    inputs = rows_of(texts, TEXTS)
    mixed, seen = widths(bank, NAMES, inputs)
    # Of each text one row for all that part at block 1, and one for the task that is edited from the start.
    assert seen[:2] == [4, 8]
    for i, name in enumerate(NAMES):
        if name != BASE:
            wanted = alone(backbone(kind), folders[name], rows_of(inputs, [i]))[0]
            torch.testing.assert_close(
                mixed[i, 0] if mixed.dim() == 3 else mixed[i], wanted, atol=1e-5, rtol=1e-5, msg=f"{i} {name}"
            )
    again, seen = widths(bank, ["whole"] * 8, inputs)
    assert seen[:2] == [8, 8]
    assert again.shape == mixed.shape


def test_prompts_in_the_batch_leave_it_as_it_is(tmp_path: Path) -> None:
    bank = Bank(backbone("bert"))
    bank.add("one", adapter(backbone("bert"), tmp_path / "one", "kernel_mix", 1, **TOP))
    bank.add("prompt", adapter(backbone("bert"), tmp_path / "prompt", "prefix_propagation", 2, length=3))
    inputs = rows_of(batch("bert", (9,)), [0, 0, 0])
    logits, seen = widths(bank, ["one", BASE, "prompt"], inputs)
    assert seen[:2] == [3, 3]
    parted, seen = widths(bank, ["one", BASE], rows_of(inputs, [0, 1]))
    assert seen[:2] == [1, 2]
    torch.testing.assert_close(parted[0], logits[0], atol=1e-5, rtol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_plan_spares_the_most_and_mixes_nothing_up(rows: list[tuple[int, int]]) -> None:
    texts, parts = [text for text, _ in rows], [part for _, part in rows]
    found = plan({"input_ids": torch.tensor(texts)[:, None]}, parts)

    def spared(block: int) -> int:
        same = [text for text, part in rows if part >= block]
        return block * (len(same) - len(set(same)))

    most = max(spared(block) for block in range(5))
    if found is None:
        assert most == 0
        return
    assert found.block * (len(rows) - len(found.lead)) == most
    assert set(found.rows) == set(range(len(found.lead)))
    for i, place in enumerate(found.rows):
        lead = found.lead[place]
        assert texts[lead] == texts[i]
        assert lead == i or min(parts[i], parts[lead]) >= found.block
