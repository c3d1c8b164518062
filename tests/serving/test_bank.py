"""The bank: each row's answer is that of its adapter alone, whatever the neighbours, the shelf and the tier."""

import gc
import json
import math
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from laws.cells import FORMS, Form, refused
from laws.zoo import batch_of, model_of, rows_of
from safetensors.torch import load_file, save_file

from attentune import METHODS, TaskModel, store
from attentune.backbones import load_backbone
from attentune.errors import ConfigError, StoreError, UnknownTaskError
from attentune.serving import Bank
from attentune.serving.tiers import Tiers
from attentune.store import CARD
from attentune.tasks.verbalise import Cloze
from serving.kit import adapter

BACKBONES = (
    "bert", "roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert", "longformer", "big_bird", "t5",
    "bart", "gpt2", "llama",
)  # fmt: skip
CELLS = [
    pytest.param(form, kind, id=f"{form.label}-{kind}")
    for form in FORMS
    for kind in BACKBONES
    if not refused(form, kind) and "mlp" not in dict(form.options)
]
BASE = "__base__"


def backbone(kind: str) -> Any:
    model = model_of(kind)
    return model if kind in ("t5", "bart") else model.base_model


def batch(kind: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    return {key: value for key, value in batch_of(kind, lengths).items() if not key.startswith("decoder")}


def logits_of(bank: Bank, names: list[Any], inputs: dict[str, Any]) -> torch.Tensor:
    out = bank(adapter_names=names, **inputs).logits
    assert out is not None
    return out


def alone(base: Any, folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model = TaskModel(base).eval()
    model.load_adapter("one", folder)
    with torch.inference_mode():
        logits = model(**inputs).logits
    model.delete_adapter("one")
    return logits


@pytest.mark.parametrize(("form", "kind"), CELLS)
def test_rows_of_the_bank_equal_adapters_alone(form: Form, kind: str, tmp_path: Path) -> None:
    """Two tasks of one shelf with different label counts, one on tokens, one of another method, and a base row."""
    options = dict(form.options)
    folders = {
        "a": adapter(backbone(kind), tmp_path / "a", form.method, 1, labels=2, **options),
        "b": adapter(backbone(kind), tmp_path / "b", form.method, 2, labels=5, pooling="cls", **options),
        "tags": adapter(backbone(kind), tmp_path / "tags", form.method, 3, labels=4, kind="token", **options),
        "other": adapter(backbone(kind), tmp_path / "other", "kernel_mix", 4, labels=3, parts="v"),
    }
    bank = Bank(backbone(kind))
    for name, folder in folders.items():
        bank.add(name, folder)
    names = ["b", "a", "other", "tags", BASE, "b", "a"]
    inputs = batch(kind, (9, 12, 7, 9, 5, 12, 8))
    mixed = logits_of(bank, names, inputs)
    for row, name in enumerate(names):
        if name == BASE:
            continue
        wanted = alone(backbone(kind), folders[name], rows_of(inputs, [row]))[0]
        got = mixed[row] if name == "tags" else mixed[row, 0]
        keep = inputs["attention_mask"][row].bool() if name == "tags" else ...
        torch.testing.assert_close(got[..., : wanted.shape[-1]][keep], wanted[keep], atol=1e-5, rtol=1e-5, msg=name)
    uniform = logits_of(bank, ["a"] * 7, inputs)
    torch.testing.assert_close(uniform, alone(backbone(kind), folders["a"], inputs), atol=1e-5, rtol=1e-5)


@pytest.fixture
def bert() -> Any:
    return backbone("bert")


def test_all_methods_in_one_batch(bert: Any, tmp_path: Path) -> None:
    """The bank puts the rows of a method side by side; what it answers is in the order of what it was asked."""
    folders = {name: adapter(backbone("bert"), tmp_path / name, name, i) for i, name in enumerate(METHODS)}
    bank = Bank(bert)
    for name, folder in folders.items():
        bank.add(name, folder)
    names = [BASE, *METHODS, *reversed(METHODS), BASE]
    inputs = batch("bert", tuple(5 + i % 7 for i in range(len(names))))
    out = bank(adapter_names=names, prompt_attention=True, **inputs)
    assert out.logits is not None
    assert out.num_labels is not None
    assert out.prompt_attention is not None
    assert out.last_hidden_state is not None
    for row, name in enumerate(names):
        one = rows_of(inputs, [row])
        weights = out.prompt_attention[row]
        assert (weights is not None) == (name == "attempt")
        if name == BASE:
            keep = one["attention_mask"][0].bool()
            wanted = backbone("bert")(**one).last_hidden_state[0][keep]
            torch.testing.assert_close(out.last_hidden_state[row][keep], wanted, atol=1e-5, rtol=1e-5)
            continue
        torch.testing.assert_close(
            out.logits[row], alone(backbone("bert"), folders[name], one)[0], atol=1e-5, rtol=1e-5
        )
        if weights is not None:
            own = bank(adapter_names=[name], prompt_attention=True, **one).prompt_attention
            assert own is not None
            torch.testing.assert_close(weights, own[0], atol=1e-5, rtol=1e-5)
    assert out.num_labels.tolist() == [0 if name == BASE else 3 for name in names]


def test_base_rows_are_the_backbone(bert: Any, tmp_path: Path) -> None:
    bank = Bank(bert)
    bank.add("a", adapter(backbone("bert"), tmp_path / "a"))
    inputs = batch("bert", (9, 12))
    out = bank(adapter_names=[BASE, "a"], **inputs)
    wanted = backbone("bert")(**inputs).last_hidden_state
    assert out.last_hidden_state is not None
    assert out.num_labels is not None
    torch.testing.assert_close(out.last_hidden_state[0, :9], wanted[0, :9], atol=1e-5, rtol=1e-5)
    assert out.num_labels.tolist() == [0, 3]


def test_replace_and_remove_leave_the_others_and_the_batch_in_flight(bert: Any, tmp_path: Path) -> None:
    bank = Bank(bert)
    one, two = (adapter(backbone("bert"), tmp_path / name, seed=i) for i, name in enumerate(("one", "two")))
    bank.add("x", one)
    bank.add("y", two)
    inputs = batch("bert", (9, 12))
    first = logits_of(bank, ["x", "y"], inputs)
    held = bank.hold("x")
    bank.add("x", two)
    second = logits_of(bank, ["x", "y"], inputs)
    assert second[1].equal(first[1])
    assert not second[0].allclose(first[0])
    assert logits_of(bank, [held, "y"], inputs).equal(first)
    bank.remove("x")
    assert bank.names == ["y"]
    with pytest.raises(UnknownTaskError, match="no task 'x'"):
        bank(adapter_names=["x", "y"], **inputs)
    with pytest.raises(UnknownTaskError, match="no task 'x'"):
        bank.remove("x")


def test_memory_is_that_of_the_parameters(bert: Any, tmp_path: Path) -> None:
    bank = Bank(bert)
    before = sum(p.numel() for p in bank.model.parameters())
    entries = [bank.add(f"t{i}", adapter(backbone("bert"), tmp_path / f"t{i}", seed=i)) for i in range(5)]
    assert sum(p.numel() for p in bank.model.parameters()) == before
    assert bank.tiers.warm.bytes == sum(entry.bytes for entry in entries)
    assert len({entry.shelf for entry in entries}) == 1
    assert len({id(entry.card.task) for entry in entries}) == 1


def test_sources_that_tasks_share_are_kept_once(bert: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"length": 3, "sources": 2, "bottleneck": 5}
    same = [adapter(backbone("bert"), tmp_path / f"t{i}", "attempt", seed=7, **options) for i in range(2)]
    other = adapter(backbone("bert"), tmp_path / "other", "attempt", seed=8, **options)
    bank = Bank(bert)
    shelves = [bank.add(folder.name, folder).shelf for folder in (*same, other)]
    assert shelves[0] is shelves[1]
    assert shelves[2] is not shelves[0]
    assert not any(name.endswith("source_prompts") for name in shelves[0].wanted)


def test_cards_go_with_their_last_task(bert: Any, tmp_path: Path) -> None:
    bank = Bank(bert)
    for labels in (2, 3, 4):
        bank.add("x", adapter(backbone("bert"), tmp_path / str(labels), labels=labels))
    card = weakref.ref(bank.entry("x").card.task)
    bank.remove("x")
    gc.collect()
    assert card() is None


def test_shelves_go_with_their_last_task(bert: Any, tmp_path: Path) -> None:
    """And not before: a batch that was begun ends with what it began with."""
    bank = Bank(bert)
    inputs = batch("bert", (9, 12))
    options: dict[str, Any] = {"length": 3, "sources": 2, "bottleneck": 5}

    def added(seed: int) -> None:
        bank.add("x", adapter(backbone("bert"), tmp_path / f"t{seed}", "attempt", seed=seed, **options))

    def shelves() -> int:
        gc.collect()
        bank(adapter_names=[BASE, BASE], **inputs)
        configs: Any = bank.model.peft_config
        return len(configs)

    added(0)
    bank.add("y", adapter(backbone("bert"), tmp_path / "y"))
    first = logits_of(bank, ["x", "y"], inputs)
    held = bank.hold("x")
    for seed in (1, 2, 3):
        added(seed)
    assert not logits_of(bank, ["x", "y"], inputs).allclose(first)
    assert logits_of(bank, [held, "y"], inputs).equal(first)
    assert shelves() == 3
    del held
    assert shelves() == 2
    bank.remove("x")
    assert shelves() == 1
    poisoned = adapter(backbone("bert"), tmp_path / "poisoned", "kernel_mix", v_rank=2)
    _poison(poisoned)
    shared = adapter(backbone("bert"), tmp_path / "shared", "attempt", 9, **options)
    _poison(shared, "source_prompts")
    for folder in (poisoned, shared):
        with pytest.raises(StoreError, match="not finite"):
            bank.add("x", folder)
    bank.remove("y")
    assert shelves() == 0
    bank.add("x", tmp_path / "t0")
    bank.add("y", tmp_path / "y")
    assert logits_of(bank, ["x", "y"], inputs).equal(first)


def test_a_row_that_is_dropped_while_it_is_read_stays_away() -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(key: Any) -> torch.Tensor:
        reading.set()
        assert go_on.wait(30)
        return torch.ones(4)

    tiers = Tiers(read, torch.device("cpu"))
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(tiers.get("x")))
    thread.start()
    assert reading.wait(30)
    tiers.drop("x")
    go_on.set()
    thread.join()
    assert found[0].equal(torch.ones(4))
    assert (dict(tiers.warm.rows), tiers.warm.bytes) == ({}, 0)
    tiers.get("x")
    assert list(tiers.warm.rows) == ["x"]


def test_cold_tasks_are_read_again_and_pinned_ones_stay(bert: Any, tmp_path: Path) -> None:
    folders = [adapter(backbone("bert"), tmp_path / f"t{i}", seed=i) for i in range(4)]
    row = Bank(backbone("bert")).add("one", folders[0]).bytes
    bank = Bank(bert, warm_bytes=2 * row)
    for i, folder in enumerate(folders):
        bank.add(f"t{i}", folder, pinned=i == 0)
    assert bank.tiers.warm.bytes <= 3 * row
    assert bank.entry("t0") in bank.tiers.warm.rows
    inputs = batch("bert", (9, 12, 7, 8))
    names = [f"t{i}" for i in range(4)]
    cold = logits_of(bank, names, inputs)
    assert bank.tiers.hits["cold"] >= 2
    full = Bank(backbone("bert"))
    for i, folder in enumerate(folders):
        full.add(f"t{i}", folder)
    assert cold.equal(logits_of(full, names, inputs))


def test_what_does_not_fit_is_refused_and_changes_nothing(bert: Any, tmp_path: Path) -> None:
    bank = Bank(bert)
    good = adapter(backbone("bert"), tmp_path / "good")
    bank.add("x", good)
    foreign = adapter(backbone("roberta"), tmp_path / "foreign")
    with pytest.raises(StoreError, match="fingerprint"):
        bank.add("x", foreign)
    poisoned = adapter(backbone("bert"), tmp_path / "poisoned")
    _poison(poisoned)
    with pytest.raises(StoreError, match="not finite"):
        bank.add("x", poisoned)
    (poisoned / "adapter_model.safetensors").write_bytes(b"\\x08\\0\\0\\0\\0\\0\\0\\0{nonsens")
    with pytest.raises(StoreError, match="cannot be read"):
        bank.add("x", poisoned)
    with pytest.raises(ConfigError, match="bare backbone"):
        bank.add(BASE, good)
    vast = adapter(backbone("bert"), tmp_path / "vast", "kernel_mix")
    config = json.loads((vast / store.CONFIG).read_text())
    (vast / store.CONFIG).write_text(json.dumps({**config, "q_shared_rank": 20_000_000}))
    with pytest.raises(StoreError, match="q_shared_rank=20000000, and its longest tensor has 32"):
        bank.add("x", vast)
    assert bank.entry("x").folder == good


@pytest.mark.parametrize(
    ("weight", "bias"),
    [((3, 31), (3,)), ((3, 32), (3, 1)), ((2, 32), (3,)), ((3, 32), (2,)), ((3,), (3,)), (None, (3,))],
)
def test_a_head_of_another_shape_is_refused(
    tiny_bert: Path, tmp_path: Path, weight: tuple[int, ...] | None, bias: tuple[int, ...]
) -> None:
    base = load_backbone(str(tiny_bert))
    file = adapter(base, tmp_path / "x") / "adapter_model.safetensors"
    tensors = load_file(file)
    names = sorted(name for name in tensors if ".heads." in name)
    for name, shape in zip(names, (bias, weight), strict=True):
        tensors[name] = torch.zeros(shape or 0)
        if shape is None:
            del tensors[name]
    save_file(tensors, file)
    with pytest.raises(StoreError, match=r"the adapter's head does not have the 3 outputs|the adapter has no head"):
        Bank(base).stage("x", tmp_path / "x")


CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "more labels": (
        {"task": {"kind": "classification", "labels": ["a", "b", "c", "d"], "pair": False}},
        "has a sequence head with 3 outputs, and its card's classification wants a sequence head with 4",
    ),
    "tagging": ({"task": {"kind": "tagging", "labels": ["O", "B-X", "I-X"]}}, "tagging wants a token head with 3"),
    "words": (
        {"task": Cloze(("a", "b", "c"), words=("x", "y", "z")).to_card()},
        "wants a masked head with 3",
    ),
    "no tokens": ({"max_length": 0}, "max_length 0; wanted is 1 at least"),
    "long": ({"max_length": 61}, "max_length 61; wanted is 1 at least, and beside 4 prompt rows .* 60 tokens"),
    "cold": ({"calibration": {"temperature": 0}}, "temperature 0.0; wanted is a finite number above 0"),
    "no number": ({"calibration": {"temperature": math.nan}}, "temperature nan"),
    "hot": ({"calibration": {"temperature": math.inf}}, "temperature inf"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_that_does_not_fit_is_refused(tiny_bert: Path, tmp_path: Path, case: str) -> None:
    changes, reason = CARDS[case]
    base = load_backbone(str(tiny_bert))
    folder = adapter(base, tmp_path / "x", "prefix_propagation", length=4)
    bank = Bank(base)
    bank.add("x", folder)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "max_length": 60}))
    bank.add("x", folder)
    (folder / CARD).write_text(json.dumps({**card, **changes}))
    with pytest.raises(StoreError, match=reason):
        bank.add("x", folder)
    assert bank.card("x").max_length == 60


def _poison(folder: Path, name: str = "") -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(value for key, value in tensors.items() if key.endswith(name)).view(-1)[0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
