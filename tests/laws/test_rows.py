"""Laws 5 and 6: a row's answer is its own, whatever its neighbours, adapters and padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attentune import METHODS
from attentune.anatomy import anatomies_of, max_length
from attentune.errors import UnsupportedError
from laws.cells import CELLS, Form, adapted, add, cells
from laws.matrix import APART, REFUSED, Says
from laws.zoo import ZOO, answer, batch_of, rows_of

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
OTHER = {"tiny_attention": {"width": 4, "heads": 1}, "pasta": {"slots": 1}, "kernel_mix": {"q_rank": 3}}
OTHER |= {"prefix_propagation": {"length": 5}, "attempt": {"length": 6}}
BY_INDEX = ("mpnet", "deberta-v2", "modernbert", "longformer", "t5")
LEFT_EXACT = ("roberta", "xlm-roberta", "t5", "llama", "qwen2", "qwen3", "deberta-v2", "gpt2", "longformer")


def real(batch: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """The positions that count: all of the decoder's, or those of the text."""
    if "decoder_input_ids" in batch:
        return torch.ones_like(batch["decoder_input_ids"][row], dtype=torch.bool)
    return batch["attention_mask"][row].bool()


@pytest.mark.feature("mixed rows")
@cells
def test_rows_mixed_equal_rows_alone(form: Form, kind: str) -> None:
    """Two adapters of one shape, one of another (rank, prompt length), and base rows, in any order."""
    model = adapted(form, kind)
    add(model, "same", form, 2)
    add(model, "other", form, 3, **OTHER.get(form.method, {}))
    batch = batch_of(kind, (9, 12, 7, 9, 5, 12))
    names = ["other", "default", "__base__", "same", "default", "other"]
    mixed = answer(model, batch, adapter_names=names)
    for row, name in enumerate(names):
        one = rows_of(batch, [row])
        if name == "__base__":
            with model.disable_adapter():
                alone = answer(model, one)
        else:
            model.set_adapter(name)
            alone = answer(model, one)
        keep = real(batch, row)
        torch.testing.assert_close(mixed[row][keep], alone[0][keep], **TOLERANCE, msg=f"row {row} of {name}")


@pytest.mark.parametrize("kind", ZOO)
def test_no_mask_is_a_mask_of_ones(kind: str) -> None:
    """Also where the architecture pads the text itself: Longformer to a multiple of its window."""
    model, batch = adapted(Form("tiny_attention"), kind), batch_of(kind, (9, 9))
    masked = answer(model, batch)
    del batch["attention_mask"]
    torch.testing.assert_close(answer(model, batch), masked, **TOLERANCE)


@pytest.mark.feature("padded")
@cells
def test_padded_equals_unpadded_and_batch_equals_one_by_one(form: Form, kind: str) -> None:
    model, batch = adapted(form, kind), batch_of(kind)
    whole = answer(model, batch)
    for row, length in enumerate((12, 7, 9)):
        one = {
            key: value[row : row + 1, :length] if value.shape[1] == 12 else value[row : row + 1]
            for key, value in batch.items()
        }
        keep = real(batch, row)
        torch.testing.assert_close(whole[row][keep], answer(model, one)[0][real(one, 0)], **TOLERANCE)


@pytest.mark.feature("padded left")
@pytest.mark.parametrize(
    ("form", "kind"), [cell for cell in CELLS if not ZOO[str(cell.values[1])].generates or cell.values[1] == "t5"]
)
def test_left_padding_is_exact_or_refused(form: Form, kind: str, record_property: Says) -> None:
    model = adapted(form, kind)
    right, left = batch_of(kind), batch_of(kind, side="left")
    if form.widens() and kind in BY_INDEX:
        with pytest.raises(UnsupportedError, match="padding_side='right'") as error:
            answer(model, left)
        record_property(REFUSED, str(error.value))
        return
    moved = answer(model, left)
    if kind not in LEFT_EXACT and not form.widens():
        record_property(APART, "the bare architecture is not exact either: its positions count padding")
        return
    expected = answer(model, right)
    for row in range(3):
        if kind == "t5":
            torch.testing.assert_close(moved[row], expected[row], **TOLERANCE)
        else:
            got, want = moved[row][left["attention_mask"][row].bool()], expected[row][real(right, row)]
            torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.feature("mixed rows")
@cells
def test_unknown_names_and_wrong_counts_raise(form: Form, kind: str) -> None:
    model, batch = adapted(form, kind), batch_of(kind)
    with pytest.raises(UnsupportedError, match="no such adapter"):
        answer(model, batch, adapter_names=["default", "nobody", "default"])
    for wrong in (["default"], ["default"] * 2, ["default"] * 6):
        with pytest.raises(UnsupportedError, match="one name a row"):
            answer(model, batch, adapter_names=wrong)


