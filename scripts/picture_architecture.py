"""The architecture on one page: `python scripts/picture_architecture.py` writes docs/pictures/architecture.svg."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "architecture.svg"
WIDTH, HEIGHT = 1240, 900

INK, SOFT, LINE, PAPER, FROZEN = "#1f2933", "#5b6773", "#9aa5b1", "#ffffff", "#eef2f6"
TASKS = {"intent": "#3b6fb6", "tone": "#c0562f", "names": "#3d8b5f", "__base__": "#7b8794"}
PALE = {"intent": "#dce8f7", "tone": "#f9e2d8", "names": "#dcefe4", "__base__": "#e9ecef"}
METHODS = {
    "tiny_attention": ("ATTENTION_OUTPUT",),
    "pasta": ("BLOCK_INPUT",),
    "prefix_propagation": ("PROMPT", "BLOCK_INPUT"),
    "attempt": ("PROMPT",),
    "kernel_mix": ("QUERY", "VALUE", "OUTPUT"),
}
PLACES = ("PROMPT", "BLOCK_INPUT", "QUERY", "VALUE", "OUTPUT", "ATTENTION_OUTPUT")


class Drawing:
    """Shapes in the order in which they are laid on each other."""

    def __init__(self) -> None:
        self.shapes: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, fill: str = PAPER, line: str = LINE) -> None:
        """A rectangle; larger ones are rounder."""
        round_ = min(7.0, w / 6)
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{round_:.1f}" fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self, x: float, y: float, words: str, size: int = 13, fill: str = INK, bold: bool = False, anchor: str = "start"
    ) -> None:
        """A line of text; y is its base line."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def lines(self, x: float, y: float, words: Iterable[str], size: int = 12, fill: str = SOFT) -> None:
        """Lines of text below each other."""
        for number, line in enumerate(words):
            self.text(x, y + number * (size + 5), line, size, fill)

    def card(self, x: float, y: float, w: float, h: float, title: str, words: Iterable[str], fill: str = PAPER) -> None:
        """A box with a title and lines below it."""
        self.box(x, y, w, h, fill)
        self.text(x + 12, y + 22, title, 14, bold=True)
        self.lines(x + 12, y + 42, words)

    def arrow(self, *points: tuple[float, float], colour: str = SOFT) -> None:
        """A line through the points with a head at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#head)"/>'
        )

    def dot(self, x: float, y: float, fill: str, radius: float = 6) -> None:
        """A filled circle."""
        self.shapes.append(f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}"/>')

    def band(self, y: float, h: float, title: str) -> None:
        """A stripe of the page with its title."""
        self.shapes.append(f'<rect x="10" y="{y}" width="{WIDTH - 20}" height="{h}" rx="10" fill="#f8fafb"/>')
        self.text(24, y + 24, title, 15, SOFT, bold=True)

    def svg(self) -> str:
        """The file."""
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L10,5 L0,10 z" fill="{SOFT}"/></marker>'
        )
        body = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif">\n'
            "<title>The architecture of attentune: one frozen backbone, methods as tables from places to functions, "
            "a row of parameters for every row of a batch</title>\n"
            f'<defs>{head}</defs>\n<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )


def training(d: Drawing) -> None:
    """From rows to an adapter folder, once a task."""
    d.band(10, 168, "Once a task: training")
    d.card(24, 46, 170, 116, "Data", ["CSV, JSONL, Parquet,", "a folder, a hub id", "labels are guessed", "and shown"])
    d.card(
        226,
        46,
        190,
        116,
        "Recipe",
        ["a TOML file: [task],", "[method], [training]", "strict; what was used", "is saved"],
    )
    d.card(
        448,
        46,
        210,
        116,
        "Trainer",
        ["of transformers", "adapter and head learn,", "the backbone does not", "resumes after a kill"],
    )
    d.card(
        690,
        46,
        210,
        116,
        "Calibration",
        ["fitted on validation rows:", "temperature T,", "quantiles of sets,", "out-of-scope threshold"],
    )
    d.card(
        932,
        46,
        284,
        116,
        "Adapter folder: kilobytes",
        [
            "adapter_model.safetensors, config",
            "task.json: labels, lengths, T,",
            "fingerprint of the backbone",
            "recipe, metrics, log, card",
        ],
    )
    for x in (194, 416, 658, 900):
        d.arrow((x, 104), (x + 31, 104))


def batch(d: Drawing) -> None:
    """The rows that come in, and their tokens."""
    d.band(190, 424, "One forward pass for rows of any tasks and methods")
    texts = {
        "intent": "Where is my parcel?",
        "tone": "Third broken lamp!",
        "names": "Ann met Bo in Rome.",
        "__base__": "any text",
    }
    for number, (task, words) in enumerate(texts.items()):
        y = 250 + number * 78
        d.box(24, y, 172, 56, PALE[task], TASKS[task])
        d.text(36, y + 22, task, 13, TASKS[task], bold=True)
        d.text(36, y + 42, words, 12)
        for column in range(5):
            masked = column >= (5, 4, 5, 3)[number]
            d.box(
                224 + column * 17, y + 20, 14, 16, "#ffffff" if masked else PALE[task], LINE if masked else TASKS[task]
            )
        d.arrow((196, y + 28), (222, y + 28))
        d.arrow((310, y + 28), (338, y + 28))
    d.text(266, 592, "tokens [B, T]", 12, SOFT, anchor="middle")
    d.text(110, 592, "a text and a task a row", 12, SOFT, anchor="middle")


def backbone(d: Drawing) -> None:
    """The frozen network with its places."""
    d.box(340, 236, 500, 366, FROZEN, "#7b8794")
    d.text(356, 260, "Frozen backbone", 15, bold=True)
    d.text(826, 260, "runs once, for all rows", 12, SOFT, anchor="end")
    d.box(356, 274, 468, 36)
    d.text(368, 297, "word embeddings", 12)
    d.box(356, 350, 468, 238, "#ffffff")
    d.text(368, 372, "block, L times", 12, SOFT)
    for row, words in enumerate("QKV"):
        d.box(392, 396 + row * 34, 56, 26)
        d.text(420, 414 + row * 34, words, 12, anchor="middle")
        d.arrow((448, 409 + row * 34), (478, 443))
    d.box(480, 422, 84, 42)
    d.text(522, 447, "attention", 12, anchor="middle")
    d.box(588, 422, 62, 42)
    d.text(619, 447, "out", 12, anchor="middle")
    d.box(712, 422, 98, 42)
    d.text(761, 440, "feed-", 12, anchor="middle")
    d.text(761, 456, "forward", 12, anchor="middle")
    d.arrow((564, 443), (586, 443))
    d.arrow((650, 443), (710, 443))
    d.arrow((590, 310), (590, 348))
    sites(d)


def sites(d: Drawing) -> None:
    """The places, numbered as in the table of methods."""
    at = {
        "PROMPT": (520, 292, 534, 296),
        "BLOCK_INPUT": (590, 330, 604, 334),
        "QUERY": (464, 396, 0, 0),
        "VALUE": (464, 490, 0, 0),
        "OUTPUT": (662, 424, 0, 0),
        "ATTENTION_OUTPUT": (686, 443, 0, 0),
    }
    for number, place in enumerate(PLACES, 1):
        x, y, tx, ty = at[place]
        d.dot(x, y, INK, 9)
        d.text(x, y + 4, str(number), 11, PAPER, bold=True, anchor="middle")
        if tx:
            d.text(
                tx, ty, {"PROMPT": "m rows in front of the text", "BLOCK_INPUT": "before every block"}[place], 12, SOFT
            )
    d.text(590, 528, "At a place a pure function edits what passes:", 12, SOFT, anchor="middle")
    d.text(590, 548, "y' = edit(cfg, p, x, y, frame)", 13, INK, bold=True, anchor="middle")
    d.text(590, 570, "p [R, ...]: R = 1 for one task, R = B for a task a row", 12, SOFT, anchor="middle")


def answers(d: Drawing) -> None:
    """Heads, calibration, answers."""
    found = {
        "intent": "parcel_status  0.91",
        "tone": "negative  0.97",
        "names": "Ann, Bo, Rome",
        "__base__": "bare states",
    }
    for number, (task, words) in enumerate(found.items()):
        y = 250 + number * 78
        d.arrow((840, y + 28), (862, y + 28))
        if task != "__base__":
            d.box(864, y + 8, 92, 40, PALE[task], TASKS[task])
            d.text(910, y + 33, "its head", 12, anchor="middle")
            d.arrow((956, y + 28), (980, y + 28))
            d.box(982, y + 8, 66, 40, PALE[task], TASKS[task])
            d.text(1015, y + 33, "z / T", 13, anchor="middle")
            d.arrow((1048, y + 28), (1072, y + 28))
        d.text(1078 if task != "__base__" else 870, y + 33, words, 12, TASKS[task], bold=True)
    d.text(910, 592, "kilobytes a task", 12, SOFT, anchor="middle")
    d.text(1015, 592, "calibrated", 12, SOFT, anchor="middle")
    d.text(1140, 592, "answers, sets, abstention", 12, SOFT, anchor="middle")


def methods(d: Drawing) -> None:
    """The table of methods by place."""
    d.band(626, 264, "A method is a table from places to functions")
    left, top = 198, 676
    for column, place in enumerate(PLACES, 1):
        x = left + (column - 1) * 44
        d.dot(x, top, INK, 9)
        d.text(x, top + 4, str(column), 11, PAPER, bold=True, anchor="middle")
        for row, (name, places) in enumerate(METHODS.items()):
            y = top + 30 + row * 26
            if column == 1:
                d.text(24, y + 4, name, 13, bold=True)
            d.dot(x, y, TASKS["intent"] if place in places else "#e4e9ee", 6)
    d.lines(
        24,
        842,
        [
            "An architecture is a row of names: where its places are.",
            "Neither knows the other; a sixth method is one file.",
        ],
    )
    d.lines(24, 874, ["1 PROMPT  2 BLOCK_INPUT  3 QUERY  4 VALUE  5 OUTPUT  6 ATTENTION_OUTPUT"], 11)


def bank(d: Drawing) -> None:
    """Rows of parameters by task."""
    x, y = 476, 644
    d.box(x, y, 350, 232)
    d.text(x + 12, y + 24, "Bank", 15, bold=True)
    d.text(x + 338, y + 24, "thousands of tasks", 12, SOFT, anchor="end")
    shelves = (("kernel_mix", "intent"), ("pasta", "tone"), ("tiny_attention", "names"))
    for number, (method, task) in enumerate(shelves):
        top = y + 42 + number * 50
        d.text(x + 12, top + 20, method, 12)
        for row in range(11):
            mine = row == (3, 7, 5)[number]
            d.box(x + 112 + row * 20, top, 17, 30, TASKS[task] if mine else "#f1f4f7", TASKS[task] if mine else LINE)
    d.text(x + 12, y + 206, "each row takes its own: p[b] = P[task of b]", 12, SOFT)
    d.text(x + 12, y + 223, "a row a task; equal shapes share a shelf", 12, SOFT)
    d.arrow((590, 644), (590, 604))
    d.text(600, 622, "rows of parameters", 12, SOFT)


def serving(d: Drawing) -> None:
    """Engine and server."""
    d.card(
        852,
        644,
        174,
        156,
        "Engine",
        [
            "texts to tokens",
            "a queue, fair to tasks",
            "batches of like length",
            "full or 2 ms old",
            "an ask that fails",
            "fails alone",
        ],
    )
    d.card(
        1048,
        644,
        168,
        156,
        "Server",
        [
            "/v1/predict",
            "/v1/tasks: versions,",
            "trials, rollback",
            "/v2: Open Inference",
            "keys, limits, /metrics",
            "a page to try tasks",
            "replicas on Ray",
        ],
    )
    d.card(852, 812, 364, 64, "Tiers", ["hot on the device, warm in memory, cold on disk"])
    d.arrow((1046, 722), (1028, 722))
    d.arrow((850, 722), (828, 722))
    d.arrow((850, 844), (828, 844))
    d.arrow((1204, 162), (1204, 184), (1224, 184), (1224, 634), (760, 634), (760, 642))
    d.text(1100, 630, "loaded, replaced, removed while it runs", 12, SOFT, anchor="middle")


def main() -> None:
    """Write the picture."""
    drawing = Drawing()
    for part in (training, batch, backbone, answers, methods, bank, serving):
        part(drawing)
    TARGET.write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
