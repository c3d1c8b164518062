"""Every command as a user types it: text for people, JSON for programs, one line and exit code 2 for refusals."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_train import rows_of
from transformers import AutoModel, AutoTokenizer
from writers import save_writer

import attentune
from attentune.cli import app, main, precision, show
from attentune.confidence import Judgement
from attentune.evaluation.metrics import classification
from attentune.methods import BUILT_IN, METHODS
from attentune.training.recipe import read_recipe

SETTINGS = ("--set", "epochs=1", "--set", "max_length=24")


def run(*arguments: Any) -> int:
    """The exit code of one call."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows_of("classification"))


@pytest.fixture(scope="module")
def tone(tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tone"
    assert run("train", data, "--output", folder, "--backbone", tiny_bert, "--method", "kernel_mix", *SETTINGS) == 0
    return folder


@pytest.fixture(scope="module")
def pairs(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("adapters")
    rows = [{"a": r["text"], "b": r["text_pair"], "c": r["label"]} for r in rows_of("pair")]
    named = ("--task", "pair", "--text", "a", "--text", "b", "--label", "c")
    rows_file = write_rows(where / "rows.jsonl", rows)
    assert run("train", rows_file, "-o", where / "pairs", "--backbone", tiny_bert, *named, *SETTINGS) == 0
    return where / "pairs"


@pytest.mark.parametrize("command", sorted(str(command.name) for command in app.registered_commands))
def test_every_command_helps_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"Example: attentune {command}" in re.sub(r"\s+", " ", text)
    assert "--json" in text


def test_train_shows_what_it_guessed(
    tiny_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", data, "--output", tmp_path / "a", "--backbone", tiny_bert, *SETTINGS) == 0
    shown = capsys.readouterr()
    assert "columns: text -> label" in shown.err
    assert "epoch 1.0 of 1: loss" in shown.err
    assert re.search(r"validation +baseline\naccuracy +[\d.]+ +[\d.]+\n", shown.out)


def test_set_changes_keys_that_are_named_like_options(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    keys = ("label=label", 'text=["text"]', f"backbone={tiny_bert}", f"data={data}", "seed=3")
    assert run("train", "--output", tmp_path / "a", *SETTINGS, *[p for key in keys for p in ("--set", key)]) == 0
    assert read_recipe(tmp_path / "a" / "recipe.toml").training.seed == 3
    keys = (f"backbone={tiny_bert}", "seed=4")
    given = [part for key in keys for part in ("--set", key)]
    assert run("sources", "train", data, "--library", tmp_path / "b", "--name", "s", *SETTINGS, *given) == 0
    assert json.loads((tmp_path / "b" / "s.json").read_text())["backbone"]["id"] == str(tiny_bert)


@pytest.mark.parametrize("command", ["train", "train-many", "search", "sources train"])
@pytest.mark.parametrize("wrong", ["watch=1", "method=pasta", "report=1"])
def test_set_reaches_no_parameter(
    command: str, wrong: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--library", tmp_path, "--name", "s") if command == "sources train" else ("--output", tmp_path / "a")
    rows = f"a={data}" if command == "train-many" else data
    assert run(*command.split(), rows, *place, "--set", wrong) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("attentune: a recipe has no key")
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_train_prints_json_alone(
    tiny_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", data, "--output", tmp_path / "a", "--backbone", tiny_bert, "--json", *SETTINGS) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["output"] == str(tmp_path / "a")
    assert printed["validation"] == json.loads((tmp_path / "a" / "metrics.json").read_text())["validation"]
    assert "task: classification" in printed["notes"]
    assert "epoch" not in shown.err


def test_evaluate_says_what_other_numbers_cost(tone: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", tone, data, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    for options in (("--quantise", "int8"), ("--quantise", "nf4"), ("--dtype", "bfloat16", "--quantise", "int8")):
        assert run("evaluate", tone, data, "--json", *options) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["plain"] == plain
        assert found["difference"]["nll"] == found["nll"] - plain["nll"] != 0
    assert run("evaluate", tone, data, "--quantise", "int8") == 0
    assert "difference" in capsys.readouterr().out


@pytest.mark.parametrize("order", [1, -1])
def test_other_numbers_may_predict_other_classes(order: int, capsys: pytest.CaptureFixture[str]) -> None:
    both = [Judgement(classification(found, ["a", "b"]), {}) for found in (["a", "b"], ["a", "c"])]
    plain, other = both[::order]
    assert plain.scores.keys() ^ other.scores.keys() == {"f1_a", "f1_b"}
    precision.show_both(plain, other, "int8", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["difference"].keys() == {"accuracy", "macro_f1", "matthews"}
    precision.show_both(plain, other, "int8", json=False)
    table = capsys.readouterr().out
    assert re.search(r"f1_a +1\.0000 *$" if order > 0 else r"f1_a +1\.0000", table, re.MULTILINE)


def test_evaluate(tone: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", tone, data, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert run("evaluate", tone, data) == 0
    assert f"accuracy  {scores['accuracy']:.4f}" in capsys.readouterr().out


def test_predict_takes_texts_files_and_lines(
    tone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("predict", tone, "good film", "bad [film]", "--json") == 0
    out = capsys.readouterr().out
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["label"] in {"pos", "neg"} for a in answers] == [True, True]
    (tmp_path / "texts.txt").write_text("good film\nbad [film]\n", encoding="utf-8")
    assert run("predict", tone, "--file", tmp_path / "texts.txt", "--json") == 0
    assert capsys.readouterr().out == out
    monkeypatch.setattr(sys, "stdin", io.StringIO('good film\n{"text": "bad [film]"}\n'))
    assert run("predict", tone, "--json") == 0
    assert capsys.readouterr().out == out
    assert run("predict", tone, "--file", data, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows_of("classification"))
    assert run("predict", tone, "bad [film]") == 0
    assert re.search(r"bad \[film\] +(pos|neg) \(0\.\d{3}\)$", capsys.readouterr().out, re.MULTILINE)
    assert run("predict", tone, "bad film " * 20) == 0
    assert "(the text was cut)" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text('{"id": 5, "text": "good film"}\n')
    assert run("predict", tone, "--file", tmp_path / "rows.jsonl") == 0
    assert re.search(r"^good film +(pos|neg) ", capsys.readouterr().out, re.MULTILINE)


def test_predict_pairs(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", pairs, "good film", "the plot", "--json") == 0
    out = capsys.readouterr().out
    (tmp_path / "texts.txt").write_text("good film\tthe plot\n", encoding="utf-8")
    assert run("predict", pairs, "--file", tmp_path / "texts.txt", "--json") == 0
    assert capsys.readouterr().out == out
    assert run("predict", pairs, "good film") == 2
    assert "a pair is two texts, found 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["question_answering", "multiple_choice"])
def test_questions_from_training_to_answers(
    kind: str, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", rows_of(kind))
    named = ("--task", {"question_answering": "qa"}.get(kind, kind), "--set", "stride=6", *SETTINGS)
    assert run("train", rows, "-o", tmp_path / "a", "--backbone", tiny_bert, *named) == 0
    shown = capsys.readouterr()
    assert "columns: question + " in shown.err
    assert re.search(r"validation +baseline\n", shown.out)
    assert run("evaluate", tmp_path / "a", rows, "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() & {"f1", "accuracy"}
    assert run("predict", tmp_path / "a", "--file", rows, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(rows_of(kind))
    asked = {"question_answering": ["what ?", "good rain ."], "multiple_choice": ["what ?", "bad", "good", "sun"]}[kind]
    assert run("predict", tmp_path / "a", *asked, "--json") == 0
    out = capsys.readouterr().out
    assert {"answer", "choice"} & json.loads(out).keys()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\t".join(asked) + "\n"))
    assert run("predict", tmp_path / "a", "--json") == 0
    assert capsys.readouterr().out == out
    assert run("predict", tmp_path / "a", *asked) == 0
    assert re.search(r"\(0\.\d{3}\)|\(1\.000\)", capsys.readouterr().out)
    assert run("predict", tmp_path / "a", "what ?") == 2
    assert capsys.readouterr().err.startswith("attentune: ")


def test_predict_with_several_adapters(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("--task", f"tone={tone}", "--task", f"again={tone}")
    assert run("predict", *both, "good film", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"tone", "again"}
    assert answer["tone"]["label"] == answer["again"]["label"]
    rows = [{"task": "again", "text": "good film"}, {"task": "tone", "text": "rain"}]
    assert run("predict", *both, "--file", write_rows(tmp_path / "rows.jsonl", rows), "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["probabilities"] == pytest.approx(answer["again"]["probabilities"])
    assert second.keys() == first.keys()
    assert run("predict", *both, "good film") == 0
    assert re.search(r"tone: \w+ \(0\.\d+\); again: \w+", capsys.readouterr().out)
    wanted = "input 2 names no task, and others do; name one in every row, or in none"
    for lines in ('{"task": "tone", "text": "x"}\n{"text": "y"}', '{"task": "tone", "text": "x"}\ny'):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert run("predict", *both) == 2
        assert wanted in capsys.readouterr().err
    assert run("predict", *both, "--file", write_rows(tmp_path / "some.jsonl", [rows[0], {"text": "rain"}])) == 2
    assert wanted in capsys.readouterr().err
    assert run("predict", *both, "--file", write_rows(tmp_path / "none.jsonl", [{"task": None, "text": "rain"}])) == 0
    assert re.search(r"tone: \w+ \(0\.\d+\); again: \w+", capsys.readouterr().out)


def test_a_task_may_be_named_as_a_part_of_an_answer(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "label value labels choice answer text spans attention abstained out_of_scope prediction_set interval"
    tasks = [part for name in names.split() for part in ("--task", f"{name}={tone}")]
    assert run("predict", *tasks, "good film") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"(\w+): (?:pos|neg) \(0\.\d+\)", shown) == names.split()
    rows = write_rows(tmp_path / "rows.jsonl", [{"task": "label", "text": "rain"}])
    assert run("predict", *tasks, "--file", rows) == 0
    assert re.search(r"rain +(pos|neg) \(0\.\d+\)", capsys.readouterr().out)


def test_a_mark_of_byte_order_is_no_part_of_a_text(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'\xef\xbb\xbf{"text": "good film"}\nrain\n'
    (tmp_path / "texts.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    for more in (("--file", tmp_path / "texts.txt"), ()):
        assert run("predict", tone, *more) == 0
        assert re.search(r"^good film +\w+ \(.*\n^rain ", capsys.readouterr().out, re.MULTILINE)


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)
    assert run("methods", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)
    assert run("methods", "pasta") == 0
    assert "slots" in capsys.readouterr().out
    assert run("methods", "pasta", "--json") == 0
    assert {"option", "default", "help"} == json.loads(capsys.readouterr().out)[0].keys()


def test_anatomy(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("anatomy", tiny_bert, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model_type"] == "bert"
    assert found["methods"]["pasta"] == 2 * 4 * 32  # 2 blocks, 4 slots, width 32
    assert all(isinstance(count, int) and count > 0 for count in found["methods"].values())
    assert found["stacks"][0]["sites"]["query"] == "attention.self.query"
    assert run("anatomy", tiny_bert) == 0
    assert "attention.self.query" in capsys.readouterr().out


def test_merge(tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file

    assert run("merge", tone, "--output", tmp_path / "merged", "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "merged")
    assert run("predict", tone, "good film", "--json") == 0
    wanted = json.loads(capsys.readouterr().out)["probabilities"]
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("good film", return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "merged")(**tokens).last_hidden_state
    head = load_file(tmp_path / "merged" / "head.safetensors")
    temperature = json.loads((tmp_path / "merged" / "task.json").read_text())["calibration"]["temperature"]
    found = torch.softmax((states.mean(1) @ head["weight"].T + head["bias"]) / temperature, -1)[0].tolist()
    assert dict(zip(("neg", "pos"), found, strict=True)) == pytest.approx(wanted, abs=1e-5)
    assert json.loads((tmp_path / "merged" / "task.json").read_text())["pooling"] == "mean"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert run("merge", tone, "--output", tmp_path / "merged") == 2
    assert "exists; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_decoder_is_merged_whole(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file

    base, rows = save_writer(kind, tmp_path / "base"), rows_of("classification", 16)
    options: dict[str, Any] = {"epochs": 1, "biases": False, "learning_rate": 0.05, "max_length": 12}
    adapter = attentune.train(rows, "kernel_mix", tmp_path / "a", str(base), **options).folder
    assert run("merge", adapter, "--output", tmp_path / "merged") == 0
    assert "get_encoder() reads for the head" in capsys.readouterr().err
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("anna ben", return_tensors="pt")
    model, found = AutoModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not found["missing_keys"]
    with torch.no_grad():
        states = model.eval().get_encoder()(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    head = load_file(tmp_path / "merged" / "head.safetensors")
    loaded = attentune.load(adapter)
    wanted = loaded.predict(["anna ben"])[0]["probabilities"]
    logits = (states.mean(1) @ head["weight"].T + head["bias"]) / loaded.card.calibration.temperature
    assert logits.softmax(-1)[0].tolist() == pytest.approx(list(wanted.values()), abs=1e-5)


def test_merge_refuses_what_is_no_part_of_a_weight(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("merge", pairs, "--output", tmp_path / "merged") == 2
    assert "pasta has no merged form" in capsys.readouterr().err


def test_a_merge_that_dies_leaves_nothing_in_its_place(
    tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", full)
        assert run("merge", tone, "--output", tmp_path / "merged") == 2
    assert not (tmp_path / "merged").exists()
    assert run("merge", tone, "--output", tmp_path / "merged") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict",), "no adapter given"),
        (("predict", "nowhere", "x"), "no adapter folder at nowhere"),
        (("predict", "--task", "tone", "x"), "--task wants NAME=DIR, found 'tone'"),
        (("predict", "--task", "a=b", "--task", "a=c", "x"), "two tasks are named 'a'"),
        (("train", "none.csv", "--output", "x"), "no data at none.csv"),
        (("train", "none.csv", "--output", "x", "--set", "epochs"), "wanted key=value, found 'epochs'"),
        (("methods", "lora"), "no method 'lora'; the methods are tiny_attention"),
        (("evaluate", "nowhere", "rows.csv"), "no adapter folder at nowhere"),
        (("evaluate", "a", "rows.csv", "--report", "/tmp"), "--report /tmp: that is a folder; name a file in it"),
        (("evaluate", "a", "rows.csv", "--report", "/nowhere/x.html"), "--report /nowhere/x.html: there is no folder"),
        (("serve", "pyproject.toml"), "pyproject.toml is a file; wanted a folder of adapter folders"),
    ],
)
def test_refusals_are_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("attentune: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_wrong_inputs_of_predict(
    tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("good\n\nbad\n")
    assert run("predict", tone, "--file", tmp_path / "texts.txt") == 2
    assert "line 2 is empty" in capsys.readouterr().err
    assert run("predict", tone, "x", "--file", tmp_path / "texts.txt") == 2
    assert "wanted one of them" in capsys.readouterr().err
    assert run("predict", tone, "--file", tmp_path / "none.txt") == 2
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes("good\ncafé film\n".encode("latin-1"))
    assert run("predict", tone, "--file", tmp_path / "latin.txt") == 2
    assert "input 2: wanted a text in UTF-8, found half a character, '\\udce9'" in capsys.readouterr().err
    for text, match in (
        ("", "no text to answer"),
        ('good\n{"text": "\\ud800"}\n', "input 2: wanted a text in UTF-8"),
        ("good\n" + "[" * 5000, "line 2 is nested too deeply"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert run("predict", tone) == 2
        assert match in capsys.readouterr().err
    stream = io.TextIOWrapper(io.BytesIO("caf\xe9".encode("latin-1")), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stream)
    assert run("predict", tone) == 2
    assert "input 1: wanted a text in UTF-8" in capsys.readouterr().err


def test_who_interrupts_training_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), show.resumable():
        raise KeyboardInterrupt
    assert "the same command with --resume goes on from the last checkpoint" in capsys.readouterr().err


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attentune.cli", "methods", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(BUILT_IN)
