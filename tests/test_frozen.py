"""Backward only where it is needed, and frozen blocks that run once for each row."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from laws.cells import FORMS, Form, adapted, refused
from laws.zoo import CACHE, ZOO, answer, batch_of, model_of
from safetensors.torch import load_file
from test_generate import QUICK as WRITING
from test_generate import writers  # noqa: F401  # pyright: ignore[reportUnusedImport]
from test_many import data_of, quiet, same, undropped  # noqa: F401  # pyright: ignore[reportUnusedImport]
from test_train import rows_of
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from writers import pairs

import attentune
from attentune import store
from attentune.errors import ConfigError, UnsupportedError
from attentune.methods import METHODS
from attentune.sites import Stack
from attentune.training.frozen import FrozenPart, Kept, Room, ask_no_input_gradients
from attentune.training.many import train_many
from attentune.training.train import train

UPPER = [form for form in FORMS if form.method in ("tiny_attention", "pasta", "kernel_mix")]
ONE_STACK = [kind for kind in ZOO if kind not in ("t5", "bart")]
IN_FRONT = [form for form in FORMS if form.method == "prefix_propagation"]
KEPT = [
    *((Form("kernel_mix"), kind) for kind in ONE_STACK),
    *((Form("pasta"), kind) for kind in ("bert", "gpt2", "llama")),
    *((form, kind) for form in IN_FRONT for kind in ONE_STACK if not refused(form, kind)),
]
ONE: dict[str, Any] = {"layers_to_transform": [1]}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    stack = next(module for module in model.modules() if isinstance(module, Stack))
    return [stack.host.get_submodule(stack.anatomy.block_path(i)) for i in range(stack.anatomy.layers(stack.config))]


def first_of(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("form", UPPER, ids=lambda form: form.label)
def test_no_graph_below_the_first_edited_block(form: Form, kind: str, checkpointing: bool) -> None:
    model = adapted(form, kind, **ONE).train()
    base: Any = model.get_base_model()
    if checkpointing:
        with warnings.catch_warnings():
            # transformers renames it; both names must work over the versions that attentune supports.
            warnings.simplefilter("ignore", FutureWarning)
            base.gradient_checkpointing_enable({"use_reentrant": False})
        ask_no_input_gradients(model)
    left: list[Tensor] = []
    blocks = blocks_of(model)
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: left.append(first_of(out)))
    embedded: list[Tensor] = []
    base.get_input_embeddings().register_forward_hook(lambda module, args, out: embedded.append(out))
    batch: dict[str, Any] = dict(batch_of(kind))
    if ZOO[kind].causal:
        batch["use_cache"] = False
    answer(model, batch).square().mean().backward()
    assert [states.requires_grad for states in (*embedded, left[0], left[1])] == [False, False, True]
    assert left[0].grad_fn is None
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "longformer", "deberta-v2", "modernbert", "gpt2"])
@pytest.mark.parametrize("form", UPPER, ids=lambda form: form.label)
def test_blocks_that_are_not_edited_have_no_hooks(form: Form, kind: str) -> None:
    untouched = blocks_of(adapted(form, kind, **ONE))[0]
    hooks = [hook for m in untouched.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks


def test_training_makes_no_graph_there(
    quiet: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With checkpointing too, for which transformers lets the embeddings ask for gradients."""
    import attentune.training.train as module

    left: list[bool] = []
    build = module.build_trainer

    def watched(**given: Any) -> Any:
        lower = blocks_of(given["model"])[0]
        lower.register_forward_hook(lambda module, args, out: left.append(first_of(out).requires_grad))
        return build(**given)

    monkeypatch.setattr(module, "build_trainer", watched)
    for checkpointing in (True, False):
        options: dict[str, Any] = {"epochs": 1, "layers_to_transform": [1], "checkpointing": checkpointing}
        train(rows_of("classification"), "pasta", tmp_path / str(checkpointing), str(quiet["bert"]), **options)
    assert set(left) == {False}


