"""What the playground computes before anything is drawn: pieces of a text, lines of the table, bins, asks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_predict import near

from attentune import store
from attentune.backbones import load_backbone
from attentune.evaluation.calibration import reliability
from attentune.serving.bank import Bank
from attentune.serving.playground import overview
from attentune.serving.playground.asking import Form, wanted
from attentune.serving.playground.spans import Piece, pieces
from attentune.serving.registry import Registry
from attentune.tasks import Classification
from serving.kit import adapter

INTERVALS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from("AB")), max_size=5)


@given(st.text("ab ", max_size=10), INTERVALS)
def test_pieces_are_the_text_and_every_character_has_its_label(text: str, spans: list[tuple[int, int, str]]) -> None:
    found = pieces(text, spans)
    assert "".join(piece.text for piece in found) == text
    assert all(piece.text for piece in found)
    labels = "".join((piece.label or " ") * len(piece.text) for piece in found)
    for i, label in enumerate(labels):
        over = [span[2] for span in sorted(spans) if span[0] <= i < span[1]]
        assert (label in over) if over else label == " "


def test_pieces_of_spans_that_touch() -> None:
    assert pieces("Anna Berg", [(5, 9, "B"), (0, 4, "A")]) == [Piece("Anna", "A"), Piece(" "), Piece("Berg", "B")]


@pytest.fixture(scope="module")
def registry(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    where, base = tmp_path_factory.mktemp("served"), load_backbone(str(tiny_bert))
    adapter(base, where / "tone", "pasta", 1, labels=3)
    registry = Registry(Bank(str(tiny_bert)), where)
    registry.scan()
    return registry


MEASURED: dict[str, Any] = {
    "validation": {"accuracy": 0.9},
    "test": {"accuracy": 0.75},
    "calibration": {"test": {"ece": 0.04}},
    "seeds": {"runs": {"0": {}, "1": {}}, "mean": {"test": {"accuracy": {"mean": 0.74, "low": 0.7, "high": 0.78}}}},
}


def test_a_line_has_the_scores_of_the_last_split_with_their_interval(registry: Registry) -> None:
    (registry.folder.path / "tone" / store.METRICS).write_text(json.dumps(MEASURED))
    line = overview.line("tone", registry.task("tone"))
    assert (line.metric, line.split, line.score, line.ece) == ("accuracy", "test", 0.75, 0.04)
    assert line.interval == overview.Interval(0.74, 0.7, 0.78, 2)
    assert line.bytes == registry.task("tone").active.entry.bytes


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"test": 3, "validation": "x", "seeds": [], "calibration": {"validation": []}}',
        '{"test": {"accuracy": "0.9"}, "seeds": {"mean": {"test": {"accuracy": {"low": true}}}}}',
        '{"test": {"accuracy": NaN}, "calibration": {"test": {"ece": null}}}',
    ],
)
def test_metrics_of_any_form_do_no_harm(registry: Registry, content: str) -> None:
    (registry.folder.path / "tone" / store.METRICS).write_text(content)
    line = overview.line("tone", registry.task("tone"))
    assert (line.score, line.interval, line.ece) == (None, None, None)


def test_bins_go_through_the_file() -> None:
    bins = reliability([0.1, 0.15, 0.8, 0.9], [0, 1, 1, 1])
    metrics = json.loads(json.dumps({"reliability": {"test": {"before": bins.to_card(), "after": bins.to_card()}}}))
    found = overview.reliability(metrics, "test")
    assert list(found) == ["as learned", "calibrated"]
    assert near(found["calibrated"].to_card(), bins.to_card())
    assert overview.reliability(metrics, "validation") == {}


@pytest.mark.parametrize("bins", [3, {}, {"stated": [0.1], "observed": [], "weight": []}, {"stated": "x"}])
def test_broken_bins_are_none(bins: Any) -> None:
    assert overview.reliability({"reliability": {"test": {"before": bins, "after": bins}}}, "test") == {}


def test_what_a_task_cannot_do_is_not_asked_of_it(registry: Registry) -> None:
    entry = registry.task("tone").active.entry
    assert isinstance(entry.card.task, Classification)
    found = wanted("tone", entry, Form("good film", abstain_at=0.5, coverage=0.9))
    # It can abstain; it was never calibrated, so that it can promise nothing; it mixes no prompts.
    assert (found.abstain_at, found.coverage, found.attention) == (0.5, None, False)
