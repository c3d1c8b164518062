"""The report of a comparison: its page, its text, its JSON, and how numbers read."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attentune.cli import main
from attentune.comparison.compare import compare
from attentune.comparison.pictures import amount, pareto
from attentune.comparison.records import read
from attentune.comparison.report import estimate, html, markdown, shade, signed
from attentune.comparison.summary import Summary, summarise
from attentune.evaluation.statistics import Estimate

from .kit import quick


def test_the_report_needs_nothing_else(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--report", "--output", str(compared)])
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert "linear probe" in shown.out
    assert "8 runs, 0 left" in shown.err
    page = (compared / "report.html").read_text()
    assert page.count("<svg") == 2 * 4
    assert not re.search(r'(src|href)="(?!#)|<script|<link|@import', page)
    for words in ("Rank over tasks", "tone: accuracy", "mood: accuracy", "PASTA", "linear probe", "Paired differences"):
        assert words in page
    for column in ("against linear probe", "95 %", "saved", "trained", "seconds", "memory", "32 texts", "ECE after"):
        assert f">{column}</th>" in page
    text = (compared / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 1 + 1 + 2 * 2 + 1
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert "\n\n\n" not in text


def test_the_report_as_json(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--report", "--json", "--output", str(compared)])
    found = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in found["tasks"]] == ["tone", "mood"]
    line = found["tasks"][0]["lines"][0]
    assert {"contender", "score", "against", "bytes", "trained", "seconds", "memory", "latency", "ece"} <= set(line)
    assert found["done"] == 8


def test_a_damaged_comparison_is_one_line(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(compared, tmp_path / "copy")
    record = next((copy / "runs").glob("*.json"))
    for path, content, match in (
        (record, "{", "is not JSON"),
        (copy / "plan.json", "{", "is no plan of a comparison"),
        (copy / "plan.json", '[{"first": {}}]', "is no plan of a comparison"),
        (copy / "plan.json", "[" * 100_000, "is no plan of a comparison"),
    ):
        path.write_text(content)
        with pytest.raises(SystemExit) as end:
            main(["compare", "--report", "--output", str(copy)])
        assert end.value.code == 2
        shown = capsys.readouterr().err
        assert match in shown
        assert shown.count("\n") == 1


def test_tasks_are_added_under_their_own_conditions(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    compare([str(sets / "tone")], ["probe"], tmp_path, quick(tiny_bert))
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=12), add=True)
    found = summarise(tmp_path)
    assert {task.name: task.conditions.rows for task in found.tasks} == {"mood": 12, "tone": 24}
    text = markdown(found)
    assert "Conditions: rows 12.\n\n|" in text
    assert "Conditions: rows 24.\n\n|" in text
    # a task that is named again is compared under its new conditions only
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=16), add=True)
    assert {task.name: task.conditions.rows for task in summarise(tmp_path).tasks} == {"mood": 16, "tone": 24}
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=16))
    assert [task.name for task in summarise(tmp_path).tasks] == ["mood"]


def test_differences_are_of_the_seeds_that_both_have(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """One run of three has failed; that of the same seed of another contender was quite unlike its others."""
    names = ["pasta", "lora", "probe"]
    compare([str(sets / "tone")], names, tmp_path, quick(tiny_bert), rates=1, seeds=3)
    for name in ("pasta", "lora"):
        (path,) = (tmp_path / "runs").glob(f"tone-{name}-*-seed1-*")
        record = json.loads(path.read_bytes())
        if name == "pasta":
            record["attentune"]["validation"] = None
        else:
            record["attentune"]["rows"]["values"] = [[9.0]] * 200
        path.write_text(json.dumps(record))
    scores: dict[tuple[str, int], float] = {}
    for path in (tmp_path / "runs").iterdir():
        ours = json.loads(path.read_bytes())["attentune"]
        scores[ours["key"]["contender"], ours["key"]["seed"]] = ours["test"]
    (task,) = summarise(tmp_path).tasks
    for other, seeds in (("lora", (0, 2)), ("probe", (0, 0))):
        wanted = np.mean([scores["pasta", seed] - scores[other, at] for seed, at in zip((0, 2), seeds, strict=True)])
        assert task.pairs["pasta"][other].value == pytest.approx(wanted)
        assert task.pairs[other]["pasta"].value == pytest.approx(-wanted)


def test_folds_make_one_score(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    compare([str(sets / "grade")], ["probe"], tmp_path, quick(tiny_bert))
    (task,) = summarise(tmp_path).tasks
    assert task.folds == 5
    rows = [row for record in read(tmp_path / "runs").values() for row in record["attentune"]["rows"]["values"]]
    assert len(rows) == 30
    assert task.lines[0].score.value == pytest.approx(np.corrcoef(np.array(rows).T)[0, 1])
    assert "6 test, each of 5 folds; 30 of 40 rows are tested, each once" in markdown(summarise(tmp_path))
    for path in (tmp_path / "runs").iterdir():  # as older versions have written them
        record = json.loads(path.read_bytes())
        del record["attentune"]["set_size"]
        path.write_text(json.dumps(record))
    assert "6 test, each of 5 folds; 30 rows are tested, each once" in markdown(summarise(tmp_path))


def without(folder: Path, place: Path, *names: str) -> Summary:
    """A copy of a comparison, without some of its runs."""
    shutil.copytree(folder, place)
    for name in names:
        for path in list((place / "runs").glob(f"{name}-*")):
            path.unlink()
    return summarise(place)


def test_ranks_are_over_the_tasks_that_everybody_has(compared: Path, tmp_path: Path) -> None:
    assert "Ranks are over 2 tasks, which every contender has" in markdown(summarise(compared))
    found = without(compared, tmp_path / "one", "mood-probe")
    assert found.ranked == ("tone",)
    tone = [line.contender for line in found.tasks[0].lines]
    one, other = (line.score.value for line in found.tasks[0].lines)
    assert found.ranks == dict(zip(tone, (1.0, 2.0) if one > other else (1.5, 1.5), strict=True))
    assert found.contenders == tuple(found.ranks)
    for text in (markdown(found), html(found)):
        assert "Ranks are over 1 of 2 tasks, which every contender has: tone." in text
    (line,) = found.tasks[1].lines
    assert f"{line.score.value:.3f} |" in re.findall(r"^\| PASTA \| \d.*$", markdown(found), re.MULTILINE)[0]
    found = without(compared, tmp_path / "none", "mood-probe", "tone-pasta")
    assert (found.ranked, found.ranks, set(found.contenders)) == ((), {}, {"pasta", "probe"})
    for text in (markdown(found), html(found)):
        assert "No task has every contender, so there are no ranks." in text
        assert "linear probe" in text


def test_latency_is_drawn_beside_the_bare_backbone(compared: Path, tmp_path: Path) -> None:
    """Milliseconds of different moments cannot be compared: a machine ten times as slow makes the same picture."""
    copy = shutil.copytree(compared, tmp_path / "copy")
    before = picture(html(summarise(copy)), "Score and latency")
    for path in list((copy / "runs").iterdir())[::2]:
        record = json.loads(path.read_bytes())
        for ms in record["attentune"]["latency_ms"].values():
            ms |= {"tuned": 10 * ms["tuned"], "bare": 10 * ms["bare"]}
        path.write_text(json.dumps(record))
    assert picture(html(summarise(copy)), "Score and latency") == before


def picture(page: str, title: str) -> list[str]:
    """The shapes of the first picture of that title."""
    return re.findall(r' d="([^"]*)"', page.partition(f"<h3>{title}</h3>")[2].partition("</svg>")[0])


def test_pareto_is_what_nobody_beats() -> None:
    costs, found = [3.0, 1.0, 2.0, 2.0, 5.0], [0.9, 0.5, 0.7, 0.8, 0.9]
    nobody_beats = [
        i for i in range(5)
        if not any(
            costs[j] <= costs[i] and found[j] >= found[i] and (costs[j], found[j]) != (costs[i], found[i])
            for j in range(5)
        )
    ]  # fmt: skip
    assert sorted(pareto(costs, found)) == nobody_beats == [0, 1, 3]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(304_416, "bytes", "304 kB"), (90_874_488, "bytes", "90.9 MB"), (7, "bytes", "7 B"), (0.8, "ms", "800 µs"),
     (12.34, "ms", "12.3 ms"), (2500, "ms", "2.5 s"), (0, "ms", "0 µs")],
)  # fmt: skip
def test_amounts_read_well(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_differences_read_well() -> None:
    assert estimate(Estimate(0.0123, -0.004, 0.02)) == "+0.012 (−0.004 to +0.020)"
    assert signed(-0.0001) == "0"
    pairs = {"a": {"b": Estimate(0.2, 0.1, 0.3)}, "b": {"a": Estimate(-0.2, -0.3, -0.1)}}
    assert shade(Estimate(0.01, -0.1, 0.1), pairs) == ""
    assert "50%" in shade(pairs["a"]["b"], pairs)
