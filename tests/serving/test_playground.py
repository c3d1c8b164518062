"""The page in a real browser: what it shows is what `predict` says, and without an admin key it shows nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import attentune
from attentune import store
from attentune.backbones import load_backbone
from attentune.confidence import Calibration
from attentune.evaluation.calibration import reliability
from attentune.serving import keys
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.classify import Classification, MultiLabel, Regression
from attentune.tasks.tag import Tagging
from serving.kit import adapter
from serving.process import Server

pytest.importorskip("nicegui", reason="the extra `ui` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
TEXT = "the film in Paris is good , Anna visits the river"
SECOND = "the plot is good and Anna visits the long river in Paris"
CHOICES = ["good film", "bad rain", "sun"]
TASKS = (
    Classification(("neg", "pos", "so", "wet", "dry", "long", "short")),
    MultiLabel(("pos", "wet", "long")),
    Regression(mean=3.5, std=1.0),
    Tagging(("O", "B-PER", "I-PER", "B-LOC")),
    QuestionAnswering(stride=6, answer_length=5),
    MultipleChoice(),
)
BINS = [reliability([0.3, 0.4, 0.8, p], [0, 1, 1, 1]) for p in (0.95, 0.9)]
MEASURED: dict[str, Any] = {
    "validation": {"accuracy": 0.75},
    "calibration": {"validation": {"ece": BINS[1].error, "ece_before": BINS[0].error}},
    "reliability": {"validation": {"before": BINS[0].to_card(), "after": BINS[1].to_card()}},
}


@pytest.fixture(scope="module")
def folders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A task of every kind, and one that mixes source prompts."""
    where, base = tmp_path_factory.mktemp("playground"), load_backbone(str(tiny_bert))
    known: dict[str, Any] = {"calibration": Calibration(0.7, 50, {0.8: 0.6, 0.9: 0.8})}
    sources: dict[str, Any] = {"length": 2, "sources": 2, "bottleneck": 4, "source_names": ["nli", "stars"]}
    made = {task.kind: adapter(base, where / task.kind, seed=i, task=task, **known) for i, task in enumerate(TASKS)}
    (made["classification"] / store.METRICS).write_text(json.dumps(MEASURED))
    made["pair"] = adapter(base, where / "pair", seed=8, task=Classification(("no", "yes"), pair=True))
    return {**made, "mixed": adapter(base, where / "mixed", "attempt", 9, **sources)}


