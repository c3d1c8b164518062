"""The heat map of weights: a file of the wished kind, always the same."""

from pathlib import Path

import pytest

from attentune.errors import ConfigError
from attentune.evaluation.heatmap import draw

ROWS = {"intent": {"nli": 0.25, "tone": 0.5, "target": 0.25}, "mood": {"tone": 0.1, "target": 0.9}}
COLUMNS = ["nli", "tone", "target"]


def test_every_weight_is_written_on_the_picture(tmp_path: Path) -> None:
    picture = draw(ROWS, COLUMNS, tmp_path / "a.svg", "Attention").read_text(encoding="utf-8")
    # Letters are drawn as outlines; a comment says what each group of them reads.
    shown = [line.strip("<!- >") for line in picture.splitlines() if line.strip().startswith("<!-- ")]
    assert {"intent", "mood", *COLUMNS, "Attention", "weight"} <= set(shown)
    assert [text for text in shown if text in ("0.25", "0.50", "0.10", "0.90")].count("0.25") == 2
    assert draw(ROWS, COLUMNS, tmp_path / "b.svg", "Attention").read_text(encoding="utf-8") == picture


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_other_kinds_of_pictures(tmp_path: Path, ending: str, start: bytes) -> None:
    first = draw(ROWS, COLUMNS, tmp_path / f"a.{ending}", "Attention").read_bytes()
    assert first.startswith(start)
    assert draw(ROWS, COLUMNS, tmp_path / f"b.{ending}", "Attention").read_bytes() == first


def test_an_unknown_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a picture ends in \.svg, \.png, \.pdf; found .*a\.bmp"):
        draw(ROWS, COLUMNS, tmp_path / "a.bmp", "Attention")