@pytest.mark.parametrize(("form", "kind"), KEPT, ids=[f"{form.label}-{kind}" for form, kind in KEPT])
def test_kept_states_change_nothing(form: Form, kind: str, tmp_path: Path) -> None:
    """Whole batch, fewer rows, other padding, gradients; the frozen block runs once, on what stands in front, too."""
    model, plain = (adapted(form, kind, model=model_of(kind).double(), **ONE) for _ in range(2))
    FrozenPart(model, 1, [Kept(tmp_path / "far", Room())])
    ran: list[int] = []
    inner = next(module for module in blocks_of(model)[0].modules() if isinstance(module, (nn.Linear, Conv1D)))
    inner.register_forward_hook(lambda module, args, out: ran.append(1))
    batch = batch_of(kind)
    # Longformer's softmax is in float32, and rounds by the padding.
    near: dict[str, Any] = dict.fromkeys(("atol", "rtol"), 1e-5 if kind == "longformer" else 1e-9)
    for rows in ([0, 1, 2], [2, 1], [1]):
        longest = int(batch["attention_mask"][rows].sum(1).max())
        some = {key: value[rows, :longest] for key, value in batch.items()}
        real = some["attention_mask"].bool()
        found, expected = answer(model, some), answer(plain, some)
        torch.testing.assert_close(found[real], expected[real], **near)
        grads: list[list[Tensor]] = []
        for one, out in ((model, found), (plain, expected)):
            one.zero_grad()
            out[real].square().sum().backward()
            grads.append([p.grad for p in one.parameters() if p.grad is not None])
        assert len(grads[0]) == len(grads[1]) > 0
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, **near)
    assert 1 <= len(ran) <= 2  # DeBERTa's first linear map runs once more, on distances
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize("kind", ONE_STACK)
def test_what_one_model_has_kept_another_reads(kind: str, tmp_path: Path) -> None:
    """A task's own model evaluates rows that the steps which all tasks take together have kept."""
    common, own, plain = (adapted(Form("kernel_mix"), kind, **ONE) for _ in range(3))
    kept = Kept(tmp_path, Room())
    for model in (common, own):
        FrozenPart(model, 1, [kept])
    batch = batch_of(kind)
    real = batch["attention_mask"].bool()
    for model in (common, own):
        torch.testing.assert_close(answer(model, batch)[real], answer(plain, batch)[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_row_that_begins_elsewhere_is_another(kind: str, tmp_path: Path) -> None:
    """Padding on the left moves positions that are counted by index; and no cache comes of blocks that did not run."""
    model, plain = (adapted(Form("kernel_mix"), kind, **ONE) for _ in range(2))
    FrozenPart(model, 1, [Kept(tmp_path, Room())])
    for side in ("right", "left", "right"):
        given = batch_of(kind, side=side)
        real = given["attention_mask"].bool()
        torch.testing.assert_close(answer(model, given)[real], answer(plain, given)[real], atol=1e-5, rtol=1e-5)
    assert model(**given).get(CACHE) is None
    assert (plain(**given).get(CACHE) is None) == (kind == "bert")


def test_states_are_those_of_evaluation_and_dropout_acts_above(tmp_path: Path) -> None:
    model = adapted(Form("pasta"), "bert", **ONE).train()
    left: list[Tensor] = []
    blocks_of(model)[0].register_forward_hook(lambda module, args, out: left.append(first_of(out)))
    batch, real = batch_of("bert"), batch_of("bert")["attention_mask"].bool()
    expected = answer(model.eval(), batch)
    FrozenPart(model, 1, [Kept(tmp_path, Room())])
    torch.manual_seed(0)
    first, second = (answer(model.train(), batch) for _ in range(2))
    torch.testing.assert_close(left[1][real], left[0][real])
    torch.testing.assert_close(left[2][real], left[0][real])
    assert not torch.equal(first, second)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(answer(model.eval(), batch)[real], expected[real])


def test_states_that_memory_has_no_room_for_lie_on_disk(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "far", Room(100))
    states = {bytes([i]): torch.full((i + 1, 4), float(i)) for i in range(6)}
    for key, value in states.items():
        kept.put({key: value})
        kept.put({key: value + 1})
    assert {file.suffix for file in (tmp_path / "far").iterdir()} == {".safetensors"}
    assert 0 < len(list((tmp_path / "far").iterdir())) < len(states)
    for key, value in states.items():
        assert key in kept
        assert torch.equal(kept.get(key), value)
    kept.close()
    assert bytes([0]) not in kept
    assert not (tmp_path / "far").exists()


def test_places_share_one_memory(tmp_path: Path) -> None:
    room = Room(100)
    one, other = Kept(tmp_path / "one", room), Kept(tmp_path / "other", room)
    one.put({b"a": torch.zeros(20)})
    other.put({b"a": torch.ones(20)})
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert torch.equal(other.get(b"a"), torch.ones(20))
    one.close()
    one.close()
    assert room.free == 100
    other.put({b"b": torch.ones(20)})
    assert room.free == 20
    assert len(list((tmp_path / "other").iterdir())) == 1


@pytest.mark.parametrize("together", [1, 3])
def test_tasks_share_one_memory_and_leave_nothing(
    quiet: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: int,
) -> None:
    """However many train together; what one kept goes when it is done, or when it fails."""
    import attentune.training.many as module

    room, made, spilt = Room(20_000), list[Kept](), list[bool]()
    start, put, ground_of = Kept.__init__, Kept.put, module.ground_of

    def started(self: Kept, folder: Path, room: Room) -> None:
        if together == 1:
            assert not any(kept._near or kept._far for kept in made)
        made.append(self)
        start(self, folder, room)

    def watched(self: Kept, states: Any) -> None:
        put(self, states)
        near = sum(value.nbytes for kept in made for value in kept._near.values())
        assert room.free == 20_000 - near >= 0
        spilt.append(bool(self._far))

    monkeypatch.setattr(Kept, "__init__", started)
    monkeypatch.setattr(Kept, "put", watched)
    monkeypatch.setattr(module, "ground_of", lambda *given: replace(ground_of(*given), room=room))
    data = {name: data_of("classification", 12, i) for i, name in enumerate(("a", "b", "c"))}
    data["c"]["validation"] = data_of("classification", 200)["train"]
    options: dict[str, Any] = {**undropped("kernel_mix"), "epochs": 1, "layers_to_transform": [1], "cache_frozen": True}
    results = train_many(data, tmp_path, str(quiet["bert"]), method="kernel_mix", together=together, **options)
    assert len(results) == len(made) == 3
    assert any(spilt)
    assert room.free == 20_000
    assert not any(kept._near or kept._far for kept in made)

    def fails(*given: Any) -> None:
        assert room.free < 20_000
        raise ConfigError("of no use")

    monkeypatch.setattr("attentune.training.train.logits_of", fails)
    with pytest.raises(ConfigError, match="of no use"):
        train_many(data, tmp_path, str(quiet["bert"]), method="kernel_mix", together=together, **options)
    assert room.free == 20_000


def test_shared_tensors_are_learned_above_kept_states(
    quiet: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No method that ships shares what acts above frozen blocks; one from outside may."""
    monkeypatch.setitem(METHODS, "kernel_mix", replace(METHODS["kernel_mix"], shared=("shared_a",)))
    data = {kind: data_of(kind, 12, i) for i, kind in enumerate(("classification", "tagging"))}
    options: dict[str, Any] = {**undropped("kernel_mix"), "layers_to_transform": [1], "share_attention": True}
    options["method"] = "kernel_mix"
    plain = train_many(data, tmp_path / "plain", str(quiet["bert"]), **options)
    read, get = list[bytes](), Kept.get

    def watched(self: Kept, key: bytes) -> Tensor:
        read.append(key)
        return get(self, key)

    monkeypatch.setattr(Kept, "get", watched)
    kept = train_many(data, tmp_path / "kept", str(quiet["bert"]), cache_frozen=True, **options)
    assert len(read) > len(set(read)) > 0
    for name, one in plain.items():
        for key, value in load_file(one.folder / store.WEIGHTS).items():
            torch.testing.assert_close(load_file(kept[name].folder / store.WEIGHTS)[key], value, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [*(("kernel_mix", kind) for kind in ("bert", "roberta", "distilbert")), ("prefix_propagation", "bert")],
)
def test_a_run_with_kept_states_is_the_run_without(
    quiet: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    method: str,
    backbone: str,
) -> None:
    """Alone, and among tasks trained together."""
    where = str(quiet[backbone])
    options: dict[str, Any] = {**undropped(method), "batch_size": 4, "layers_to_transform": [1]}
    data = {kind: data_of(kind, 10 + 3 * i, i) for i, kind in enumerate(("classification", "tagging"))}
    results = train_many(data, tmp_path / "all", where, method=method, cache_frozen=True, **options)
    for kind, one in data.items():
        plain = train(one, method, tmp_path / "plain" / kind, where, **options)
        kept = train(one, method, tmp_path / "kept" / kind, where, cache_frozen=True, **options)
        expected = load_file(plain.folder / store.WEIGHTS)
        for folder in (kept.folder, results[kind].folder):
            for key, value in load_file(folder / store.WEIGHTS).items():
                torch.testing.assert_close(value, expected[key], atol=1e-9, rtol=1e-9)
        same(results[kind].folder, kept.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"all", "plain", "kept"}


@pytest.mark.parametrize("method", ["pasta", "prefix_propagation"])
def test_a_writer_with_kept_states_writes_what_it_wrote_without(
    writers: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Training keeps states; what is written from a cache step by step runs every block."""
    options: dict[str, Any] = {**WRITING, "method.dropout": 0.0, "layers_to_transform": [1], "precision": "float32"}
    options |= {"special_ids": [1]} if method == "pasta" else {}
    read, get = list[bytes](), Kept.get
    monkeypatch.setattr(Kept, "get", lambda self, key: (read.append(key), get(self, key))[1])
    data = {split: pairs(12, seed) for seed, split in enumerate(("train", "validation"))}
    plain, kept = (
        train(data, method, tmp_path / str(cached), str(writers["gpt2"]), cache_frozen=cached, **options)
        for cached in (False, True)
    )
    expected = load_file(plain.folder / store.WEIGHTS)
    for key, value in load_file(kept.folder / store.WEIGHTS).items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5)
    assert len(set(read)) == len({row["target"] for rows in data.values() for row in rows}) < len(read)
    texts = [row["source"] for row in data["validation"]]
    assert attentune.load(kept.folder).predict(texts) == attentune.load(plain.folder).predict(texts)


def test_refusals(quiet: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    rows, where = rows_of("classification"), str(quiet["bert"])
    options: dict[str, Any] = {"cache_frozen": True, "epochs": 1}
    with pytest.raises(ConfigError, match="block 0 is edited; name upper blocks in layers_to_transform"):
        train(rows, "pasta", tmp_path / "a", where, **options)
    with pytest.raises(ConfigError, match="attempt trains what stands in front"):
        train(rows, "attempt", tmp_path / "a", where, layers_to_transform=[1], **options)
    for kind in ("t5", "bart"):
        with pytest.raises(UnsupportedError, match="this backbone has an encoder and a decoder"):
            FrozenPart(adapted(Form("kernel_mix"), kind, **ONE), 1, [Kept(tmp_path, Room())])
    assert list(tmp_path.iterdir()) == []