@pytest.mark.parametrize("kind", ZOO)
def test_rows_that_fit_alone_fit_together(kind: str) -> None:
    """A text of all positions beside one with a prompt: only their padding has no position of its own."""
    form = Form("prefix_propagation", (("length", 3),))
    model = adapted(form, kind)
    whole: Any = model.base_model
    config = whole.model.config
    room = max_length(config) or 48
    batch = batch_of(kind, (room, room - 3, 5))
    names = ["__base__", "default", "default"]
    mixed = answer(model, batch, adapter_names=names)
    for row, name in enumerate(names):
        length = int(batch["attention_mask"][row].sum())
        one = {k: v if v.shape[1] < room else v[:, :length] for k, v in rows_of(batch, [row]).items()}
        alone = answer(model, one, adapter_names=[name])
        torch.testing.assert_close(mixed[row][real(batch, row)], alone[0][real(one, 0)], **TOLERANCE)
    if max_length(config) is not None and not anatomies_of(config)[0].rotary:
        with pytest.raises(UnsupportedError, match=f"{room} tokens and 3 prompt rows need {room + 3} positions"):
            answer(model, batch, adapter_names=["default", "default", "__base__"])


def test_positions_that_move_without_a_prompt_end_too() -> None:
    form = Form("prefix_propagation", (("length", 3), ("mode", "kernel"), ("paper_exact", True)))
    model = adapted(form, "bert")
    answer(model, batch_of("bert", (45, 9)))
    with pytest.raises(UnsupportedError, match="46 tokens and 3 prompt rows need 49 positions"):
        answer(model, batch_of("bert", (46, 9)))


def each_row_is_its_own(model: Any, batch: dict[str, Tensor], what: str) -> None:
    """What is returned of every block for three rows of three adapters is what each of them alone has."""
    names = ["other", "default", "__base__"]
    mixed = model(**batch, adapter_names=names, **{f"output_{what}": True})[what]
    for row, name in enumerate(names):
        alone = model(**rows_of(batch, [row]), adapter_names=[name], **{f"output_{what}": True})[what]
        for block, each in enumerate(alone):
            torch.testing.assert_close(mixed[block][row], each[0], **TOLERANCE)


def test_returned_attentions_are_each_row_s_own() -> None:
    """DeBERTa runs once for each adapter, since its projections are called again on relative embeddings."""
    form = Form("kernel_mix")
    model = adapted(form, "deberta-v2")
    add(model, "other", form, 2)
    each_row_is_its_own(model, batch_of("deberta-v2"), "attentions")


@torch.no_grad()
@pytest.mark.parametrize("structures", [("m1", "seq"), ("seq", "m1")])
def test_returned_hidden_states_are_each_row_s_own(structures: tuple[str, str]) -> None:
    """Where one row's edit at the end of a block is followed by another row's at the entrance of the next."""
    forms = [Form("tiny_attention", (("structure", structure),)) for structure in structures]
    model = adapted(forms[0], "bert")
    add(model, "other", forms[1], 2)
    each_row_is_its_own(model, batch_of("bert"), "hidden_states")


@pytest.mark.parametrize(("form", "kind"), [cell for cell in CELLS if ZOO[str(cell.values[1])].causal])
def test_texts_packed_into_one_row_stay_apart_or_are_refused(form: Form, kind: str) -> None:
    """By position_ids that start again; transformers tells them so where there is neither a mask nor a cache."""
    model, batch = adapted(form, kind), batch_of(kind, (5, 7))
    texts = [batch["input_ids"][row : row + 1, :length] for row, length in enumerate((5, 7))]
    packed: dict[str, Any] = {"input_ids": torch.cat(texts, 1), "use_cache": False}
    answer(model, packed, position_ids=torch.arange(12)[None])
    starting = torch.cat([torch.arange(5), torch.arange(7)])[None]
    if not METHODS[form.method].packs(model.peft_config["default"]):
        with pytest.raises(UnsupportedError, match=f"position_ids of row 0 do not rise by one.*{form.method} would"):
            answer(model, packed, position_ids=starting)
        with model.disable_adapter():
            answer(model, packed, position_ids=starting)
        return
    apart = torch.cat([answer(model, {"input_ids": text}) for text in texts], 1)
    torch.testing.assert_close(answer(model, packed, position_ids=starting), apart, **TOLERANCE)
