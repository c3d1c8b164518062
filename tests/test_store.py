"""The adapter folder: whole or not at all, and every way in which it can be wrong."""

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save

import attentune
from attentune import store
from attentune.card import Backbone, TaskCard
from attentune.errors import StoreError
from attentune.tasks import Classification
from attentune.tasks.columns import Columns

CARD = TaskCard(
    name="tone",
    method="pasta",
    task=Classification(("neg", "pos")),
    columns=Columns(("text",), "label"),
    backbone=Backbone("someone/model", "abc-float32-def"),
    max_length=32,
    pooling="mean",
)


CONFIG = {"peft_type": "ATTENTUNE_PASTA", "head": {"kind": "sequence", "num_labels": 2}}


class FakeModel:
    """Writes what a PeftModel writes; may die in between."""

    def __init__(self, weights: bytes, dies: bool = False) -> None:
        self.weights, self.dies = weights, dies

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        (Path(save_directory) / store.CONFIG).write_text(json.dumps(CONFIG))
        if self.dies:
            raise KeyboardInterrupt
        (Path(save_directory) / store.WEIGHTS).write_bytes(self.weights)


OLD, NEW = (save({"rows": torch.full((2,), value)}) for value in (1.0, 2.0))


def write(folder: Path, weights: bytes = OLD, **options: Any) -> Path:
    return store.write(folder, FakeModel(weights, **options), CARD, "[method]\n", {"test": {"accuracy": 0.5}})


def test_write_and_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "a")
    stored = store.read(folder)
    assert stored.card == CARD
    assert stored.metrics == {"test": {"accuracy": 0.5}}
    assert stored.recipe == "[method]\n"
    readme = (folder / store.README).read_text()
    assert "import attentune" in readme
    assert "| **accuracy** | 0.500 |" in readme
    assert 'base_model: "someone/model"' in readme
    modes = {f.stat().st_mode for f in folder.iterdir()}
    assert len(modes) == 1


def test_a_kill_leaves_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a", OLD)
    with pytest.raises(KeyboardInterrupt):
        write(folder, NEW, dies=True)
    assert (folder / store.WEIGHTS).read_bytes() == OLD

    real, calls = os.rename, []

    def killed_between_the_renames(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed_between_the_renames)
        with pytest.raises(KeyboardInterrupt):
            write(folder, NEW)
    assert not folder.exists()
    store.read(folder)
    assert (folder / store.WEIGHTS).read_bytes() == OLD
    write(folder, NEW)
    assert (folder / store.WEIGHTS).read_bytes() == NEW
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_kill_after_the_renames_leaves_the_new_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", NEW)
    shutil.copytree(folder, tmp_path / ".a.old")
    store.read(folder)
    assert (folder / store.WEIGHTS).read_bytes() == NEW
    assert not (tmp_path / ".a.old").exists()


def test_a_link_stays_and_its_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "a"
    link.symlink_to(tmp_path / "disk" / "a")
    for weights in (OLD, NEW, OLD):
        write(link, weights)
        assert (link.is_symlink(), (link / store.WEIGHTS).read_bytes()) == (True, weights)
    (tmp_path / "disk" / "a").rename(tmp_path / "disk" / ".a.old")  # as a kill between the two renames leaves it
    store.read(link)
    assert [[f.name for f in place.iterdir()] for place in (tmp_path, tmp_path / "disk")] == [["disk", "a"], ["a"]]


def test_a_link_that_lies_aside_is_in_nobodys_way(tmp_path: Path) -> None:
    folder, other = write(tmp_path / "a"), write(tmp_path / "other")
    for goal in (other, tmp_path / "nothing"):
        (tmp_path / ".a.old").symlink_to(goal)
        write(folder, NEW)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "other"]
    assert (other / store.WEIGHTS).read_bytes() == OLD


@contextmanager
def unwritable(parts: Mapping[str, Path]) -> Generator[Path]:
    """A folder that this process may only read, with copies of folders under their names."""
    with TemporaryDirectory() as place:
        home, user = Path(place), os.getuid()
        for name, folder in parts.items():
            shutil.copytree(folder, home / name)
        home.chmod(0o555)
        if user == 0:  # who may write everywhere
            os.setresuid(65534, 65534, 0)
        try:
            yield home
        finally:
            os.setresuid(user, user, user)
            home.chmod(0o755)


