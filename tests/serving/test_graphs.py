"""Recorded forwards: a replay answers as the bank without recordings does, and nothing in it looks at a number.

A trace by `make_fx` stands for a CUDA graph where there is no GPU: it replays the operations of one run, whatever the
numbers are, and fails where the run reads one.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws.cells import FORMS, Form, refused
from torch.fx.experimental.proxy_tensor import make_fx

from attentune.errors import ConfigError, UnsupportedError
from attentune.serving import Bank
from attentune.serving.cuda_graphs import Run, Tensors
from attentune.serving.graphs import Graphs, filled
from serving.kit import adapter
from serving.test_bank import BASE, backbone, batch, logits_of

KINDS = ("bert", "roberta", "mpnet", "modernbert", "t5", "gpt2")
PAIRS = [
    (form, kind) for form in FORMS for kind in KINDS if not refused(form, kind) and "mlp" not in dict(form.options)
]
TRACED = [(form, kind) for form, kind in PAIRS if kind == "bert" or form.method in ("pasta", "attempt")]
"""Tracing takes its time: every form on one architecture, and every architecture with two of them."""


def cells(pairs: list[tuple[Form, str]]) -> Any:
    return pytest.mark.parametrize(("form", "kind"), [pytest.param(*p, id=f"{p[0].label}-{p[1]}") for p in pairs])


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to record on")


class Traces:
    """Records by tracing, and keeps the traces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Any] = []
        self._patch = monkeypatch

    def __call__(self, run: Run, example: Tensors) -> Run:
        with self._patch.context() as patch:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            self.made.append(make_fx(run)(example))
        return self.made[-1]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return Traces(monkeypatch)


def two(form: Form, kind: str, folder: Path) -> dict[str, Path]:
    """Tasks "a" and "b" of one shelf with heads of their own."""
    options: dict[str, Any] = {**dict(form.options), **({"train_sources": True} if form.method == "attempt" else {})}
    return {
        name: adapter(backbone(kind), folder / name, form.method, seed, labels=labels, **options)
        for seed, (name, labels) in enumerate({"a": 2, "b": 5}.items())
    }


def bank_of(kind: str, folders: dict[str, Path], **options: Any) -> Bank:
    bank = Bank(backbone(kind), **options)
    for name, folder in folders.items():
        bank.add(name, folder)
    return bank


@cells(TRACED)
def test_a_replay_answers_other_texts_of_other_tasks(form: Form, kind: str, tmp_path: Path, traces: Traces) -> None:
    folders = two(form, kind, tmp_path)
    plain, bank = bank_of(kind, folders), bank_of(kind, folders)
    bank.graphs = Graphs(bank.model, traces)
    for names, lengths in ((["a", "b", "b"], (9, 12, 7)), (["b", "a", "a"], (3, 4, 9))):
        inputs = batch(kind, lengths)
        torch.testing.assert_close(
            logits_of(bank, names, inputs), logits_of(plain, names, inputs), atol=1e-5, rtol=1e-5
        )
    (trace,) = traces.made
    theirs = {t.untyped_storage().data_ptr() for t in (*bank.model.parameters(), *bank.model.buffers())}
    theirs |= {t.untyped_storage().data_ptr() for p in bank.entry("a").shelf.shared.values() for t in p.values()}
    constants = [getattr(trace, node.target) for node in trace.graph.nodes if node.op == "get_attr"]
    # A tensor that is made of numbers would be copied to the device; an empty one is none.
    copied = [t for t in constants if t.numel() and t.untyped_storage().data_ptr() not in theirs]
    assert not copied


def test_one_task_for_all_rows_is_recorded_by_itself(tmp_path: Path, traces: Traces) -> None:
    folders = two(Form("pasta"), "bert", tmp_path)
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces)
    for names in (["a", "a"], ["b", "b"], ["a", "b"]):
        inputs = batch("bert", (9, 5))
        torch.testing.assert_close(
            logits_of(bank, names, inputs), logits_of(plain, names, inputs), atol=1e-5, rtol=1e-5
        )
    assert len(traces.made) == 2


