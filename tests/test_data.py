"""Every format, every guess, and one clear error for every way in which data can be wrong."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from attentune.errors import ConfigError, DataError
from attentune.tasks.columns import Columns, choose
from attentune.tasks.data import load_data, load_rows
from attentune.tasks.sources import read

ROWS: list[dict[str, Any]] = [
    {"text": text, "label": label}
    for text, label in [
        ("good film, really", "pos"),
        ("NA", "neg"),
        ('a "bad" plot', "neg"),
        ("null", "pos"),
        ("the river", "pos"),
        ("rain é", "neg"),
    ]
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows -> a file of the format that its name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        plain = path.with_name(name)
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        content = plain.read_bytes()
    elif name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path
    else:
        text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "name", [f"d{s}{gz}" for s in (".csv", ".tsv", ".jsonl", ".json") for gz in ("", ".gz")] + ["d.parquet"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    data = load_data(write(tmp_path / name, ROWS), validation=1 / 3)
    assert data.kind == "classification"
    assert data.labels == ("neg", "pos")
    assert sorted(row["text"] for row in data.train + data.validation) == sorted(row["text"] for row in ROWS)
    assert len(data.validation) == 2
    assert data.notes[0] == "columns: text -> label"


@pytest.mark.parametrize("name", ["d[12].csv", "d[12].tsv", "d[12].parquet", "[2024]/train.csv", "[2024]/d.csv.gz"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    """Though the library that reads it would take it for one, and read its neighbour."""
    for one, rows in {name.replace("[12]", "1"): ROWS[:1], name: ROWS}.items():
        (tmp_path / one).parent.mkdir(exist_ok=True)
        write(tmp_path / one, rows)
    assert read(tmp_path / name)["train"].rows == ROWS


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.jsonl.gz", "d.csv"])
def test_texts_that_look_like_dates_are_texts(tmp_path: Path, name: str) -> None:
    rows = [{"input": f"{day} May 2020", "output": f"2020-05-0{day}"} for day in range(1, 7)]
    written = load_data(write(tmp_path / name, rows), "generation")
    assert written.columns == Columns(("input",), "output")
    assert {row["label"][0] for row in [*written.train, *written.validation]} == {row["output"] for row in rows}
    days = [{"text": "good film", "label": "2020-05-01"}, {"text": "bad film", "label": "2020-05-02T10:00:00"}] * 2
    assert load_data(write(tmp_path / name, days)).labels == ("2020-05-01", "2020-05-02T10:00:00")


def test_json_as_it_stands(tmp_path: Path) -> None:
    """A mark of byte order, empty lines, characters that end lines elsewhere, and columns that some rows lack."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a\xe2\x80\xa8b", "label": "x"}\r\n\r\n{"text": "\\ud83d\\ude00", "label": 7, "id": 1}\n'
    )
    assert read(path)["train"].rows == [
        {"text": "a\u2028b", "label": "x", "id": None},
        {"text": "\U0001f600", "label": 7, "id": 1},
    ]
    (tmp_path / "texts.json").write_text('\n ["a", "b"]')
    assert read(tmp_path / "texts.json")["train"].rows == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("d.jsonl", '{"text": "a"}\n\n{"text": "b",\n', "d.jsonl, line 3, as JSON: Expecting property name"),
        ("d.json", '[{"text": "a"},\n {"text": "b"]', "d.json, line 2, as JSON: Expecting ',' delimiter at column 14"),
        ("d.json", '{\n "data": []}', "wanted a list of rows, or a row a line"),
        ("d.jsonl", '{"text": "a"}\n7\n', "d.jsonl, line 2: wanted a row, as an object, found int"),
        ("d.json", '[{"text": "a"}, null]', "d.json, row 2: wanted a row, as an object, found NoneType"),
        ("d.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2: wanted a text, found half a character, '\\ud83d'"),
        (
            "d.jsonl",
            f'{{"text": "a", "label": {"1" * 4301}}}',
            "line 1, as JSON: a whole number has more than 4300 digits",
        ),
        ("d.jsonl", "\n" + '{"text": ' * 5000, "line 2, as JSON: it is nested too deeply"),
        ("d.jsonl", '{"text": "a", "label": "b", "label": "c"}', "line 1: a row has two columns 'label'"),
        ("d.jsonl", "\n\n", "has no rows; at least one is needed"),
    ],
)
def test_json_that_is_none_is_refused_with_its_line(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    bad(tmp_path / name, match)


def test_half_a_file_that_is_packed(tmp_path: Path) -> None:
    for name in ("d.jsonl.gz", "d.csv.gz"):
        path = write(tmp_path / name, ROWS)
        path.write_bytes(path.read_bytes()[:-9])
        bad(path, "Compressed file ended before the end-of-stream marker was reached")


def test_tsv_with_quotes_that_are_text(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text('text\tlabel\n"Open quote\tx\nplain\ty\nanother" one\tx\n', encoding="utf-8")
    data = load_data(path)
    assert {row["text"] for row in data.train + data.validation} == {'"Open quote', "plain", 'another" one'}


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("d.csv", "text,label\ngood,pos,\nbad,neg,\n", 1),
        ("d.csv", 'text,label\n\n"good, film",pos\n\nbad, film,neg\n', 2),
        ("d.tsv", 'text\tlabel\n"open quote\tpos\tx\nbad\tneg\tx\n', 1),
    ],
)
def test_a_row_with_a_cell_too_many_is_refused(tmp_path: Path, name: str, content: str, row: int) -> None:
    (tmp_path / name).write_text(content)
    bad(
        tmp_path / name,
        f"{name}, row {row} has 3 cells, wanted 2 (text, label); quote texts that hold the delimiter",
    )


