"""Pictures of trust: what they show, and that they are the same text each time."""

import re

import numpy as np

from attentune.evaluation.calibration import reliability
from attentune.evaluation.page import Picture, Table, page
from attentune.evaluation.pictures import reliability_diagram, risk_coverage_diagram, svg
from attentune.evaluation.selective import risk_coverage

RNG = np.random.default_rng(0)
P = RNG.random(500)
TRUE = RNG.random(500) < P


def test_a_reliability_diagram_has_a_panel_for_each_part() -> None:
    parts = {"before": reliability(P, TRUE), "after": reliability(P**2, TRUE)}
    figure = reliability_diagram(parts)
    assert [panel.get_title() for panel in figure.axes] == [f"{n}: ECE {part.error:.3f}" for n, part in parts.items()]
    shown = np.asarray(figure.axes[0].collections[-1].get_offsets())
    assert np.allclose(shown, np.stack([parts["before"].stated, parts["before"].observed], axis=1))


def test_a_risk_diagram_has_a_curve_for_each_name() -> None:
    curves = {"a": risk_coverage(P, TRUE), "b": risk_coverage(RNG.random(500), TRUE)}
    (panel,) = risk_coverage_diagram(curves).axes
    assert [line.get_label() for line in panel.lines] == [f"{n}: area {c.area:.3f}" for n, c in curves.items()]
    assert np.allclose(np.asarray(panel.lines[0].get_ydata(), dtype=float), curves["a"].risk)
    (panel,) = risk_coverage_diagram(curves, {"here": (0.5, 0.25)}).axes
    assert np.asarray(panel.collections[0].get_offsets()).tolist() == [[0.5, 0.25]]
    assert [text.get_text() for text in panel.texts] == ["here"]
    (panel,) = risk_coverage_diagram({"perfect": risk_coverage([0.5], [True])}).axes
    assert panel.get_ylim() == (0.0, 1.0)


def test_svg_is_the_same_text_each_time() -> None:
    first, second = (svg(risk_coverage_diagram({"a": risk_coverage(P, TRUE)})) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "share of rows answered" in first


def test_a_page_escapes_all_but_pictures() -> None:
    text = page("a <b>", "note &", [Picture("p", "n", "<svg/>")], [Table("t", ["x", "y"], [["<i>", 0.123456]])])
    assert "<svg/>" in text
    assert "a &lt;b&gt;" in text
    assert "&lt;i&gt;" in text
    assert re.search(r">0\.1235<", text)
