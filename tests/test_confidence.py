"""Calibration as part of the artefact: fitted while training, kept in the card, applied by every prediction."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run, write_rows
from test_train import QUICK, rows_of

import attentune
from attentune import store
from attentune.confidence import Calibration, Labelled, Scope, answers, calibrate, judge
from attentune.errors import ConfigError, DataError, StoreError
from attentune.predict import load_many, predict_many
from attentune.tasks import Classification, Features, MultiLabel, Regression, Tagging
from attentune.tasks.choose import MultipleChoice, Question
from attentune.tasks.data import load_data
from attentune.tasks.task import Word
from attentune.training.train import Result, train

TEXTS = ["good film", "bad rain the plot is not good", "sun"]


def noisy(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of two classes, a sixth of them with the other one's label, and every eighth row for no task at all."""
    rows = rows_of("classification", count, seed)
    for i, row in enumerate(rows):
        if i % 6 == 0:
            row["label"] = {"pos": "neg", "neg": "pos"}[row["label"]]
        if i % 8 == 5:
            row |= {"text": "who lives in the city ? " * 2, "label": "other"}
    return rows


@pytest.fixture(scope="module")
def scoped(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A classifier that learned to know what is not for it."""
    data = {"train": noisy(96), "validation": noisy(120, 1), "test": noisy(160, 2)}
    options: dict[str, Any] = {**QUICK, "epochs": 8, "learning_rate": 0.02, "out_of_scope": "other"}
    folder = tmp_path_factory.mktemp("adapters") / "tone"
    return train(data, "pasta", folder, str(tiny_bert), **options)


@pytest.fixture(scope="module")
def others(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each other kind."""
    where = tmp_path_factory.mktemp("others")
    return {
        kind: train(
            {"train": rows_of(kind), "validation": rows_of(kind, 24), "test": rows_of(kind, 30, seed=1)},
            "pasta",
            where / kind,
            str(tiny_bert),
            **QUICK,
        ).folder
        for kind in ("multilabel", "regression", "tagging", "multiple_choice", "question_answering")
    }


def test_training_fits_on_validation_and_measures_on_test(scoped: Result) -> None:
    found, trust = scoped.card.calibration, scoped.metrics["calibration"]
    assert scoped.card.task.labels == ("neg", "pos")
    assert found.rows == 120 - 15
    assert 0.1 < found.temperature < 10
    assert found.temperature != 1.0
    assert set(found.quantiles) == {0.8, 0.9, 0.95, 0.99}
    assert trust["validation"]["nll"] <= trust["validation"]["nll_before"]
    assert trust.keys() == {"validation", "test"}
    test = trust["test"]
    assert {"ece", "ece_mass", "brier", "nll"} <= {name.removesuffix("_before") for name in test}
    for promised in (80, 90, 95, 99):
        assert test[f"set_coverage_{promised}"] >= promised / 100 - 0.08
        assert 1 <= test[f"set_size_{promised}"] <= 2
    assert 0 <= test["risk_at_90"] <= 1
    assert test["scope_auroc"] > 0.75
    assert test["scope_recall"] > 0.6


def test_the_folder_holds_it(scoped: Result) -> None:
    stored = store.read(scoped.folder)
    assert stored.card == scoped.card
    assert json.loads((scoped.folder / "metrics.json").read_text()) == scoped.metrics
    readme = (scoped.folder / "README.md").read_text()
    assert f"temperature {scoped.card.calibration.temperature:.3f}" in readme
    assert re.search(r"^\| 90 % \| \d+\.\d% \| [\d.]+ \|$", readme, re.MULTILINE)
    assert re.search(r"^Of such texts \d+\.\d% were found", readme, re.MULTILINE)


def test_evaluating_the_folder_gives_the_same_numbers(scoped: Result) -> None:
    found = attentune.load(scoped.folder).evaluate(noisy(160, 2), abstain_at=0.7)
    wanted = {**scoped.metrics["test"], **scoped.metrics["calibration"]["test"]}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert found.keys() - wanted.keys() == {"answered", "risk"}
    everything = attentune.load(scoped.folder).evaluate(noisy(160, 2), abstain_at=0.0)
    assert everything["answered"] == 1.0
    assert everything["risk"] == pytest.approx(1 - everything["accuracy"])


def changed(folder: Path, target: Path, **calibration: Any) -> Path:
    """A copy of an adapter whose card has another calibration."""
    shutil.copytree(folder, target)
    card = json.loads((target / "task.json").read_text())
    card["calibration"] |= calibration
    (target / "task.json").write_text(json.dumps(card))
    return target


def test_predictions_use_the_temperature_of_the_card(scoped: Result, tmp_path: Path) -> None:
    cold = attentune.load(changed(scoped.folder, tmp_path / "cold", temperature=1.0)).predict(TEXTS)
    warm = attentune.load(changed(scoped.folder, tmp_path / "warm", temperature=2.0)).predict(TEXTS)
    for a, b in zip(cold, warm, strict=True):
        odds = a["probabilities"]["pos"] / a["probabilities"]["neg"]
        assert b["probabilities"]["pos"] / b["probabilities"]["neg"] == pytest.approx(odds**0.5, rel=1e-4)
        assert a["label"] == b["label"]
        assert a["out_of_scope_score"] == pytest.approx(b["out_of_scope_score"], abs=1e-5)


def test_abstaining_keeps_the_probabilities(scoped: Result) -> None:
    adapter = attentune.load(scoped.folder)
    plain = adapter.predict(TEXTS)
    at = sorted(a["score"] for a in plain)[1]
    found = adapter.predict(TEXTS, abstain_at=at)
    assert [a["abstained"] for a in found] == [a["score"] < at for a in plain]
    assert sum(a["abstained"] for a in found) == 1
    assert [a["probabilities"] for a in found] == [a["probabilities"] for a in plain]


def test_sets_hold_the_answer_and_grow_with_the_promise(scoped: Result) -> None:
    adapter = attentune.load(scoped.folder)
    sizes: list[int] = []
    for coverage in (0.8, 0.9, 0.99):
        found = adapter.predict([row["text"] for row in noisy(40, 3)], coverage=coverage)
        assert all(a["prediction_set"][0] == a["label"] for a in found)
        assert all(
            {name for name, p in a["probabilities"].items() if 1 - p <= adapter.card.calibration.quantiles[coverage]}
            <= set(a["prediction_set"])
            for a in found
        )
        sizes.append(sum(len(a["prediction_set"]) for a in found))
    assert sizes == sorted(sizes)


def test_texts_out_of_scope_are_flagged(scoped: Result) -> None:
    scope = scoped.card.calibration.scope
    assert scope is not None
    assert scope.label == "other"
    inside, outside = attentune.load(scoped.folder).predict(["good film the plot", "who lives in the city ? " * 2])
    assert not inside["out_of_scope"]
    assert outside["out_of_scope"]
    assert inside["out_of_scope_score"] < scope.threshold <= outside["out_of_scope_score"]


def test_other_kinds(others: dict[str, Path]) -> None:
    many = attentune.load(others["multilabel"])
    (answer,) = many.predict(["good film"], abstain_at=0.999, coverage=0.9)
    p = answer["probabilities"]
    assert answer["score"] == pytest.approx(np.prod([max(v, 1 - v) for v in p.values()]))
    assert answer["abstained"]
    assert set(answer["labels"]) <= set(answer["prediction_set"])
    assert many.evaluate(rows_of("multilabel", 30, seed=1))["set_coverage_90"] >= 0.7

    stars = attentune.load(others["regression"])
    (answer,) = stars.predict(["good film"], coverage=0.8)
    low, high = answer["interval"]
    assert (low + high) / 2 == pytest.approx(answer["value"])
    found = stars.evaluate(rows_of("regression", 30, seed=1))
    assert found["set_size_80"] == pytest.approx(high - low)
    assert found["set_coverage_80"] >= 0.6
    assert "ece" not in found
    assert stars.card.calibration.temperature == 1.0

    names = attentune.load(others["tagging"])
    (answer,) = names.predict(["Anna visits Paris"], abstain_at=1.0)
    assert answer["abstained"]
    assert {"ece", "nll_before", "aurc"} <= names.evaluate(rows_of("tagging", 30, seed=1)).keys()


def test_choices_and_passages(others: dict[str, Path]) -> None:
    choose = attentune.load(others["multiple_choice"])
    rows = rows_of("multiple_choice", 30, seed=1)
    (answer,) = choose.predict([{**rows[1], "label": None}], abstain_at=1.0, coverage=0.95)
    p = answer["probabilities"]
    assert answer["abstained"]
    assert answer["prediction_set"] == sorted(answer["prediction_set"], key=lambda i: -p[i])
    assert answer["prediction_set"][0] == answer["index"]
    found = choose.evaluate(rows)
    assert found["nll"] != found["nll_before"]
    assert 1 <= found["set_size_80"] <= found["set_size_95"] <= 3

    passage = attentune.load(others["question_answering"])
    given = passage.judge(rows_of("question_answering", 30, seed=1), abstain_at=0.01)
    assert given.curve is not None
    assert given.curve.risk_at(1.0) == pytest.approx(1 - given.scores["exact_match"])
    assert given.trust["ece"] <= given.trust["ece_before"] + 0.05
    fitted = passage.judge(rows_of("question_answering", 24)).trust
    assert fitted["nll"] < fitted["nll_before"]
    with pytest.raises(ConfigError, match="there are no prediction sets for question_answering"):
        passage.predict([{"question": "what ?", "context": "good film"}], coverage=0.9)


def test_wishes_that_no_task_can_keep_are_refused(scoped: Result, others: dict[str, Path]) -> None:
    tone = attentune.load(scoped.folder)
    with pytest.raises(ConfigError, match=r"no prediction sets with coverage 0.85; the task card has 0.8, 0.9, 0.95"):
        tone.predict(TEXTS, coverage=0.85)
    with pytest.raises(ConfigError, match="abstain_at is a probability between 0 and 1, found 80"):
        tone.predict(TEXTS, abstain_at=80)
    with pytest.raises(ConfigError, match="an answer of regression has no probability to abstain at"):
        attentune.load(others["regression"]).evaluate(rows_of("regression"), abstain_at=0.5)
    with pytest.raises(ConfigError, match="there are no prediction sets for tagging"):
        predict_many(load_many({"t": scoped.folder, "n": others["tagging"]}), TEXTS, coverage=0.9)


def test_mixed_tasks_each_by_its_own_card(scoped: Result, others: dict[str, Path]) -> None:
    predictor = load_many({"tone": scoped.folder, "topics": others["multilabel"]})
    (answer,) = predict_many(predictor, ["good film"], abstain_at=0.9, coverage=0.9)
    assert answer["tone"].keys() - answer["topics"].keys() == {"label", "out_of_scope", "out_of_scope_score"}
    alone = attentune.load(scoped.folder).predict(["good film"], abstain_at=0.9, coverage=0.9)
    assert answer["tone"]["prediction_set"] == alone[0]["prediction_set"]


def test_a_card_is_read_back_as_it_was_written_and_old_cards_have_defaults(scoped: Result, tmp_path: Path) -> None:
    whole = Calibration(1.5, 7, {0.8: 0.25, 0.95: 0.75}, Scope("doubt", 0.5, None))
    for one in (whole, Calibration()):
        assert Calibration.from_card(json.loads(json.dumps(one.to_card()))) == one
    old = shutil.copytree(scoped.folder, tmp_path / "old")
    card = json.loads((old / "task.json").read_text())
    del card["calibration"]
    (old / "task.json").write_text(json.dumps({**card, "temperature": 1.0}))
    assert store.read(old).card.calibration == Calibration()
    (answer,) = attentune.load(old).predict(["good film"], abstain_at=0.5)
    assert "out_of_scope" not in answer
    with pytest.raises(ConfigError, match="the task card has none, its validation split was too small"):
        attentune.load(old).predict(["good film"], coverage=0.9)
    unknown = changed(scoped.folder, tmp_path / "unknown", scope={"score": "x", "threshold": 1, "label": None})
    with pytest.raises(StoreError, match="names the scope score 'x'; there are energy, doubt"):
        store.read(unknown)


def test_a_threshold_without_rows_outside(tiny_bert: Path, tmp_path: Path) -> None:
    data = {"train": rows_of("classification"), "validation": rows_of("classification", 40, seed=1)}
    result = train(data, "pasta", tmp_path / "a", str(tiny_bert), false_alarms=0.1, **QUICK)
    found = attentune.load(result.folder).predict([row["text"] for row in data["validation"]])
    assert sum(a["out_of_scope"] for a in found) <= 4
    assert "scope_auroc" not in result.metrics["calibration"]["validation"]
    with pytest.raises(ConfigError, match="told by the scores of classes, which regression does not have"):
        train(rows_of("regression"), "pasta", tmp_path / "b", str(tiny_bert), false_alarms=0.1, **QUICK)


def test_rows_out_of_scope_are_set_apart() -> None:
    data = load_data({"train": noisy(48), "test": noisy(16, 1)}, out_of_scope="other")
    assert data.labels == ("neg", "pos")
    assert (len(data.outside["validation"]), len(data.outside["test"])) == (6, 2)
    assert len(data.train) + len(data.validation) == 42
    assert "out of scope: 6 validation rows, 2 test rows" in data.notes
    with pytest.raises(DataError, match="no training or validation row is of the out-of-scope class 'odd'"):
        load_data(noisy(48), out_of_scope="odd")
    with pytest.raises(ConfigError, match="which rows of multilabel do not have"):
        load_data(rows_of("multilabel"), out_of_scope="wet")
    odd = [{"text": "x", "label": label} for label in ("other", "other", "new")]
    with pytest.raises(DataError, match="validation row 3 has label 'new', which training does not know: neg, pos"):
        load_data({"train": rows_of("classification"), "validation": odd}, out_of_scope="other")
    with pytest.raises(DataError, match="every train row is of the out-of-scope class 'a'"):
        load_data([{"text": "x", "label": "a"}] * 3, out_of_scope="a")


def test_what_is_right_and_what_is_judged_by_kind() -> None:
    features = [Features(({"input_ids": [1]},), target=1), Features(({"input_ids": [1]},), target=0)]
    one, rows = Classification(("a", "b")), [{"label": "b"}, {"label": "a"}]
    logits = [np.array([0.0, 1.0]), np.array([0.0, 3.0])]
    found = judge(one, Calibration(), Labelled(logits, features, rows))
    assert found.curve is not None
    assert found.curve.risk.tolist() == [1.0, 0.5]
    assert found.scores["accuracy"] == 0.5
    choose = MultipleChoice()
    questions = [Question(({"input_ids": [1]},), target=t) for t in (1, 0)]
    z, y = choose.events([np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])], questions) or (0, 0)
    assert np.array_equal(z, [[1, 2, -np.inf], [3, 4, 5]])
    assert np.array_equal(y, [1, 0])
    assert choose.events([], []) is None
    topics = MultiLabel(("a", "b"))
    assert topics.is_right({"labels": ["b", "a"]}, {"label": ["a", "b"]})
    assert topics.strangeness({"probabilities": {"a": 0.9, "b": 0.3}}, {"label": ["a", "b"]}) == pytest.approx(0.7)
    assert topics.strangeness({"probabilities": {"a": 0.9, "b": 0.3}}, {"label": []}) == 0.0
    tags = Tagging(("O", "B-X"))
    words = (Word("u", 0, 1, 1), Word("v", 2, 3, None), Word("w", 4, 5, 2))
    sentence = Features(({"input_ids": [0, 1, 2]},), target=[-100, 1, 0], words=words)
    z, y = tags.events([np.arange(6.0).reshape(3, 2)], [sentence]) or (np.zeros(0), np.zeros(0))
    assert (z.tolist(), y.tolist()) == ([[2, 3], [4, 5]], [1, 0])
    assert Tagging(("O", "B-X")).events([], []) is None
    unscored = Regression().events([np.zeros(1)], features)
    assert unscored is None


