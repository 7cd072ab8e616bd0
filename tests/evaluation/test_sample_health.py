"""Noise, blurred, copies or good: sets whose nature is known, and what a run says of them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tests.report.synthetic import write_images, write_run
from underpaint import config, report
from underpaint.core.masks import MaskSpec
from underpaint.data import prepare
from underpaint.evaluation.sample_health import Health, judge, sentence, texture
from underpaint.evaluation.validation import OverfitCheck
from underpaint.model import build
from underpaint.training.training_set import ImageSet

Images = NDArray[np.uint8]
N, SIDE = 96, 32


def icons(n: int, rng: np.random.Generator) -> Images:
    """One or two rectangles on white."""
    images = np.full((n, SIDE, SIDE, 3), 255, np.uint8)
    for image in images:
        for _ in range(rng.integers(1, 3)):
            y, x = rng.integers(4, 20, 2)
            h, w = rng.integers(3, 10, 2)
            image[y : y + h, x : x + w] = rng.integers(0, 200, 3)
    return images


def disks(n: int, rng: np.random.Generator) -> Images:
    """Disks that cover each other, with a light grain: edges and shades as of photographs."""
    y, x = np.mgrid[:SIDE, :SIDE]
    images = np.full((n, SIDE, SIDE, 3), 128.0)
    for image in images:
        for _ in range(40):
            (a, b), radius = rng.uniform(0, SIDE, 2), rng.uniform(2, 14)
            image[(y - a) ** 2 + (x - b) ** 2 < radius**2] = rng.integers(20, 236, 3)
    return added(images, 5, rng)


def rough(n: int, rng: np.random.Generator) -> Images:
    """White noise by nature."""
    return added(np.full((n, SIDE, SIDE, 3), 128), 50, rng)


def mixed(n: int, rng: np.random.Generator) -> Images:
    """Every image is either flat or rough."""
    return np.where(rng.random((n, 1, 1, 1)) < 0.5, icons(n, rng), rough(n, rng))


@cache
def avatars(style: str) -> Images:
    data = prepare(config.Data(source=f"avatars:{style}", limit=2 * N))
    return data.batch(data.train_ids)


@cache
def a_set(name: str) -> tuple[Images, Images]:
    """N real images, and N more of the same kind."""
    rng = np.random.default_rng(0)
    drawn = {"icons": icons, "disks": disks, "rough": rough, "mixed": mixed}
    if name in drawn:
        images = drawn[name](2 * N, rng)
    else:
        images = avatars(name.removesuffix(", grey"))
        if name.endswith("grey"):
            images = images.mean(3, keepdims=True).round().astype(np.uint8)
    return images[:N], images[N:]


def added(images: NDArray, levels: float, rng: np.random.Generator, *, cell: int = 1) -> Images:
    """`images` with noise of so many grey levels, in squares of `cell` pixels."""
    n, H, W, C = images.shape
    noise = rng.normal(0, levels, (n, H // cell, W // cell, C))
    noise = noise.repeat(cell, 1).repeat(cell, 2)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def coloured(images: Images, rng: np.random.Generator) -> Images:
    """Gaussian noise with the mean power spectrum of `images`, and nothing else of them."""
    x = images.astype(float)
    mean = x.mean((0, 1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(x - mean, axes=(1, 2))) ** 2).mean(0) / images[0, :, :, 0].size
    white = np.fft.fft2(rng.normal(size=x.shape), axes=(1, 2))
    noise = np.fft.ifft2(white * np.sqrt(power), axes=(1, 2)).real
    return np.clip(mean + noise, 0, 255).round().astype(np.uint8)


def blurred(images: Images, pixels: float) -> Images:
    def one(image: Images) -> Images:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        found = np.asarray(picture.filter(ImageFilter.GaussianBlur(pixels)))
        return found.reshape(image.shape)

    return np.stack([one(image) for image in images])


ALL = ["lorelei", "pixel-art", "lorelei, grey", "icons", "disks", "rough", "mixed"]
PLAIN = [name for name in ALL if name not in ("rough", "mixed")]


@pytest.mark.parametrize("name", ALL)
def test_real_images_are_good_and_pure_noise_is_noise(name: str) -> None:
    real, more = a_set(name)
    rng = np.random.default_rng(1)
    reference = texture(real[:64])
    assert judge(more[:32], reference, real).verdict == "good"
    for n in (1, 4, 32):
        noise = rng.integers(0, 256, (n, *real.shape[1:]), dtype=np.uint8)
        assert judge(noise, reference, real).verdict == "noise"
    for _ in range(20):
        few = more[rng.choice(len(more), 4, replace=False)]
        assert judge(few, reference, real).verdict == "good"


@pytest.mark.parametrize("name", PLAIN)
def test_noise_on_real_images_is_noise_once_it_is_plain_to_see(name: str) -> None:
    real, more = a_set(name)
    rng = np.random.default_rng(1)

    def verdict(samples: Images) -> str:
        return judge(samples[:32], texture(real[:64])).verdict

    assert verdict(added(more, 4, rng)) == "good"
    for levels in (30, 50, 100):
        assert verdict(added(more, levels, rng)) == "noise"
    assert verdict(added(blurred(more, 1), 30, rng)) == "noise"
    assert verdict(added(more, 50, rng, cell=2)) == "noise"  # coarse, as of whole patches
    if name != "icons":  # there most of it lies beyond white
        assert verdict(coloured(more, rng)) == "noise"


@pytest.mark.parametrize("name", [name for name in ALL if name != "mixed"])
def test_what_lacks_fine_detail_is_blurred(name: str) -> None:
    real, more = a_set(name)
    reference = texture(real[:64])
    for samples in (blurred(more, 1.2), blurred(more, 3), np.full_like(more, 128)):
        assert judge(samples[:32], reference, real).verdict == "blurred"
    assert judge(blurred(more, 0.4)[:32], reference, real).verdict == "good"


@pytest.mark.parametrize("name", ALL)
def test_copies_are_copies(name: str) -> None:
    real, more = a_set(name)
    found = judge(real[:32], texture(real[:64]), real)
    assert (found.verdict, found.copied) == ("copies", 1.0)
    nearly = added(real[:32], 3, np.random.default_rng(1))
    assert judge(nearly, texture(real[:64]), real).verdict == "copies"
    some = np.concatenate([real[:12], more[:20]])
    found = judge(some, texture(real[:64]), real)
    assert (found.verdict, found.copied) == ("good", 12 / 32)
    assert judge(real[:32], texture(real[:64])).copied is None


def test_detail_is_the_power_of_high_frequencies() -> None:
    """A wave of 1/8 cycle a pixel has none of it; of 3/8 it has all its power, half its square."""
    x = np.arange(64)
    waves = [128 + 100 * np.sin(2 * np.pi * f * x) for f in (1 / 8, 3 / 8)]
    images = np.stack([np.broadcast_to(w, (64, 64)) for w in waves])[..., None].round()
    low, high = texture(images.astype(np.uint8)).detail
    assert low < 1
    assert high == pytest.approx(100 / np.sqrt(2), rel=0.01)


def test_grain_is_the_noise_of_the_quiet_parts() -> None:
    """Of noise of s levels a 3×3 neighbourhood has the variance 8/9 s²; half of it is an edge."""
    image = np.full((1, 128, 128, 1), 60.0)
    image[:, :, 64:] = 180
    (grain,) = texture(added(image, 10, np.random.default_rng(0))).grain
    assert 0.7 * 10 < grain < np.sqrt(8 / 9) * 10


def test_the_sentence_says_what_to_do() -> None:
    def said(verdict: str, seen: int) -> str | None:
        return sentence(Health(verdict, 0, 0, 0, 0, None), seen, 10_000)  # type: ignore[arg-type]

    early, late = said("noise", 2_500) or "", said("noise", 7_500) or ""
    assert early.startswith("samples are still noise after 2,500 of 10,000 images")
    assert "train longer (--minutes), or on smaller images (--size)" in late
    assert "train on more images" in (said("copies", 7_500) or "")
    assert "real images; train longer" in (said("blurred", 10_000) or "")
    assert (said("blurred", 7_500) or "").endswith("fine detail of real images")
    short = sentence(Health("blurred", 0, 0, 0, 0, None), 16, 16)
    assert short == "16 images seen are hardly a beginning: train longer (--minutes)"
    assert said("good", 7_500) is None


# --- in a run ------------------------------------------------------------------------------------


def test_the_check_of_a_run_judges_its_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "disks.npy", disks(N, np.random.default_rng(0)))
    dataset = prepare(config.Data(source=str(tmp_path / "disks.npy"), held_out="none"))
    noise = np.random.default_rng(1).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
    model = build(config.ModelSpec(size=(SIDE, SIDE)))
    images = ImageSet(dataset, config.Stage(), model.space, MaskSpec())
    check = OverfitCheck.of(images, model, 0, 8)
    assert check is not None
    record = check.health(noise, (100, 1000))
    assert record is not None
    assert record["verdict"] == "noise"
    assert "after 100 of 1,000 images" in record["sentence"]
    assert record == json.loads(json.dumps(record))
    again = OverfitCheck.of(images, model, 0, 8)
    assert again is not None
    assert again.health(noise, (100, 1000)) == record  # a resumed run says the same
    assert check.health(noise[:, :16], (100, 1000)) is None  # of another size
    check.reference = lambda: None  # as of sealed data
    assert check.health(noise, (100, 1000)) is None


@pytest.mark.parametrize("verdict", ["noise", None])
def test_the_report_says_first_that_samples_are_noise(tmp_path: Path, verdict: str | None) -> None:
    source = str(write_images(tmp_path / "images.npz"))
    run = write_run(tmp_path / "run", source)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "sample"][-1]
    said = "samples are still noise after 64,000 of 64,000 images: train longer (--minutes)"
    last["health"] = {"verdict": "noise", "sentence": said} if verdict else None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.build(run).read_text(encoding="utf-8")
    assert 'id="verdict"' in page
    assert ("still noise" in page) == bool(verdict)
    if verdict:
        place = page.index("<dd>Samples are still noise after 64,000 of 64,000 images")
        assert page.index("</h1>") < place < page.index("This model")
        assert place < page.index("held-out error 0.0631")