def test_files_as_spreadsheets_write_them_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "semicolons.csv").write_text("text;label\ngood film;pos\nbad film;neg\n")
    bad(tmp_path / "semicolons.csv", "one column, 'text;label'; cells are wanted with commas between them")
    (tmp_path / "latin.csv").write_bytes("text,label\nschöner Film,pos\n".encode("latin-1"))
    bad(tmp_path / "latin.csv", "it is not UTF-8; save it as UTF-8")


def test_a_bad_line_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a",\n')
    bad(tmp_path / "d.jsonl", "cannot read")
    assert [record.message for record in caplog.records if record.name.startswith("datasets")] == []


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(",text,label\n0,good film,pos\n1,bad film,neg\n")
    (tmp_path / "empty.csv").write_text("text,label,,\ngood film,pos,,\nbad film,neg,,\n")
    for name in ("index.csv", "empty.csv"):
        data = load_data(tmp_path / name)
        assert data.columns == Columns(("text",), "label")
        assert data.labels == ("neg", "pos")
    (tmp_path / "none.csv").write_text(",,\n1,2,3\n")
    bad(tmp_path / "none.csv", "wanted a line of column names and at least one row")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label,label\ngood film,pos,neg\nbad film,neg,pos\n")
    bad(tmp_path / "d.csv", "d.csv has two columns 'label'; give each its own name")


def test_a_cell_may_be_a_whole_document(tmp_path: Path) -> None:
    limit = csv.field_size_limit(131_072)
    try:
        rows = [{"text": "good " * 30_000, "label": "pos"}, {"text": "bad", "label": "neg"}]
        data = load_data(write(tmp_path / "long.csv", rows), validation=0.5)
    finally:
        csv.field_size_limit(limit)
    assert max(len(row["text"]) for row in [*data.train, *data.validation]) == 150_000