def test_the_weights_of_prompts_are_those_of_the_batch(tmp_path: Path, traces: Traces) -> None:
    form = Form("attempt", (("length", 3), ("sources", 2)))
    folders = two(form, "bert", tmp_path)
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces)
    for names, lengths in ((["a", "b", "a"], (9, 5, 4)), (["b", "b", "a"], (3, 12, 4))):
        inputs = batch("bert", lengths)
        found, wanted = (one(adapter_names=names, prompt_attention=True, **inputs) for one in (bank, plain))
        for weights, expected in zip(found.prompt_attention or (), wanted.prompt_attention or (), strict=True):
            assert weights is not None
            torch.testing.assert_close(weights, expected)
    assert len(traces.made) == 1


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler", "last", "prefix"])
def test_every_head_reads_what_it_read(pooling: str, tmp_path: Path, traces: Traces) -> None:
    folders = {"a": adapter(backbone("bert"), tmp_path / "a", "prefix_propagation", length=3, pooling=pooling)}
    folders["tags"] = adapter(backbone("bert"), tmp_path / "tags", "prefix_propagation", 1, length=3, kind="token")
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces)
    inputs = batch("bert", (9, 12, 5))
    names = ["a", "tags", "a"]
    torch.testing.assert_close(logits_of(bank, names, inputs), logits_of(plain, names, inputs), atol=1e-5, rtol=1e-5)
    assert len(traces.made) == 1


def test_what_cannot_be_recorded_runs_as_it_is(tmp_path: Path, traces: Traces) -> None:
    """Two shelves, rows of the bare backbone, padding that is seen, architectures that copy numbers on their way."""
    folders = two(Form("pasta"), "bert", tmp_path / "one")
    folders["other"] = adapter(backbone("bert"), tmp_path / "other", "tiny_attention")
    folders["exact"] = adapter(backbone("bert"), tmp_path / "exact", "attempt", length=3, paper_exact=True)
    banks = [("bert", folders, names) for names in (["a", "other"], ["a", BASE], ["exact", "exact"])]
    for kind in ("longformer", "deberta-v2"):
        banks.append((kind, two(Form("pasta"), kind, tmp_path / kind), ["a", "b"]))
    for kind, tasks, names in banks:
        plain, bank = bank_of(kind, tasks), bank_of(kind, tasks)
        bank.graphs = Graphs(bank.model, traces)
        inputs = batch(kind, (9, 5))
        assert logits_of(bank, names, inputs).equal(logits_of(plain, names, inputs))
    assert not traces.made


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_that_its_method_refuses_is_refused_by_a_replay_too(rows: int, tmp_path: Path, traces: Traces) -> None:
    """No special token; padding on the left where positions are counted by index."""
    refusals = (
        ("bert", Form("pasta"), {"input_ids": torch.full((rows, 9), 110)}, "none of"),
        ("mpnet", Form("prefix_propagation", (("length", 3),)), {}, "padding on the left"),
    )
    for kind, form, changed, said in refusals:
        bank = bank_of(kind, two(form, kind, tmp_path / kind))
        bank.graphs = Graphs(bank.model, traces)
        names, inputs = ["a", "b", "a"][:rows], batch(kind, (9, 5, 7)[:rows])
        good = logits_of(bank, names, inputs)
        bad: dict[str, Any] = {**inputs, **changed}
        if not changed:
            bad["attention_mask"] = bad["attention_mask"].clone()
            bad["attention_mask"][-1, 0] = 0
        with pytest.raises(UnsupportedError, match=said):
            bank(adapter_names=names, **bad)
        assert logits_of(bank, names, inputs).equal(good)
    assert len(traces.made) == 2


def test_a_recording_that_fails_is_told_once_and_the_batch_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(run: Run, example: Tensors) -> Run:
        raise RuntimeError("no room")

    folders = two(Form("pasta"), "bert", tmp_path)
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, fails)
    for lengths in ((9, 5), (4, 5)):
        inputs = batch("bert", lengths)
        assert logits_of(bank, ["a", "b"], inputs).equal(logits_of(plain, ["a", "b"], inputs))
    assert [record.getMessage() for record in caplog.records] == [
        "a forward of pasta could not be recorded; it runs without"
    ]


