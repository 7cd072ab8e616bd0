"""The page in a real browser: `make browser`, which says what it needs.

Chromium without a window draws the pictures that Python draws, from the same noise.
"""

import io
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.interop.small import build
from tests.report.synthetic import model as stand_in_model
from tests.report.synthetic import write_images, write_run
from underpaint import model as models
from underpaint import report, serving
from underpaint.cli import app
from underpaint.core import samplers
from underpaint.interop import export
from underpaint.model import Model
from underpaint.report import gallery

CHROMIUM = os.environ.get("UNDERPAINT_CHROMIUM", "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="in a browser: make browser")

IDLE = "() => window.underpaint?.card && !window.underpaint.busy"
DRAW = """async ({ noise, ...job }) => {
  const data = await (await fetch(noise)).arrayBuffer();
  const found = await window.underpaint.run({ job: "draw", noise: new Float32Array(data), ...job });
  return found.map((pixels) => [...pixels]);
}"""
PIXELS = """(id) => {
  const canvas = document.getElementById(id);
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""

COVERED = """() => {  // the middles of the overlay's squares of 16 × 16: RGBA
  const canvas = document.getElementById("easel"), context = canvas.getContext("2d");
  const { data, width } = context.getImageData(0, 0, canvas.width, canvas.height);
  const found = [];
  for (let y = 8; y < canvas.height; y += 16) {
    for (let at = 4 * (y * width + 8); at < 4 * (y + 1) * width; at += 64) {
      found.push(...data.slice(at, at + 4));
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lorelei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lorelei") / "web"
    export.export("pretrained:lorelei", "web", folder)
    return folder


class Site:
    """A folder that is served, and a page on it; `asked` are the addresses that it fetched."""

    def __init__(self, folder: Path, chromium: Any, width: int = 1280, **options: Any) -> None:
        self.folder, self.asked, self.errors = folder, list[str](), list[str]()
        self.server = serving.bound(app.of(folder), 18200)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/"
        size = {"width": width, "height": 900}
        self.context = chromium.new_context(viewport=size, accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)

    def begin(self) -> Any:
        self.page.goto(self.address)
        self.idle()
        return self.page

    def idle(self) -> None:
        self.page.wait_for_function(IDLE, timeout=120_000)

    def close(self) -> None:
        self.context.close()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def site(lorelei: Path, chromium: Any) -> Iterator[Site]:
    """The packaged weights' page on a wide screen; it has drawn its first pictures."""
    site = Site(lorelei, chromium)
    site.begin()
    yield site
    assert site.errors == []
    assert all(url.startswith((site.address, "blob:", "data:")) for url in site.asked)
    site.close()


def pixels(page: Any, name: str, model: Model) -> np.ndarray:
    return np.reshape(page.evaluate(PIXELS, name), (*model.spec.size, 4))


def noise(model: Model, folder: Path, seeds: list[int]) -> str:
    """A file of the noise that Python draws with for these seeds."""
    N, P = model.space.grid[0] * model.space.grid[1], model.space.patch_dim
    values = model.space.decode(samplers.SeededNoise(seeds).initial((N, P)))
    values.numpy().astype("<f4").tofile(folder / "noise.bin")
    return "noise.bin"


@pytest.mark.parametrize(
    ("labels", "guidance", "steps"), [([0, 5, -1], 1.0, 10), ([3, 3, 6], 2.5, 10), ([1], 1.0, 20)]
)
def test_it_draws_what_python_draws(
    site: Site, labels: list[int], guidance: float, steps: int
) -> None:
    model = models.load("pretrained:lorelei", device="cpu")
    seeds = [7 + i for i in range(len(labels))]
    file = noise(model, site.folder, seeds)
    job = {"labels": labels, "seeds": seeds, "steps": str(steps), "guidance": guidance}
    found = np.array(site.page.evaluate(DRAW, {"noise": file, **job}))
    found = found.reshape(len(labels), *model.spec.size, 4)[..., :3]
    drawn = model.sample(len(labels), seed=7, labels=labels, guidance=guidance, steps=steps)
    assert np.abs(found - drawn.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("channels", "clip", "sampler"), [(4, "dynamic", "heun"), (1, "none", "euler")]
)
def test_other_shapes_and_channels(
    channels: int, clip: str, sampler: str, chromium: Any, tmp_path: Path
) -> None:
    """See-through and grey pictures of 8 × 16, without labels."""
    sampling = {"clip": clip, "sampler": sampler}
    model = build("uvit", channels=channels, labels=(), sampling=sampling)
    model.save(tmp_path / "model")
    export.export(tmp_path / "model", "web", tmp_path / "web")
    site = Site(tmp_path / "web", chromium, width=390)
    page = site.begin()
    job = {"labels": [-1, -1], "seeds": [3, 4], "steps": "5", "guidance": 1}
    file = noise(model, site.folder, [3, 4])
    found = np.reshape(page.evaluate(DRAW, {"noise": file, **job}), (2, 8, 16, 4))
    drawn = model.sample(2, seed=3).astype(int)
    if channels == 4:  # colours that are hardly seen may be anything
        assert np.abs(found[..., 3] - drawn[..., 3]).max() <= 2
        found, drawn = (x[..., :3] * x[..., 3:] / 255 for x in (found, drawn))
        assert page.evaluate("document.body.classList.contains('clear')")
    assert np.abs(found[..., : drawn.shape[-1]] - drawn).max() <= 2
    assert not page.is_visible("#labels")
    page.click('[data-wall="draw"] .cell >> nth=1')
    assert page.inner_text("#chosen-name") == "seed 1"
    assert site.errors == []
    site.close()


def erase(page: Any) -> None:
    """Rub out a stroke over the middle, with the mouse."""
    box = page.locator("#easel").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 20, steps=4)
    page.mouse.up()


def test_what_is_rubbed_out_is_painted_anew_and_nothing_else(site: Site) -> None:
    model, page = models.load("pretrained:lorelei", device="cpu"), site.page
    page.click("#tab-draw")
    page.click('[data-wall="draw"] .cell >> nth=1')
    page.click("#to-repaint")
    before = pixels(page, "easel-picture", model)
    page.click("#go")
    assert "Nothing is rubbed out" in page.inner_text("#error")
    page.click("#invert")
    page.click("#go")
    assert "Everything is rubbed out" in page.inner_text("#error")
    page.click("#clear")
    erase(page)
    overlay = np.reshape(page.evaluate(COVERED), (32, 32, 4))[..., 3] == 255
    assert 20 < overlay.sum() < 500
    page.click("#go")
    site.idle()
    after = pixels(page, "easel-picture", model)
    assert "All other pixels are what they were" in page.inner_text("#status")
    page.mouse.move(0, 0)  # the ring goes
    changed = (before != after).any(-1)
    assert changed.sum() > 10
    near = np.pad(overlay, 1)  # the ring of the brush covers the edge of what is rubbed out
    near = (
        sum(np.roll(near, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))[1:-1, 1:-1] > 0
    )
    assert not changed[~near].any()
    page.click("#back")
    assert (pixels(page, "easel-picture", model) == before).all()


def test_the_keyboard_is_enough(site: Site) -> None:
    page = site.page
    page.focus("#tab-draw")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-repaint", "aria-selected") == "true"
    page.click("#clear")
    page.focus("#easel")
    for key in ("ArrowUp", "ArrowLeft", " "):
        page.keyboard.press(key)
    covered = [np.reshape(page.evaluate(COVERED), (32, 32, 4))[14, 14, 3]]
    page.keyboard.press("Backspace")
    covered.append(np.reshape(page.evaluate(COVERED), (32, 32, 4))[14, 14, 3])
    assert covered == [255, 0]  # rubbed out, and brought back
    assert page.evaluate("document.activeElement.id") == "easel"
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.easel')).outlineStyle") == "solid"
    )


def test_a_picture_of_ones_own_is_varied(site: Site, tmp_path: Path) -> None:
    page, model = site.page, models.load("pretrained:lorelei", device="cpu")
    rng = np.random.default_rng(0)
    picture = np.kron(
        rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), np.ones((50, 50, 1), np.uint8)
    )
    Image.fromarray(picture).resize((400, 200)).save(tmp_path / "mine.png")
    page.click("#tab-vary")
    page.set_input_files("#file", tmp_path / "mine.png")
    page.get_by_text("Opened, at 32 × 32 pixels").wait_for()
    source = pixels(page, "source", model)
    middle = np.asarray(
        Image.open(tmp_path / "mine.png")
        .crop((100, 0, 300, 200))
        .resize((32, 32), Image.Resampling.BOX)
    )
    assert np.abs(source[..., :3] - middle.astype(int)).mean() < 8

    def distance(strength: str) -> float:
        page.locator("#strength").fill(strength)
        page.click("#go")
        site.idle()
        page.click('[data-wall="vary"] .cell >> nth=0')
        page.click("#to-repaint")
        found = pixels(page, "easel-picture", model)
        page.click("#tab-vary")
        page.set_input_files("#file", tmp_path / "mine.png")
        page.wait_for_function(
            "() => document.getElementById('status').textContent.startsWith('Opened')"
        )
        return float(np.abs(found[..., :3] - source[..., :3]).mean())

    assert 0 < distance("0.1") < distance("0.9")
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#error:not([hidden])")
    assert "no.png is no image" in page.inner_text("#error")


def test_the_way_between_two_seeds_ends_at_both(site: Site) -> None:
    page, model = site.page, models.load("pretrained:lorelei", device="cpu")
    page.click("#tab-draw")
    page.check('[name="label"][value="none"]', force=True)
    page.check('[name="count"][value="1"]', force=True)
    ends = []
    for seed in ("11", "12"):
        page.fill("#seed", seed)
        page.click("#go")
        site.idle()
        page.click("#to-repaint")
        ends.append(pixels(page, "easel-picture", model))
        page.click("#tab-draw")
    page.click("#tab-between")
    site.idle()
    page.fill("#seed", "11")
    page.fill("#seed-b", "12")
    page.click("#go")
    site.idle()
    for place, end in zip(("0", "8"), ends, strict=True):
        page.locator("#walk").fill(place)
        assert np.abs(pixels(page, "walker", model) - end).max() <= 2


def test_pictures_are_saved(site: Site) -> None:
    page = site.page
    page.click("#tab-draw")
    page.check('[name="count"][value="4"]', force=True)
    page.click("#go")
    site.idle()
    with page.expect_download() as waiting:
        page.click("#save-all")
    data = Path(waiting.value.path()).read_bytes()
    assert Image.open(io.BytesIO(data)).size == (1024, 1024)  # 2 × 2 of 512 × 512
    page.click('[data-wall="draw"] .cell >> nth=2')
    page.select_option("#zoom", "1")
    with page.expect_download() as waiting:
        page.click("#save")
    assert Image.open(waiting.value.path()).size == (32, 32)
    assert waiting.value.suggested_filename.endswith(".png")


def test_stop(site: Site) -> None:
    page = site.page
    page.click("#tab-draw")
    page.check('[name="count"][value="16"]', force=True)
    page.select_option("#steps", "50")
    page.click("#go")
    page.wait_for_function("() => document.getElementById('progress').value > 0", timeout=60_000)
    page.click("#go")
    site.idle()
    assert page.inner_text("#status") == "Stopped."
    page.select_option("#steps", "10")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(scheme: str, lorelei: Path, chromium: Any) -> None:
    """Nothing is wider than the screen, and colours follow the system."""
    site = Site(lorelei, chromium, width=390, color_scheme=scheme, has_touch=True)
    page = site.begin()
    for tab in ("repaint", "vary", "between", "draw"):
        page.click(f"#tab-{tab}")
        site.idle()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(25, 24, 23)"
    assert dark == (scheme == "dark")
    assert site.errors == []
    site.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_is_as_wide_as_the_screen(
    width: int, chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many labels and grids, too: what is wider scrolls by itself, and no image is tiny."""
    source = write_images(tmp_path / "images.npz", labels=9)
    names = tuple(f"a label of some length {i}" for i in range(9))
    stand_in = stand_in_model(names, np.load(source)["images"])
    monkeypatch.setattr(gallery.models, "load", lambda _: stand_in)
    page = report.build(write_run(tmp_path / "run", str(source), labels=names))
    context = chromium.new_context(viewport={"width": width, "height": 900})
    shown = context.new_page()
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    sizes = shown.evaluate("[...document.images].map((i) => i.getBoundingClientRect().width)")
    assert len(sizes) > 50
    assert min(sizes) >= 48
    shown.locator(".wall img").first.click()
    assert shown.locator(".wall img").first.bounding_box()["width"] >= 0.9 * min(width, 900) - 1
    context.close()


def test_a_file_that_is_missing_is_said(lorelei: Path, chromium: Any, tmp_path: Path) -> None:
    shutil.copytree(lorelei, tmp_path / "web")
    (tmp_path / "web" / "model.onnx").unlink()
    site = Site(tmp_path / "web", chromium)
    site.page.goto(site.address)
    site.page.wait_for_selector("#error:not([hidden])")
    assert "model.onnx could not be read (404)" in site.page.inner_text("#error")
    site.close()