def test_a_folder_may_be_called_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    write(tmp_path / "demo" / "train.csv", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(load_rows("demo", Columns(("text",), "label"), "classification")) == len(ROWS)
    assert load_rows("demo:intent", Columns(("text",), "label"), "classification", "test")
    with pytest.raises(DataError, match="A demo task was wanted, 'intents' was found"):
        load_data("demo:intents")


def test_folder_with_aliases(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl.gz", ROWS)
    write(tmp_path / "dev.csv", ROWS[:2])
    write(tmp_path / "test.jsonl", ROWS[2:4])
    (tmp_path / "meta.json").write_text("{}")
    data = load_data(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 2)
    assert load_rows(tmp_path, data.columns, "classification") == data.test
    assert load_rows(tmp_path, data.columns, "classification", split="validation") == data.validation


@pytest.mark.parametrize(
    ("one", "other", "split"),
    [
        ("train.csv", "train.jsonl", "train"),
        ("train.v1.csv", "train.v2.csv", "train"),
        ("dev.csv", "validation.csv", "validation"),
        ("Test.csv", "testing.csv.gz", "test"),
    ],
)
def test_two_files_of_one_split_are_refused(tmp_path: Path, one: str, other: str, split: str) -> None:
    for name in [*["train.csv"] * (split != "train"), one, other]:
        write(tmp_path / name, ROWS)
    (tmp_path / "testing.csv").unlink(missing_ok=True)
    bad(tmp_path, f"{one} and {other} are both the {split} split; keep one of them")


def test_two_names_of_one_split_are_refused() -> None:
    bad({"train": ROWS, "dev": ROWS, "val": ROWS}, "dev and val are both the validation split; keep one of them")


def test_python_rows_and_data_sets() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zz", "aa"])})
    numbered = [{"text": f"text {i}", "label": i % 2} for i in range(10)]
    split = datasets.Dataset.from_list(numbered, features=features)
    hidden = datasets.Dataset.from_list([{"text": "x", "label": -1}], features=features)
    data = load_data(datasets.DatasetDict({"train": split, "test": hidden}))
    assert data.labels == ("zz", "aa")
    assert data.train[0]["label"] in {"zz", "aa"}
    assert data.test == []
    assert "test: left out, it has no labels" in data.notes
    assert load_data(numbered).labels == ("0", "1")
    assert load_data({"train": numbered, "dev": numbered[:3]}).validation == [
        {"text": f"text {i}", "label": str(i % 2)} for i in range(3)
    ]


def test_tag_numbers_become_names() -> None:
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    rows = [{"tokens": ["Anna", "is"], "ner_tags": [1, 0]}] * 4
    data = load_data(datasets.Dataset.from_list(rows, features=features))
    assert data.kind == "tagging"
    assert data.labels == ("O", "B-PER")
    assert data.train[0] == {"tokens": ["Anna", "is"], "tags": ["B-PER", "O"]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "label"], Columns(("text",), "label")),
        (["idx", "Sentence1", "sentence2", "score"], Columns(("Sentence1", "sentence2"), "score")),
        (["premise", "hypothesis", "label"], Columns(("premise", "hypothesis"), "label")),
        (["message", "reply", "intent"], Columns(("message", "reply"), "intent")),
        (["question", "sentence", "label"], Columns(("question", "sentence"), "label")),
        (["question", "label"], Columns(("question",), "label")),
        (["tokens", "tags"], Columns(("tokens",), "tags")),
        (["id", "words", "ner_tags"], Columns(("words",), "ner_tags")),
        (["utterance", "what"], Columns(("utterance",), "what")),
        (["text", "tags"], Columns(("text",), "tags")),
    ],
)
def test_columns_are_guessed(names: list[str], expected: Columns) -> None:
    assert choose(names) == expected
    assert Columns.from_card(expected.to_card()) == expected