@pytest.fixture(scope="module")
def server(tiny_bert: Path, folders: dict[str, Path]) -> Iterator[Server]:
    with Server(tiny_bert, next(iter(folders.values())).parent, "--playground") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, and all that went to and fro."""

    page: Any
    urls: list[str] = field(default_factory=list[str])
    received: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    @classmethod
    def to(cls, browser: Any, server: Server, width: int = 1280) -> Visit:
        visit = cls(browser.new_page(viewport={"width": width, "height": 900}))
        page = visit.page
        page.set_default_timeout(90_000)  # a machine that does other things, too
        page.on("request", lambda request: visit.urls.append(request.url))
        page.on("websocket", lambda socket: visit.listen(socket))
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("console", lambda said: visit.errors.append(said.text) if said.type == "error" else None)
        page.goto(f"http://{server.address}/")
        return visit

    def listen(self, socket: Any) -> None:
        self.urls.append(socket.url)
        socket.on("framereceived", lambda frame: self.received.append(str(frame)))

    def card(self, task: str) -> Any:
        """The answer of a task."""
        return self.page.get_by_role("article", name=task, exact=True)

    def ask(self, said: str) -> None:
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.page.get_by_role("status").get_by_text(said).wait_for()

    def end(self) -> None:
        """Nothing went wrong in the browser, and nothing left this machine."""
        self.page.close()
        assert self.errors == []
        assert self.urls
        assert all(url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:")) for url in self.urls), self.urls


def told(folder: Path, backbone: Path, given: Any, **wishes: Any) -> dict[str, Any]:
    return attentune.load(folder, str(backbone)).predict([given], **wishes)[0]


def percent(p: float) -> str:
    return "< 1 %" if 0 < p < 0.01 else "> 99 %" if 0.99 < p < 1 else f"{100 * p:.0f} %"


def bars(card: Any) -> list[str]:
    return [" ".join(item.split()) for item in card.locator("ul.bars > li").all_inner_texts()]


def test_every_kind_of_task_is_answered_as_predict_does(
    browser: Any, server: Server, folders: dict[str, Path], tiny_bert: Path
) -> None:
    visit = Visit.to(browser, server)
    page = visit.page
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Second text, or context").fill(SECOND)
    page.get_by_label("Choices, one a line").fill("\n".join(CHOICES))
    visit.ask(f"{len(folders)} answers in")

    for name, given in (("classification", TEXT), ("pair", [TEXT, SECOND]), ("mixed", TEXT)):
        found = told(folders[name], tiny_bert, given)
        card = visit.card(name)
        assert card.locator(".headline").inner_text().split("\n") == [found["label"], percent(found["score"])]
        order = sorted(found["probabilities"].items(), key=lambda part: -part[1])
        assert bars(card)[: min(len(order), 5)] == [f"{label} {percent(p)}" for label, p in order[:5]]
    assert visit.card("classification").get_by_text("2 more").is_visible()
    value = told(folders["regression"], tiny_bert, TEXT)["value"]
    assert visit.card("regression").locator(".headline").inner_text() == f"{value:.3g}"
    found = told(folders["multilabel"], tiny_bert, TEXT)
    shown = ", ".join(found["labels"]) or "none of the labels"
    assert visit.card("multilabel").locator(".headline").inner_text().split("\n")[0] == shown
    found = told(folders["multiple_choice"], tiny_bert, {"text": TEXT, "choices": CHOICES})
    chosen = [found["choice"], percent(found["score"])]
    assert visit.card("multiple_choice").locator(".headline").inner_text().split("\n") == chosen
    assert len(bars(visit.card("multiple_choice"))) == 3

    weights = attentune.load(folders["mixed"], str(tiny_bert)).attention([TEXT])[0]
    order = sorted(weights.items(), key=lambda part: -part[1])
    assert visit.card("mixed").get_by_text("Where its prompt came from").is_visible()
    assert bars(visit.card("mixed"))[-3:] == [f"{source} {percent(w)}" for source, w in order]
    visit.end()


def test_spans_are_marked_in_the_text_by_name(
    browser: Any, server: Server, folders: dict[str, Path], tiny_bert: Path
) -> None:
    visit = Visit.to(browser, server)
    visit.page.get_by_label("Text", exact=True).fill(TEXT)
    visit.page.get_by_label("Second text, or context").fill(SECOND)
    visit.ask("answers in")
    spans = told(folders["tagging"], tiny_bert, TEXT)["spans"]
    assert spans, "the adapter marks nothing, so that this test would show nothing"
    marks = visit.card("tagging").locator("mark")
    assert marks.all_inner_texts() == [f"{TEXT[s['start'] : s['end']]}{s['label']}" for s in spans]
    text = visit.card("tagging").locator(".marked > span, mark > span:first-child").all_inner_texts()
    assert "".join(text) == TEXT
    found = told(folders["question_answering"], tiny_bert, {"question": TEXT, "context": SECOND})
    marks = visit.card("question_answering").locator("mark > span:first-child").all_inner_texts()
    assert marks == ([] if found["start"] is None else [found["answer"]])
    visit.end()


def test_sets_and_abstention_are_those_of_the_card(
    browser: Any, server: Server, folders: dict[str, Path], tiny_bert: Path
) -> None:
    visit = Visit.to(browser, server)
    page = visit.page
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Abstain when less sure than, %").fill("100")
    page.get_by_label("Sets that hold the truth").click()
    page.get_by_role("option", name="80 %").click()
    visit.ask("answers in")
    found = told(folders["classification"], tiny_bert, TEXT, coverage=0.8)
    card = visit.card("classification")
    assert card.get_by_text("Abstains: less sure than 100 %.").is_visible()
    assert card.locator(".tag").count() == len(found["prediction_set"])
    low, high = told(folders["regression"], tiny_bert, TEXT, coverage=0.8)["interval"]
    assert visit.card("regression").get_by_text(f"Between {low:.3g} and {high:.3g}, in 80 %").is_visible()
    # What a task misses is said by it alone.
    assert visit.card("pair").get_by_role("alert").inner_text() == "This task wants a second text."
    visit.end()


def test_what_is_missing_is_said_in_a_sentence(browser: Any, server: Server) -> None:
    visit = Visit.to(browser, server, width=400)
    page = visit.page
    visit.ask("Type a text first.")
    page.get_by_label("Text", exact=True).fill("<b>sun</b> {{ 1 + 1 }}")
    page.get_by_role("button", name="None", exact=True).click()
    visit.ask("Pick at least one task.")
    picker = page.get_by_label("Tasks", exact=True)
    picker.fill("tagg")
    page.get_by_role("option", name="tagging").click()
    page.keyboard.press("Escape")
    # By the keyboard; and what looks like markup is a text.
    page.get_by_label("Text", exact=True).press("Control+Enter")
    page.get_by_role("status").get_by_text("1 answer in").wait_for()
    text = visit.card("tagging").locator(".marked > span, mark > span:first-child").all_inner_texts()
    assert "".join(text) == "<b>sun</b> {{ 1 + 1 }}"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    visit.end()


def test_the_table_opens_the_reliability_diagram(browser: Any, server: Server) -> None:
    visit = Visit.to(browser, server)
    page = visit.page
    sizes = {task["name"]: task["version"]["bytes"] for task in json.loads(server.get("/v1/tasks"))}
    row = page.get_by_role("row").filter(has=page.get_by_role("button", name="classification", exact=True))
    row.wait_for()
    error = BINS[1].error
    assert row.get_by_role("cell").all_inner_texts()[1:6] == [
        "classification",
        "pasta",
        f"{sizes['classification']:,}",
        "accuracy 0.750",
        f"{error:.3f}",
    ]
    row.get_by_role("button").press("Enter")
    dialog = page.get_by_role("dialog")
    name = f"Reliability diagram, calibrated: expected calibration error {error:.3f}"
    dialog.get_by_role("img", name=name).wait_for()
    assert dialog.locator("svg").count() == 2
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.get_by_role("button", name="regression", exact=True).click()
    dialog.get_by_text("This kind of task states no probabilities.").wait_for()
    visit.end()


def test_the_page_follows_the_folder_and_other_paths_stay_what_they_are(
    browser: Any, server: Server, folders: dict[str, Path]
) -> None:
    visit = Visit.to(browser, server)
    place = folders["pair"].parent / "late"
    shutil.copytree(folders["multilabel"], place)
    visit.page.get_by_role("button", name="late", exact=True).wait_for()
    shutil.rmtree(place)
    visit.page.get_by_role("button", name="late", exact=True).wait_for(state="detached")
    visit.end()
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/v1/predict", 405), ("GET", "/health", 200)):
        found, content = server.send(method, path, b"", "application/json")
        assert found == status
        assert json.loads(content)["status"] == ("ok" if status == 200 else status)


def test_without_an_admin_key_nothing_is_told(browser: Any, tiny_bert: Path, tmp_path: Path) -> None:
    base, file = load_backbone(str(tiny_bert)), tmp_path / "keys.json"
    for name in ("zebra-a", "zebra-b"):
        adapter(base, tmp_path / "tasks" / name)
    shop = keys.add(file, "shop", ["predict"], ["zebra-a"])
    boss = keys.add(file, "boss", ["admin"], None)
    part = keys.add(file, "part", ["predict", "admin"], ["zebra-b"])
    with Server(tiny_bert, tmp_path / "tasks", "--playground", "--keys", str(file)) as server:
        visit = Visit.to(browser, server)
        page = visit.page
        for given, said in (
            ("wrong", "This key is not known here."),
            ("", "This key is not known here."),
            (shop, "No: this key does not have the scope 'admin'."),
            (boss, "No: this key does not have the scope 'predict'."),
        ):
            page.get_by_label("API key").fill(given)
            page.get_by_role("button", name="Open", exact=True).click()
            page.get_by_role("alert").get_by_text(said).wait_for()
        assert visit.received
        assert "zebra" not in "".join([page.content(), server.get("/"), *visit.received])
        page.get_by_label("API key").fill(part)
        page.get_by_label("API key").press("Enter")
        page.get_by_role("button", name="zebra-b", exact=True).wait_for()
        page.get_by_label("Text", exact=True).fill(TEXT)
        visit.ask("1 answer in")
        assert "zebra-a" not in "".join([page.content(), *visit.received])
        assert part not in "".join([page.content(), *visit.received])
        visit.end()