def test_nothing_is_put_back_where_nobody_may_write(tmp_path: Path) -> None:
    with unwritable(dict.fromkeys((".a.old", ".b.old", "b"), write(tmp_path / "a"))) as home:
        assert store.read(home / "b").card == CARD
        with pytest.raises(StoreError, match="no adapter folder at"):
            store.read(home / "a")
        assert sorted(f.name for f in home.iterdir()) == [".a.old", ".b.old", "b"]


@pytest.mark.parametrize(
    "content",
    [b'{"a": "\\ud800"}', b'{"\\ud800": 1}', b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", b"[" * 100_000, b"[]", b"{"],
)
def test_metrics_that_json_cannot_give_again_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / store.METRICS).write_bytes(content)
    assert store.metrics_of(tmp_path) == {}
    (tmp_path / store.METRICS).write_bytes(b'{"a": [1e999, 0.5]}')
    assert store.metrics_of(tmp_path) == {"a": [None, 0.5]}


def test_what_is_no_adapter_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "full"):
        with pytest.raises(StoreError, match="exists and is no adapter folder"):
            write(tmp_path / name)
    write(tmp_path / "empty")


def test_an_adapter_with_other_things_beside_it_is_not_replaced(tmp_path: Path) -> None:
    """As peft saves several adapters, the others in folders, or a Trainer its checkpoints."""
    folder = write(tmp_path / "run")
    write(folder / "other")
    with pytest.raises(StoreError, match="run holds more than an adapter, other, and all that is there goes"):
        write(folder, NEW)
    for name in ("checkpoint-1", "checkpoint-2", "notes.txt"):
        (folder / name).touch()
    with pytest.raises(StoreError, match=r"checkpoint-1, checkpoint-2, notes.txt \.\.\., and"):
        store.copy(write(tmp_path / "made"), folder, {})
    assert [(place / store.WEIGHTS).read_bytes() for place in (folder, folder / "other")] == [OLD, OLD]


def test_what_downloads_and_desktops_leave_is_no_other_thing(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    for name in (".gitattributes", ".DS_Store"):
        (folder / name).touch()
    write(folder, NEW)
    assert {path.name for path in folder.iterdir()} <= store.FILES


def test_a_copy_holds_the_adapter_alone(tmp_path: Path) -> None:
    made = write(tmp_path / "made")
    names = {path.name for path in made.iterdir()}
    (made / ".git").mkdir()
    for _ in range(2):
        assert {path.name for path in store.copy(made, tmp_path / "copy", {}).iterdir()} == names


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no adapter folder at"):
        store.read(tmp_path / "none")
    (tmp_path / "bare").mkdir()
    missing = "has no adapter_config.json, adapter_model.safetensors, task.json"
    with pytest.raises(StoreError, match=missing):
        store.read(tmp_path / "bare")
    folder = write(tmp_path / "a")
    card = json.loads((folder / store.CARD).read_text())
    for text, match in (
        ("{", "is no task card"),
        ("[]", "is no task card"),
        (json.dumps({**card, "format": 99}), "has format 99, this attentune reads format 1"),
        (json.dumps({k: v for k, v in card.items() if k != "max_length"}), "has no 'max_length'"),
        (json.dumps({**card, "task": {"kind": "odd"}}), "names kind 'odd'"),
    ):
        (folder / store.CARD).write_text(text)
        with pytest.raises(StoreError, match=match):
            store.read(folder)
    write(folder)
    (folder / store.CONFIG).write_text("[1]")
    with pytest.raises(StoreError, match="holds no JSON object"):
        store.read(folder)
    (folder / store.CONFIG).write_bytes(b"\xff")
    with pytest.raises(StoreError, match="is not JSON"):
        store.read(folder)


ASKED = {"kind": "question_answering", "stride": 64, "answer_length": 30, "unanswerable": False, "threshold": 0.0}
CLOZE = {
    "kind": "classification",
    "labels": ["a", "b"],
    "pair": False,
    "template": "{text} {mask}",
    "words": ["a", "b"],
}
DAMAGES: list[tuple[str, Any, str]] = [
    (store.CARD, b"\xff\xfe{", "is no task card"),
    (store.CARD, b"[" * 100_000, "is no task card"),
    (store.CARD, {"max_length": "abc"}, "is no task card: invalid literal"),
    (store.CARD, {"calibration": {"temperature": "hot"}}, "is no task card: could not convert"),
    (store.CARD, {"calibration": {"temperature": 0}}, "the temperature 0.0; wanted is a finite number above 0"),
    (store.CARD, {"calibration": {"temperature": float("nan")}}, "the temperature nan"),
    (store.CARD, {"backbone": "x"}, "is no task card"),
    (store.CARD, {"method": "sixth"}, "uses method 'sixth'; known are tiny_attention"),
    (
        store.CARD,
        {"task": {"kind": "classification", "labels": ["a", "b", "c"], "pair": False}},
        "classification wants a sequence head with 3",
    ),
    (store.CARD, {"task": {"kind": "classification", "labels": [0, 1], "pair": False}}, r"labels, found \[0, 1\]"),
    (store.CARD, {"task": {"kind": "classification", "labels": "ab", "pair": False}}, "labels, found 'ab'"),
    (store.CARD, {"task": {"kind": "tagging", "labels": ["O", "\ud800"]}}, "is no task card: .*surrogates not allowed"),
    (store.CARD, {"task": {**ASKED, "stride": "x"}}, "is no task card: invalid literal"),
    (store.CARD, {"task": {**ASKED, "stride": -1}}, "wants a stride of 0 at least and an answer_length of 1, found -1"),
    (store.CARD, {"task": {**ASKED, "answer_length": 0}}, "an answer_length of 1, found 64 and 0"),
    (store.CARD, {"task": {**CLOZE, "template": "{text_pair} {mask}"}}, "a template has {text} and {mask} once each"),
    (store.CARD, {"task": {**CLOZE, "words": ["a"]}}, "each of 2 classes has a word, found 1"),
    (store.CONFIG, {"peft_type": "FOO"}, "names peft_type 'FOO', which peft does not know"),
    (store.CONFIG, b'{"peft_type": "LORA"}', "holds a LORA adapter, and its card says pasta"),
    (store.CONFIG, {"layers_to_transform": "x"}, "layers_to_transform is a list of blocks, counted from 0, found 'x'"),
    (store.CONFIG, {"layers_to_transform": ["a"]}, "is a list of blocks"),
    (store.CONFIG, {"head": {"zzz": 1}}, "is no config of an adapter: .*'zzz'"),
    (store.CONFIG, {"head": {"num_labels": "2"}}, "is no config of an adapter"),
    (store.WEIGHTS, b"garbage", "the tensors of a cannot be read"),
    (store.WEIGHTS, OLD[:-4], "the tensors of a cannot be read"),
    (store.METRICS, b"[" * 100_000, "is not JSON"),
    (store.RECIPE, b"\xff", "is no text"),
]


@pytest.mark.parametrize(("file", "damage", "match"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_one_sentence(file: str, damage: Any, match: str, tmp_path: Path) -> None:
    place = write(tmp_path / "a") / file
    if isinstance(damage, dict):
        damage = json.dumps({**json.loads(place.read_text()), **damage}).encode()
    place.write_bytes(damage)
    with pytest.raises(StoreError, match=match) as caught:
        store.read(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_the_recipe_and_the_scores_may_be_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / store.RECIPE).unlink()
    (folder / store.METRICS).unlink()
    assert (store.read(folder).recipe, store.read(folder).metrics) == ("", {})


def test_json_has_no_word_for_nan() -> None:
    found = {"a": float("nan"), "b": [1, float("-inf"), (0.5,)], "c": {"d": True, "e": "NaN"}}
    assert json.loads(store.as_json(found)) == {"a": None, "b": [1, None, [0.5]], "c": {"d": True, "e": "NaN"}}


def test_the_card_says_which_attentune(tmp_path: Path) -> None:
    assert json.loads((write(tmp_path / "a") / store.CARD).read_text())["attentune"] == attentune.__version__
