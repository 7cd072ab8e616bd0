"""The pictures of the page in docs/: `python tools/screenshots.py /usr/bin/chromium`.

Needs Chromium and playwright. Writes `docs/app.png` (the page that has drawn) and
`docs/app-repaint.png` (a picture, what is rubbed out of it, and two ways to repaint that).
"""

import io
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from underpaint import serving
from underpaint.cli import app
from underpaint.interop import export

DOCS = Path(__file__).parent.parent / "docs"
IDLE = "() => window.underpaint?.card && !window.underpaint.busy"


def main(chromium: str) -> None:
    """Write both pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = Path(folder) / "web"
        export.export("pretrained:lorelei", "web", place)
        server = serving.bound(app.of(place), 18300)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 1010}, color_scheme="light")
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.wait_for_function(IDLE, timeout=120_000)
        page.evaluate("document.getElementById('status').textContent = '9 images.'")  # no time
        save(Image.open(io.BytesIO(page.screenshot())), "app.png")
        save(row(repainting(page)), "app-repaint.png")
        server.shutdown()
        browser.close()


def repainting(page: Any) -> list[Image.Image]:
    """Of the sixth picture: itself, rubbed out in part, repainted twice."""
    page.click('[data-wall="draw"] .cell >> nth=5')
    page.click("#to-repaint")
    easel = page.locator(".easel")
    shots = [easel.screenshot()]
    for again in range(2):
        box = page.locator("#easel").bounding_box()
        page.locator("#brush").fill("5")
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.55 * box["height"], steps=9)
        page.mouse.up()
        page.mouse.move(0, 0)
        if not again:
            shots.append(easel.screenshot())
        page.click("#go")
        page.wait_for_function(IDLE, timeout=120_000)
        shots.append(easel.screenshot())
    return [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]


def row(pictures: list[Image.Image], side: int = 256, gap: int = 12) -> Image.Image:
    """Beside one another, on white."""
    sheet = Image.new("RGB", (len(pictures) * (side + gap) - gap, side), "white")
    for i, picture in enumerate(pictures):
        small = picture.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(small, (i * (side + gap), 0))
    return sheet


def save(picture: Image.Image, name: str) -> None:
    """With 256 colours, which is enough for it."""
    picture.convert("RGB").quantize(256).save(DOCS / name, optimize=True)
    print(DOCS / name, (DOCS / name).stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
