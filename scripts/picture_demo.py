"""Record `make demo` in a terminal, and draw what it printed.

python scripts/picture_demo.py record    # runs it: docs/pictures/demo.cast, for `asciinema play`
python scripts/picture_demo.py draw      # docs/pictures/demo.svg from that, line by line as they came
"""

import argparse
import codecs
import io
import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COMMAND = "make demo"
COLUMNS, LINES = 82, 40
TURNING = re.compile("[\u2800-\u28ff]")
"""The signs of which one after the other says that something goes on."""
ERASED = "\x1b[1A\x1b[2K"
"""One line up, and empty it."""
SECONDS = 10
"""How long the picture takes to show the whole run."""


def record(cast: Path) -> None:
    """Run the command in a terminal of its own and keep what it writes, with the time (asciicast, version 2)."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    begin = time.monotonic()
    events: list[list[Any]] = [[0.0, "o", f"$ {COMMAND}\r\n"]]
    decoder = codecs.getincrementaldecoder("utf-8")()
    with subprocess.Popen(COMMAND.split(), stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        while True:
            try:
                found = os.read(ours, 4096)
            except OSError:  # how a pseudo-terminal tells that the other side has closed it
                break
            events.append([round(time.monotonic() - begin, 3), "o", decoder.decode(found)])
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{COMMAND} ended with {process.returncode}; nothing was kept")
    events = without_turns(events)
    head = {"version": 2, "width": COLUMNS, "height": LINES, "title": COMMAND}
    cast.write_text("".join(json.dumps(part, ensure_ascii=False) + "\n" for part in [head, *events]), encoding="utf-8")


def without_turns(events: list[list[Any]]) -> list[list[Any]]:
    """Leave out what only turns the sign of progress, twelve times a second."""
    kept, last = list[list[Any]](), ""
    for event in events:
        still = TURNING.sub("", event[2])
        if still != last:
            kept.append(event)
        last = still
    return kept


def lines_of(cast: Path) -> list[tuple[float, str]]:
    """The lines of a recording, each with the second at which it was complete."""
    _, *events = [json.loads(line) for line in cast.read_text(encoding="utf-8").splitlines()]
    lines: list[tuple[float, str]] = []
    rest = ""
    for second, _, text in events:
        *whole, rest = (rest + text.replace("\r\n", "\n")).split("\n")
        for line in whole:
            *before, left = line.split(ERASED)  # What stood above is gone when a line begins so.
            lines = [*lines[: len(lines) - len(before)], (second, left)]
    return lines


def draw(cast: Path, svg: Path) -> None:
    """A picture in which each line appears when it came, in `SECONDS` for all; without animation all are there."""
    lines = lines_of(cast)
    speed = SECONDS / lines[-1][0]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for _, line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    picture = console.export_svg(title=COMMAND, theme=DIMMED_MONOKAI, unique_id="demo")
    delays = "".join(
        f'[clip-path="url(#demo-line-{i})"] {{ animation-delay: {speed * second:.2f}s }}\n'
        for i, (second, _) in enumerate(lines)
    )
    moves = "@keyframes appear { from { opacity: 0 } }\n[clip-path] { animation: appear 0.2s backwards }\n"
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fonts that would come from the network
    svg.write_text(picture.replace("</style>", f"{moves}{delays}</style>", 1), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "draw"))
    given = parser.parse_args()
    cast = PICTURES / "demo.cast"
    if given.what == "record":
        record(cast)
    else:
        draw(cast, PICTURES / "demo.svg")


if __name__ == "__main__":
    main()
