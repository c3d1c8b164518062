"""Questions with a context or with choices: which columns are read, in which forms, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attentune.errors import ConfigError, DataError
from attentune.tasks.columns import Columns, choose
from attentune.tasks.data import load_data, load_rows

SQUAD = {"id": "7", "title": "x", "context": "Anna lives in Paris.", "question": " where ? "}
ANSWERED: dict[str, Any] = {**SQUAD, "answers": {"text": ["Paris", "in Paris"], "answer_start": [14, 11]}}
CHECKED = {
    "question": "where ?",
    "context": "Anna lives in Paris.",
    "answers": [{"text": "Paris", "start": 14}, {"text": "in Paris", "start": 11}],
}
ONE = [CHECKED["answers"][0]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["id", "title", "context", "question", "answers"], Columns(("question", "context"), "answers")),
        (["question", "passage", "answers"], Columns(("question", "passage"), "answers")),
        (["Context", "Question", "answer_text", "answer_start"],
         Columns(("Question", "Context"), "answer_text", start="answer_start")),
        (["premise", "choice1", "choice2", "question", "label", "text", "text_pair"],
         Columns(("premise", "question"), "label", choices=("choice1", "choice2"))),
        (["sent1", "sent2", "ending3", "ending0", "ending2", "ending1", "label"],
         Columns(("sent1", "sent2"), "label", choices=("ending0", "ending1", "ending2", "ending3"))),
        (["question", "A", "B", "C", "D", "answer"], Columns(("question",), "answer", choices=("A", "B", "C", "D"))),
        (["article", "question", "options", "answer"],
         Columns(("article", "question"), "answer", choices=("options",))),
        (["question", "choices", "answerKey"], Columns(("question",), "answerKey", choices=("choices",))),
        (["goal", "sol1", "sol2", "label"], Columns(("goal",), "label", choices=("sol1", "sol2"))),
        (["context", "question", "answerA", "answerB", "answerC", "label"],
         Columns(("context", "question"), "label", choices=("answerA", "answerB", "answerC"))),
    ],
)  # fmt: skip
def test_columns_are_guessed_and_shown(names: list[str], expected: Columns) -> None:
    kind = "multiple_choice" if expected.choices else "question_answering"
    assert choose(names, kind=kind) == expected
    assert Columns.from_card(json.loads(json.dumps(expected.to_card()))) == expected
    shown = expected.shown()
    assert all(
        name in shown for name in (*expected.inputs, *expected.choices, expected.label or "", expected.start or "")
    )


def test_kinds_are_guessed_by_the_names() -> None:
    asked = load_data([ANSWERED] * 3)
    assert (asked.kind, asked.labels) == ("question_answering", ())
    assert asked.notes[:2] == ("columns: question + context -> answers", "task: question_answering")
    assert asked.train[0] == CHECKED
    told = load_data([{"premise": "a", "question": "b", "choice1": "c", "choice2": "d", "label": 1}] * 3)
    assert told.train[0] == {"text": "a", "text_pair": "b", "choices": ["c", "d"], "label": 1}
    assert told.notes[:2] == ("columns: premise + question + one of choice1, choice2 -> label", "task: multiple_choice")
    # A label that the user names is a label: the same columns are then a pair of texts.
    rows = [{**ANSWERED, "label": "ab"[i % 2]} for i in range(4)]
    assert load_data(rows, label="label", text=["question", "context"]).kind == "classification"
    named = load_data([{"q": "x ?", "one": "c", "two": "d", "y": "two"}] * 3, text=["q"], label="y",
                      kind="choice", choices=["one", "two"])  # fmt: skip
    assert named.train[0] == {"text": "x ?", "choices": ["c", "d"], "label": 1}


@pytest.mark.parametrize(
    ("cells", "answers"),
    [
        ({"answers": {"text": ["Paris"], "answer_start": [14]}}, ONE),
        ({"answers": [{"text": "Paris", "answer_start": 14}]}, ONE),
        ({"answers": {"text": "Paris", "answer_start": 14}}, ONE),
        ({"answer_text": "Paris", "answer_start": "14"}, ONE),
        ({"answer": "Paris", "answer_start": 14.0}, ONE),
        ({"answer": "Paris"}, ONE),
        ({"answers": ["Paris", "in Paris"], "answer_start": [14, 11]}, CHECKED["answers"]),
        ({"answers": {"text": [], "answer_start": []}}, []),
        ({"answers": []}, []),
        ({"answers": None}, []),
        ({"answer_text": "", "answer_start": "-1"}, []),
        ({"answer_text": " ", "answer_start": None}, []),
    ],
)
def test_forms_of_answers(cells: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    data = load_data([{**SQUAD, **cells}] * 2, kind="qa")
    assert data.train[0]["answers"] == answers


@pytest.mark.parametrize(
    ("cells", "choices", "label"),
    [
        ({"choices": ["a", "b"], "label": 1}, ["a", "b"], 1),
        ({"choices": ["a", "b"], "label": "b"}, ["a", "b"], 1),
        ({"choices": ["a", "b", "c"], "answer": "C"}, ["a", "b", "c"], 2),
        ({"choices": ["a", "b"], "label": "1"}, ["a", "b"], 1),
        ({"choices": ["1", "0"], "label": "1"}, ["1", "0"], 0),  # the text comes first
        ({"choices": [3, 4.5], "label": 1}, ["3", "4.5"], 1),
        ({"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, ["a", "b"], 1),
        ({"choice1": "a", "choice2": "b", "label": "choice2"}, ["a", "b"], 1),
        ({"A": "x", "B": "y", "answer": "B"}, ["x", "y"], 1),
    ],
)
def test_forms_of_choices(cells: dict[str, Any], choices: list[str], label: int) -> None:
    data = load_data([{"question": "which ?", **cells}] * 2)
    assert data.train[0] == {"text": "which ?", "choices": choices, "label": label}


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        'context,question,answer_text,answer_start\n"Anna, in Paris",where ?,Paris,9\n"Anna, in Paris",why ?,,\n'
    )
    data = load_data(tmp_path / "train.csv", validation=0.5)
    assert sorted(len(row["answers"]) for row in data.train + data.validation) == [0, 1]
    assert load_rows(tmp_path / "train.csv", data.columns, data.kind)[0]["answers"] == [{"text": "Paris", "start": 9}]


def test_another_form_of_the_answers_is_guessed() -> None:
    columns = choose(["context", "question", "answers", "answer_start"], kind="question_answering")
    assert columns.start == "answer_start"
    assert load_rows([ANSWERED], columns, "question_answering") == [CHECKED]
    own = Columns(("what", "where"), "answers", start="answer_start")
    row = {"what": "?", "where": "in Paris", "question": "x", "context": "y", "answers": "Paris", "start": 3}
    assert load_rows([row], own, "question_answering")[0] == {
        "question": "?", "context": "in Paris", "answers": [{"text": "Paris", "start": 3}],
    }  # fmt: skip


def bad(rows: Any, match: str, **options: Any) -> None:
    with pytest.raises(DataError, match=re.escape(match)) as caught:
        load_data(rows, **options)
    assert "\n" not in str(caught.value)


def test_wrong_answers_name_the_row() -> None:
    def qa(answers: Any, match: str, **more: Any) -> None:
        bad([ANSWERED, {**SQUAD, "answers": answers, **more}], f"train row 2, column 'answers': {match}", kind="qa")

    off = {"text": ["Paris"], "answer_start": [13]}
    qa(off, "the answer 'Paris' is not at character 13, ' Pari' is; it is at 14")
    qa({"text": ["Rome"], "answer_start": [900]}, "the answer 'Rome' is not at character 900, nothing is")
    qa({"text": ["Rome"], "answer_start": [-2]}, "the answer 'Rome' is not at character -2, 'Anna' is")
    qa({"text": ["Rome"]}, "the answer 'Rome' does not occur in the context")
    qa({"text": ["Paris"], "answer_start": []}, "1 answers have 0 starts; one for each is needed")
    qa({"text": ["Paris"], "answer_start": ["x"]}, "wanted the character where the answer starts, found str 'x'")
    qa({"texts": ["Paris"]}, "wanted 'text' and 'answer_start', found texts")
    qa({"text": [3], "answer_start": [1]}, "wanted the text of an answer, found int 3")
    bad([{**ANSWERED, "context": " "}], "train row 1, column 'context': the text is empty")
    bad([{"a": 1}], "no columns look like a question and its context; the columns are a: name both", kind="qa")
    bad(
        [{"question": "a", "context": "b"}],
        "no column looks like answers; the columns are question, context",
        kind="qa",
    )
    with pytest.raises(ConfigError, match="reads a question and a context, found the column question alone"):
        load_data([ANSWERED], kind="qa", text=["question"])


ASKED = {key: SQUAD[key] for key in ("question", "context")}


@pytest.mark.parametrize(
    ("label", "row", "told", "hidden"),
    [
        ("answers", ASKED, ANSWERED["answers"], {"text": [], "answer_start": []}),
        ("answers", ASKED, ANSWERED["answers"], []),
        ("labels", {"text": "so"}, ["a"], []),
        ("labels", {"text": "so"}, "a|b", ""),
        ("tags", {"tokens": ["so", "it"]}, ["O", "B-X"], [None, None]),
    ],
)
def test_labels_that_are_kept_back(label: str, row: dict[str, Any], told: Any, hidden: Any) -> None:
    """Where none of training looks like that; else it is an answer like others."""
    known, blank = {**row, label: told}, {**row, label: hidden}
    data = load_data({"train": [known, known], "test": [blank, blank]})
    assert not data.test
    assert "test: left out, it has no labels" in data.notes
    assert len(load_data({"train": [known, known], "test": [known, known]}).test) == 2
    if label != "tags":
        assert len(load_data({"train": [known, blank], "test": [blank, blank]}).test) == 2
        assert len(load_data({"train": [known, known], "test": [known, blank]}).test) == 2


def test_labels_of_a_table_are_read_alike(tmp_path: Path) -> None:
    """Each of these cells can be the index of a choice, and all but 0 the choice itself."""

    def table(*labels: str) -> Path:
        rows = "".join(f"how many ?,1,2,3,4,{label}\n" for label in labels)
        (tmp_path / "train.csv").write_text("question,a,b,c,d,label\n" + rows)
        return tmp_path / "train.csv"

    given: dict[str, Any] = {"choices": ["a", "b", "c", "d"], "validation": 0.1}
    bad(
        table("1", "2", "0", "3"),
        "train, column 'label': row 1's '1' is the name of a choice, and row 3's '0' can only be an index from 0",
        **given,
    )
    for labels, indices in {("1", "2", "4"): [0, 1, 3], ("A", "1", "D"): [0, 0, 3]}.items():
        data = load_data(table(*labels), **given)
        assert sorted(row["label"] for row in data.train + data.validation) == indices
    numbers = [{"question": "how many ?", "choices": ["1", "2", "3", "4"], "label": i} for i in range(4)]
    assert [row["label"] for row in load_data({"train": numbers, "validation": numbers}).train] == [0, 1, 2, 3]


def test_wrong_choices_name_the_row() -> None:
    def choice(match: str, **cells: Any) -> None:
        bad([{"question": "which ?", **cells}] * 2, match, kind="multiple_choice")

    choice("train row 1: wanted at least two choices, found 1", choices=["a"], label=0)
    choice("train row 1: wanted a text as choice 2, found str ' '", choices=["a", " "], label=0)
    choice("train row 1: wanted a text as choice 2, found float nan", choices=["a", float("nan")], label=0)
    choice("train row 1, column 'choices': wanted a list of choices, found str 'a'", choices="a", label=0)
    wanted = "train row 1, column 'label': wanted one of the choices or its index, 0 to 1, found "
    choice(wanted + "int 2", choices=["a", "b"], label=2)
    choice(wanted + "str 'z'", choices=["a", "b"], label="z")
    choice(wanted + "str '--1'", choices=["a", "b"], label="--1")
    choice(wanted + "bool True", choices=["a", "b"], label=True)
    choice(wanted + "nothing", choices=["a", "b"], label=None)
    choice("no columns look like choices; the columns are question, label", label=0)
    choice("no column says which choice is right; the columns are question, choices", choices=["a", "b"])
    bad([{"x": 1, "choices": ["a", "b"], "label": 0}], "no column looks like a question; the columns are x")
    bad([{"question": "a", "choices": ["a", "b"], "label": 0}], "no column 'none'", choices=["none"])