def test_columns_are_named() -> None:
    assert choose(["a", "b", "c", "d"], inputs=["c", "a"], label="d") == Columns(("c", "a"), "d")
    with pytest.raises(DataError, match="no column 'z'; the columns are a, b"):
        choose(["a", "b"], inputs=["z"])
    with pytest.raises(DataError, match="no column looks like text; the columns are a, b"):
        choose(["a", "b"])
    with pytest.raises(DataError, match="no column looks like labels; the columns are text, p, q"):
        choose(["text", "p", "q"])
    with pytest.raises(ConfigError, match="found 3 columns"):
        choose(["a", "b", "c"], inputs=["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "label", "inputs"),
    [
        (["question", "answer"], "answer", ("question",)),
        (["message", "reply"], "reply", ("message",)),
        (["text", "title"], "text", ("title",)),
        (["tokens", "text", "ner_tags"], "ner_tags", ("tokens",)),
    ],
)
def test_what_is_learned_is_not_read(names: list[str], label: str, inputs: tuple[str, ...]) -> None:
    assert choose(names, label=label) == Columns(inputs, label)


def test_a_column_is_not_both_read_and_learned() -> None:
    with pytest.raises(DataError, match="column 'b' cannot be both read and learned; the columns are a, b, c"):
        choose(["a", "b", "c"], inputs=["a", "b"], label="b")
    with pytest.raises(DataError, match="column 'b' cannot be both read and learned"):
        choose(["text", "a", "b"], label="b", kind="multiple_choice", choices=["a", "b"])
    with pytest.raises(DataError, match="no other column looks like text; the columns are text"):
        choose(["text"], label="text")
    with pytest.raises(DataError, match="no columns look like a question and its context"):
        choose(["question", "text"], label="text", kind="question_answering")


def rows_with(labels: list[Any], name: str = "label") -> list[dict[str, Any]]:
    return [{"text": f"text {i}", name: label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        (["b", "a", "b"], "classification", ("a", "b")),
        ([10, 2, 10], "classification", ("2", "10")),
        (["10", "-2", "10"], "classification", ("-2", "10")),
        (["1", "01", "001", "0001", "0", "-0", "00"], "classification", ("-0", "0", "00", "0001", "001", "01", "1")),
        (["②", "①", "②"], "classification", ("①", "②")),  # digits, which int() does not read
        (["--10", "-2", "-2"], "classification", ("--10", "-2")),
        ([True, False, True], "classification", ("false", "true")),
        ([0.5, 1.0, 3.0], "regression", ()),
        (["0.5", "1", "3"], "regression", ()),
        ([["a"], ["b", "a"], []], "multilabel", ("a", "b")),
        (["a|b", "b", ""], "multilabel", ("a", "b")),
    ],
)
def test_kinds_are_guessed(labels: list[Any], kind: str, classes: tuple[str, ...]) -> None:
    data = load_data(rows_with(labels))
    assert (data.kind, data.labels) == (kind, classes)
    assert f"task: {kind}" in data.notes


def test_kind_is_named() -> None:
    data = load_data(rows_with([1, 2, 3, 4]), kind="regression")
    assert data.kind == "regression"
    assert all(isinstance(row["label"], float) for row in data.train)
    with pytest.raises(DataError, match="a pair has two texts, found text -> label; name both text columns"):
        load_data(rows_with(["a", "b"]), kind="pair")
    with pytest.raises(ConfigError, match="no task kind 'ranking'"):
        load_data(rows_with([1, 2]), kind="ranking")


def test_rows_to_score_have_the_form_of_training() -> None:
    one, two = Columns(("sentence",), "label"), Columns(("premise", "hypothesis"), "label")
    rows = [{"question": "who ?", "answer": "Anna", "label": "a"}]
    assert load_rows(rows, Columns(("premise", "reply"), "label"), "classification")[0]["text_pair"] == "Anna"
    wanted = "the train rows have question + answer -> label, and the task was trained on sentence -> label"
    with pytest.raises(DataError, match=re.escape(wanted)):
        load_rows(rows, one, "classification")
    wanted = "have premise -> label, and the task was trained on premise + hypothesis -> label; give the columns the"
    with pytest.raises(DataError, match=re.escape(wanted)):
        load_rows([{"premise": "a", "hyp": "b", "label": "c"}], two, "classification")


def bad(rows: Any, match: str, **options: Any) -> None:
    with pytest.raises(DataError, match=re.escape(match)) as caught:
        load_data(rows, **options)
    assert "\n" not in str(caught.value)


def test_wrong_rows_name_the_row() -> None:
    good = rows_with(["a", "b", "a"])
    bad([*good, {"text": " ", "label": "a"}], "train row 4, column 'text': the text is empty")
    bad([*good, {"text": None, "label": "a"}], "train row 4, column 'text': wanted a text, found nothing")
    bad([*good, {"text": 7, "label": "a"}], "train row 4, column 'text': wanted a text, found int 7")
    bad([*good, {"text": "x", "label": None}], "train row 4, column 'label': wanted a class, found nothing")
    bad([*good, {"label": "a"}], "train row 4 has no column 'text'")
    bad(
        {"train": good, "validation": [{"text": "x", "label": "c"}]},
        "validation row 1 has label 'c', which training does not know: a, b",
    )
    bad([{"text": "x", "label": v} for v in ("1.5", "much")], "train row 2", kind="regression")
    bad(rows_with([1.0, 10**309]), "train row 2, column 'label': wanted a number, found int 1000")
    bad(rows_with([1.0, float("nan")]), "train row 2, column 'label': wanted a number, found float nan")
    bad(rows_with(["a"] * 4), "training has one class only, a")
    bad(rows_with([[], []]), "no training row has a label")
    bad(rows_with(["a"]) + rows_with(["b"])[:0], "training has one class only")
    bad(rows_with(list(range(30))), "column 'label' has 30 different values in 30 rows")
    bad([{"tokens": ["a", "b"], "tags": ["O"]}], "train row 1 has 2 tokens and 1 tags")
    bad([{"tokens": [], "tags": []}], "train row 1, column 'tokens': the list is empty")
    bad([{"tokens": ["a", ""], "tags": ["O", "O"]}], "train row 1, column 'tokens': wanted words, found nothing")
    wanted = "is neither O nor begins with one of B-, I-, E-, S- as 'B-X' does; write L- as E-, U- as S- and M- as I-"
    for tag in ("L-X", "U-X", "M-X", "X", "o"):
        bad([{"tokens": ["a", "b", "c"], "tags": ["O", "B-X", tag]}], f"tag {tag!r} {wanted}")
    bad([], "the train split of the data has no rows")
    bad("x_y", "'x_y' is no file or folder, and no hub data set")
    bad("x y", "no data at x y: wanted a file")
    bad({"train": good, "extra": good}, "no split 'extra'; the splits are train, validation, test")
    half = "row 1: wanted a text in UTF-8, found half a character, '\\ud83d'"
    for row in (
        {"text": "cut \ud83d", "label": "a"},
        {"text": "a", "label": ["\ud83d"]},
        {"text": "a", "label": "\ud83d"},
    ):
        bad([row] * 2, f"train {half}")
    bad({"train": good, "test": [{"text": "\ud83d", "label": "a"}]}, f"test {half}")
    bad([{"tokens": ["\ud83d"], "tags": ["O"]}], f"train {half}")
    bad([1, 2], "wanted a list of rows (dicts)")
    bad({"test": good}, "no train split; the splits are test")


@pytest.mark.parametrize("tags", [["O", "B-X", "I-X", "E-X", "S-X"], ["B", "X-NN", "O"], ["NN", "VB-S", "-LRB-"]])
def test_tags_with_and_without_spans(tags: list[str]) -> None:
    assert load_data([{"tokens": tags, "tags": tags}] * 2).labels == tuple(
        sorted(tags, key=lambda tag: (tag != "O", tag))
    )


def test_tags_that_are_declared_and_never_used_are_none() -> None:
    """Where others are of entities: one outside would turn their spans off."""
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER", "X"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": tags})
    rows = [{"tokens": ["Anna", "runs"], "tags": [1, 0]}] * 4
    assert load_data(datasets.Dataset.from_list(rows, features=features)).labels == ("O", "B-PER", "I-PER")
    with pytest.raises(DataError, match="tag 'X' is neither O nor begins"):
        load_data(datasets.Dataset.from_list([*rows, {"tokens": ["Anna"], "tags": [3]}], features=features))


def test_wrong_files(tmp_path: Path) -> None:
    bad(tmp_path / "none.csv", "no data at")
    bad("./none", "no data at ./none")
    bad(tmp_path, "has no data file; wanted train")
    for name in ("e.csv", "e.jsonl", "e.json", "e.parquet", "e.csv.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            load_data(tmp_path / name)
    (tmp_path / "h.csv").write_text("text,label\n")
    bad(tmp_path / "h.csv", "has no rows")
    (tmp_path / "b.jsonl").write_text('{"text": "x"\nnot json\n')
    bad(tmp_path / "b.jsonl", "cannot read")
    (tmp_path / "x.xlsx").write_text("?")
    bad(tmp_path / "x.xlsx", "cannot tell the format of x.xlsx")
    bad(tmp_path, "wanted train, validation and test files")