def test_one_text_for_many_tasks_is_one_row_until_they_part(tmp_path: Path, traces: Traces) -> None:
    """What sharing spares is worth more than a recording."""
    folders = two(Form("pasta", (("layers_to_transform", [1]),)), "bert", tmp_path)
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces)
    same = {key: value[[0, 0]] for key, value in batch("bert", (9,)).items()}
    for inputs, made in ((same, 0), (batch("bert", (9, 5)), 1)):
        names = ["a", "b"]
        torch.testing.assert_close(
            logits_of(bank, names, inputs), logits_of(plain, names, inputs), atol=1e-5, rtol=1e-5
        )
        assert len(traces.made) == made


@pytest.mark.parametrize("options", [{"length": 3}, {"length": 3, "mode": "kernel", "paper_exact": True}])
def test_sizes_end_where_the_backbone_has_no_more_positions(
    options: dict[str, Any], tmp_path: Path, traces: Traces
) -> None:
    """48 positions: with a prompt of 3, or positions moved by 3, a text of 40 is filled up to 45, not 48."""
    folders = {"a": adapter(backbone("bert"), tmp_path / "a", "prefix_propagation", **options)}
    plain, bank = bank_of("bert", folders), bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces)
    for length in (40, 45):
        inputs = {"input_ids": torch.randint(5, 140, (1, length)), "attention_mask": torch.ones(1, length).long()}
        torch.testing.assert_close(
            logits_of(bank, ["a"], inputs), logits_of(plain, ["a"], inputs), atol=1e-5, rtol=1e-5
        )
    assert len(traces.made) == 1


def test_a_text_that_does_not_fit_is_refused_as_without_recordings(tmp_path: Path, traces: Traces) -> None:
    bank = bank_of("bert", two(Form("prefix_propagation", (("length", 3),)), "bert", tmp_path))
    bank.graphs = Graphs(bank.model, traces)
    inputs: dict[str, Any] = {"input_ids": torch.full((1, 46), 110), "attention_mask": torch.ones(1, 46).long()}
    with pytest.raises(UnsupportedError, match="the longest text is 45"):
        bank(adapter_names=["a"], **inputs)
    assert not traces.made


def test_a_large_batch_has_work_enough(tmp_path: Path, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attentune.serving.graphs.LARGEST", 3 * 16)
    bank = bank_of("bert", two(Form("pasta"), "bert", tmp_path))
    bank.graphs = Graphs(bank.model, traces)
    for rows, made in ((3, 1), (4, 1), (2, 2)):
        bank(adapter_names=["a", "b", "a", "b"][:rows], **batch("bert", (9, 5, 7, 3)[:rows]))
        assert len(traces.made) == made


def test_few_are_kept_and_they_go_with_their_shelf(tmp_path: Path, traces: Traces) -> None:
    folders = two(Form("pasta"), "bert", tmp_path)
    bank = bank_of("bert", folders)
    bank.graphs = Graphs(bank.model, traces, most=2)
    for rows in (1, 2, 3, 3, 2, 1):
        bank(adapter_names=["a", "b", "a"][:rows], **batch("bert", (9, 5, 7)[:rows]))
    assert len(traces.made) == 4  # 1, 2, 3, and 1 again
    assert [len(made) for made in bank.graphs.recordings.values()] == [2]
    for name in ("a", "b"):
        bank.remove(name)
    assert not bank.graphs.recordings


def test_sizes_are_few_and_near() -> None:
    assert [filled(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(n <= filled(n) < 1.5 * n for n in range(1, 1000))


def test_without_a_gpu_there_is_nothing_to_record_on() -> None:
    with pytest.raises(
        ConfigError, match=r"cuda_graphs wants a backbone on a GPU \(CUDA\), and this one is on the cpu"
    ):
        Bank(backbone("bert"), device="cpu", cuda_graphs=True)


@pytest.mark.gpu
@NEEDS_GPU
@cells(PAIRS)
def test_a_gpu_replays(form: Form, kind: str, tmp_path: Path) -> None:
    folders = two(form, kind, tmp_path)
    plain, bank = bank_of(kind, folders), bank_of(kind, folders, cuda_graphs=True)
    assert bank.graphs is not None
    for names, lengths in ((["a", "b", "b"], (9, 12, 7)), (["b", "a", "a"], (5, 12, 7)), (["b", "b"], (3, 9))):
        inputs = batch(kind, lengths)
        found, wanted = (logits_of(one, names, inputs) for one in (bank, plain))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert [len(made) for made in bank.graphs.recordings.values()] == [2]