def test_calibrating_by_hand() -> None:
    task = Classification(("a", "b"))
    rng = np.random.default_rng(0)
    logits = list(rng.normal(size=(200, 2)) * 3)
    labels = rng.integers(0, 2, 200)
    features = [Features(({"input_ids": [1]},), target=int(y)) for y in labels]
    rows = [{"label": "ab"[y]} for y in labels]
    given = Labelled(logits, features, rows, outside=list(np.full((20, 2), -9.0)))
    found = calibrate(task, given, "none")
    assert found.temperature > 5  # the logits know nothing
    assert found.scope is not None
    assert found.scope.score == "energy"
    flags = [a["out_of_scope"] for a in answers(task, found, [np.full(2, -9.0), np.full(2, 3.0)], features[:2])]
    assert flags == [True, False]
    assert answers(task, found, [], []) == []


def test_flags_of_the_command_line(
    scoped: Result, others: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", scoped.folder, "good film", "--abstain-at", 1, "--coverage", 0.99, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["abstained"]
    assert answer["label"] in answer["prediction_set"]
    assert run("predict", scoped.folder, "good film", "--abstain-at", 1, "--coverage", 0.99) == 0
    assert re.search(r"abstains: (pos|neg) \(0\.\d{3}\) \{(pos|neg)", capsys.readouterr().out)
    assert run("predict", scoped.folder, "who lives in the city ? who lives in the city ?") == 0
    assert "out of scope: " in capsys.readouterr().out
    assert run("predict", others["regression"], "good film", "--coverage", 0.8) == 0
    assert re.search(r"[\d.]+ \[[\d.]+, [\d.]+\]", capsys.readouterr().out)
    assert run("predict", scoped.folder, "good film", "--coverage", 0.5) == 2
    assert "no prediction sets with coverage 0.5" in capsys.readouterr().err

    rows, report = write_rows(tmp_path / "rows.jsonl", noisy(40, 5)), tmp_path / "trust.html"
    assert run("evaluate", scoped.folder, rows, "--abstain-at", 0.7, "--report", report, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert {"answered", "risk", "ece", "scope_auroc", "set_coverage_90"} <= numbers.keys()
    text = report.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert "abstaining as asked" in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|rdf:resource="[^"]*"', "", text)
    assert f"{numbers['ece']:.4f}" in text
    assert run("evaluate", others["regression"], write_rows(tmp_path / "stars.jsonl", rows_of("regression", 9))) == 0
    assert "set_size_80" in capsys.readouterr().out
    assert run("evaluate", scoped.folder, rows, "--report", tmp_path / "none" / "trust.html") == 2
    assert "trust.html" in capsys.readouterr().err


def test_training_from_the_command_line_sets_rows_apart(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", noisy(64))
    given = ("--backbone", tiny_bert, "--out-of-scope", "other", "--set", "epochs=1", "--set", "max_length=24")
    assert run("train", rows, "--output", tmp_path / "a", *given) == 0
    shown = capsys.readouterr().err
    assert "out of scope: 8 validation rows" in shown
    assert re.search(
        r"calibration: temperature [\d.]+, expected calibration error on validation [\d.]+ -> [\d.]+\n", shown
    )
    assert 'out_of_scope = "other"' in (tmp_path / "a" / "recipe.toml").read_text()
