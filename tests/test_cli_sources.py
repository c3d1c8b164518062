"""`attentune sources ...` and training on sources, as a user types it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import SETTINGS, run, write_rows
from test_train import rows_of

from attentune.cli.sources import app


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows_of("classification"))


@pytest.fixture(scope="module")
def library(tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    common = ("--library", folder / "prompts", "--backbone", tiny_bert)
    assert run("sources", "train", data, *common, "--name", "tone", *SETTINGS) == 0
    torch.save(torch.nn.Parameter(torch.randn(8, 32) * 0.1), folder / "mnli.pt")
    assert run("sources", "add", folder / "mnli.pt", *common, "--name", "mnli") == 0
    return folder / "prompts"


@pytest.fixture(scope="module")
def adapter(tiny_bert: Path, data: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "mixed"
    common = ("--method", "attempt", "--backbone", tiny_bert, "--output", folder, *SETTINGS)
    assert run("train", data, "--sources", library, "--source", "mnli", *common) == 0
    return folder


def read_json(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", sorted(str(command.name) for command in app.registered_commands))
def test_every_command_helps_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sources", command, "--help") == 0
    text = capsys.readouterr().out
    assert f"Example: attentune sources {command}" in " ".join(text.split())
    assert "--json" in text


def test_list_add_and_remove(library: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = read_json(capsys, "sources", "list", "--library", library)
    assert [(card["name"], card["made"][:9]) for card in cards] == [("mnli", "read from"), ("tone", "[task]\nki")]
    assert run("sources", "list", "--library", library) == 0
    assert "accuracy" in capsys.readouterr().out
    file = library.parent / "mnli.pt"
    card = read_json(capsys, "sources", "add", file, "--library", library, "--name", "x", "--backbone", tiny_bert)
    assert (card["length"], card["width"], card["backbone"]["id"]) == (8, 32, str(tiny_bert))
    assert read_json(capsys, "sources", "remove", "x", "--library", library) == {"removed": "x"}
    assert not (library / "x.safetensors").exists()


def test_a_damaged_card_is_one_line(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(library, tmp_path / "copy")
    card = next(copy.glob("*.json"))
    for content in (b"\xff\xfe{", b"[" * 100_000, b'{"format": 1, "backbone": "x"}'):
        card.write_bytes(content)
        assert run("sources", "list", "--library", copy) == 2
        shown = capsys.readouterr().err
        assert "is no card of a source prompt" in shown
        assert shown.count("\n") == 1


def test_sources_of_an_adapter_change(
    adapter: Path, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    done = read_json(capsys, "sources", "edit", adapter, "-o", new, "--add", "tone", "--library", library)
    assert done == {"output": str(new), "sources": ["mnli", "tone"]}
    answer = read_json(capsys, "predict", new, "the film is good", "--attention")
    assert list(answer["attention"]) == ["mnli", "tone", "target"]
    assert run("predict", new, "the film is good", "--attention") == 0
    assert "of " in capsys.readouterr().out
    assert run("sources", "edit", new, "-o", new, "--remove", "tone") == 0
    assert "holds an adapter already" not in capsys.readouterr().err
    assert run("sources", "edit", adapter, "-o", new, "--add", "tone", "--library", library) == 0
    assert "new holds an adapter already" in capsys.readouterr().err


def test_every_task_shows_its_own_attention(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("the film is good", "bad rain")
    capsys.readouterr()
    assert run("predict", "--task", f"a={adapter}", "--task", f"b={adapter}", *texts, "--attention", "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for answer in answers:
        assert answer["a"]["attention"] == pytest.approx(answer["b"]["attention"], abs=1e-5)
    assert answers[0]["a"]["attention"]["mnli"] != answers[1]["a"]["attention"]["mnli"]


def test_attention_is_shown_and_drawn(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "heat.svg"
    rows = read_json(capsys, "sources", "attention", f"first={adapter}", adapter, "--output", picture)
    assert rows["first"] == rows["mixed"]
    assert sum(rows["first"].values()) == pytest.approx(1)
    assert picture.read_text().startswith("<?xml")
    texts = ("--text", "good film", "--text", "bad rain")
    assert list(read_json(capsys, "sources", "attention", adapter, *texts)) == ["good film", "bad rain"]
    rows = read_json(capsys, "sources", "attention", f"a={adapter}", f"b={adapter}", *texts)
    assert list(rows) == ["a: good film", "a: bad rain", "b: good film", "b: bad rain"]
    assert run("sources", "attention", adapter) == 0
    shown = capsys.readouterr().out.split()
    assert shown[:3] == ["mnli", "target", "mixed"]


def test_several_tasks_share_the_attention(
    data: Path, library: Path, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stars = write_rows(tmp_path / "stars.jsonl", rows_of("regression"))
    common = ("--sources", library, "--share-attention", "--backbone", tiny_bert, "-o", tmp_path / "all", *SETTINGS)
    done = read_json(capsys, "train-many", f"tone={data}", f"stars={stars}", *common)
    assert {name: one["output"] for name, one in done.items()} == {n: str(tmp_path / "all" / n) for n in done}
    assert done["stars"]["run"]["together"] == ["tone", "stars"]
    assert (
        run("predict", "--task", f"a={tmp_path / 'all' / 'tone'}", "--task", f"b={tmp_path / 'all' / 'stars'}", "x")
        == 0
    )
    assert run("train-many", str(data), "b=x", *common) == 2
    assert "a task is NAME=DATA, found" in capsys.readouterr().err


def test_a_folder_of_data_sets_is_trained_together(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data"
    (home / "stars").mkdir(parents=True)
    write_rows(home / "stars" / "train.jsonl", rows_of("regression"))
    write_rows(home / "tone.jsonl", rows_of("classification"))
    (home / "README.md").write_text("not data")
    common = ("--backbone", tiny_bert, "-o", tmp_path / "all", *SETTINGS)
    done = read_json(capsys, "train-many", home, *common)
    assert list(done) == ["stars", "tone"]
    assert done["tone"]["output"] == str(tmp_path / "all" / "tone")
    (home / "bad.csv").write_text("text,label\n")
    assert run("train-many", str(home), *common, "--together", "2", "--resume") == 1
    told = capsys.readouterr()
    assert "bad: not trained: " in told.err
    assert "tone" in told.out
    (home / "tone.csv").write_text("text,label\n")
    assert run("train-many", str(home), *common) == 2
    assert "give each data set its own name" in capsys.readouterr().err
    assert run("train-many", str(home / "stars"), *common) == 2
    assert "is one data set, for it holds train.jsonl" in capsys.readouterr().err
    assert run("train-many", str(tmp_path / "none"), *common) == 2
    assert "no folder of data sets at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("edit", "ADAPTER", "-o", "NEW"), "nothing to do; wanted --add NAME or --remove NAME"),
        (("attention", "ADAPTER", "-o", "NEW.bmp"), "a picture ends in .svg, .png, .pdf"),
        (("attention", "=ADAPTER"), "an adapter is NAME=DIR or DIR, found"),
        (("attention", "ADAPTER", "ADAPTER"), "two tasks are named 'mixed'"),
        (("list", "--library", "NEW"), "no library of source prompts at"),
        (("remove", "../mixed", "--library", "LIBRARY"), "a source's name is made of letters"),
    ],
)
def test_wrong_commands(
    adapter: Path,
    library: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    match: str,
) -> None:
    places = {"ADAPTER": str(adapter), "LIBRARY": str(library), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        arguments = tuple(part.replace(name, place) for part in arguments)
    assert run("sources", *arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attentune: ")
    assert match in message
    assert list(tmp_path.iterdir()) == []
