"""Draw docs/pictures/playground.png: the page of a server, asked by a real browser.

attentune serve FOLDER --playground --port 8000
python scripts/picture_playground.py http://127.0.0.1:8000
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "playground.png"
TEXT = (
    "The espresso machine that I ordered on Monday arrived broken. Please send Ms Berger the refund of 249 euros "
    "today: my mother-in-law comes tomorrow, and I am furious."
)
COLOURS = 64


def picture(url: str, text: str, file: Path) -> None:
    """Ask the tasks that are picked when the page opens, and keep what is seen, in few colours."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.get_by_label("Text", exact=True).fill(text)
        for _ in range(5):  # the first answers of a server take longer than all others
            page.get_by_role("button", name="Ask", exact=True).click()
            page.get_by_role("status").get_by_text("in ").wait_for()
            page.wait_for_timeout(1500)
        page.mouse.move(0, 0)
        page.get_by_role("heading", name="attentune").click()
        page.wait_for_timeout(500)
        shot = page.locator(".playground").screenshot()
        browser.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(file, optimize=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args()
    picture(given.url, given.text, given.output)


if __name__ == "__main__":
    main()
