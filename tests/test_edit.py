"""`underpaint edit`: grids and files, masks of every kind, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import underpaint as up
from underpaint import pictures
from underpaint.cli import main
from underpaint.sealed.writer import seal

Wrong = Callable[..., str]
QUICK = ["--steps", "2", "--resample", "1"]


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two pictures of 8×8."""
    rng = np.random.default_rng(3)
    some = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return [save(tmp_path / f"photo {i}.png", pixels) for i, pixels in enumerate(some)]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White, which is erased, in its lower right quarter."""
    grey = np.zeros((8, 8), np.uint8)
    grey[4:, 4:] = 255
    return save(tmp_path / "mask.png", grey)


def edit(*arguments: object) -> None:
    assert main(["edit", *map(str, arguments), "--quiet"]) == 0


def files(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_files_hold_what_was_kept_and_say_how_they_were_made(
    trained: Path, photos: list[Path], mask: Path, tmp_path: Path
) -> None:
    flags = ["--mask", mask, "--label", "light", "--seed", 5, "-n", 2, *QUICK]
    edit(trained, *photos, *flags, "--out", tmp_path / "out")
    found = files(tmp_path / "out")
    assert list(found) == [
        "seed00000005_photo-0.png",
        "seed00000006_photo-0.png",
        "seed00000007_photo-1.png",
        "seed00000008_photo-1.png",
    ]
    before = np.stack([np.asarray(Image.open(photo)) for photo in photos]).repeat(2, 0)
    keep = np.asarray(Image.open(mask)) < 128
    after = np.stack([*found.values()])
    assert (after[:, keep] == before[:, keep]).all()
    assert (after[:, ~keep] != before[:, ~keep]).any()
    painter = up.load(trained, device="cpu")
    how = {"labels": ["light"], "steps": 2, "resample": 1}
    np.testing.assert_array_equal(after, painter.inpaint(before, keep, seed=5, **how))
    said = Image.open(tmp_path / "out" / "seed00000006_photo-0.png").text
    assert said["seed"] == "6"
    assert said["label"] == "light"
    assert said["mask"] == str(mask)
    assert (said["edit"], said["resample"], said["soft"], said["steps"]) == ("mask", "1", "2", "2")


def test_a_grid_shows_before_erased_and_after(
    trained: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid.png"
    given = ["--box", "0,0,3,8", "6,0,2,2", "--out", out, "--json", *QUICK]
    edit(trained, *photos, *given)
    about = json.loads(capsys.readouterr().out)
    assert (about["out"], about["n"], about["box"]) == (str(out), 2, "0,0,3,8, 6,0,2,2")
    before = np.stack([np.asarray(Image.open(photo)) for photo in photos])
    keep = np.ones((8, 8), bool)
    keep[:, :3] = keep[:2, 6:] = False
    after = up.load(trained, device="cpu").inpaint(before, keep, steps=2, resample=1)
    erased = np.where(keep[..., None], before, 128).astype(np.uint8)
    rows = np.stack([before, erased, after], 1).reshape(6, 8, 8, 3)
    expected = pictures.grid(rows, 3, ["before", "erased", "after"])
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    assert Image.open(out).text["box"] == about["box"]


def test_other_sizes_are_fitted_with_their_masks(trained: Path, tmp_path: Path) -> None:
    """Of 32×16 pixels the middle 16×16 are seen, of which the right half is erased."""
    rng = np.random.default_rng(0)
    wide = save(tmp_path / "wide.png", rng.integers(0, 256, (16, 32, 3), dtype=np.uint8))
    grey = np.zeros((16, 32), np.uint8)
    grey[:, 16:] = 255
    large, small = save(tmp_path / "large.png", grey), save(tmp_path / "small.png", grey[::2, ::2])
    edit(trained, wide, "--mask", large, "--fit", "--out", tmp_path / "a", *QUICK)
    edit(trained, wide, "--mask", small, "--fit", "--out", tmp_path / "b", *QUICK)
    edit(trained, wide, "--box", "4,0,4,8", "--fit", "--out", tmp_path / "c", *QUICK)
    a, b, c = (files(tmp_path / name)["seed00000000_wide.png"] for name in "abc")
    assert a.shape == (8, 8, 3)
    np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(b, c)


def test_transparent_pixels_are_the_mask(trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[2:5, 3:7, 3] = 0
    holed, filled = save(tmp_path / "x.png", pixels), tmp_path / "filled" / "x.png"
    filled.parent.mkdir()
    save(filled, pixels[..., :3])
    edit(trained, holed, "--mask", "alpha", "--out", tmp_path / "a", *QUICK)
    edit(trained, filled, "--box", "3,2,4,3", "--out", tmp_path / "b", *QUICK)
    a, b = (files(tmp_path / name)["seed00000000_x.png"] for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_every_other_edit(trained: Path, photos: list[Path], tmp_path: Path) -> None:
    painter = up.load(trained, device="cpu")
    before = np.stack([np.asarray(Image.open(photo)) for photo in photos])
    edit(trained, *photos, "--outpaint", "right=4", "--out", tmp_path / "wide", *QUICK)
    wide = np.stack([*files(tmp_path / "wide").values()])
    np.testing.assert_array_equal(wide, painter.outpaint(before, right=4, steps=2, resample=1))
    edit(trained, *photos, "--strength", "0.4", "--steps", "5", "--out", tmp_path / "vary")
    varied = np.stack([*files(tmp_path / "vary").values()])
    np.testing.assert_array_equal(varied, painter.vary(before, 0.4, steps=5))
    edit(trained, "--interpolate", 0, 1, "-n", 3, "--out", tmp_path / "between", "--steps", "2")
    between = np.stack([*files(tmp_path / "between").values()])
    np.testing.assert_array_equal(between, painter.interpolate(0, 1, 3, steps=2))
    assert sorted(path.name for path in (tmp_path / "between").iterdir()) == [
        f"seeds0-1_0{i}.png" for i in range(3)
    ]
    chunks = Image.open(tmp_path / "between" / "seeds0-1_01.png").text
    assert "seed" not in chunks
    assert chunks["seeds"] == "0 to 1"
    for name, flags in (("o", ["--outpaint", "4"]), ("s", ["--strength", "1", "-n", "3"])):
        edit(trained, *photos, *flags, "--out", tmp_path / f"{name}.png", "--steps", "2")
        assert Image.open(tmp_path / f"{name}.png").width >= 600
    edit(trained, "--interpolate", 0, 1, "--out", tmp_path / "i.png", "--steps", "2")
    assert Image.open(tmp_path / "i.png").text["seeds"] == "0 to 1"


def test_sealed_images_are_restored(trained: Path, tmp_path: Path) -> None:
    from underpaint import config

    faces = trained.parent / "faces"
    seal(config.Data(source=str(faces)), tmp_path / "s.up", kind="patch", rate=0.5, key=bytes(32))
    edit(trained, tmp_path / "s.up", "--restore", "-n", 2, "--out", tmp_path / "out", *QUICK)
    assert list(files(tmp_path / "out")) == ["seed00000000_s.png", "seed00000001_s.png"]
    edit(trained, tmp_path / "s.up", "--restore", "-n", 2, "--out", tmp_path / "s.png", *QUICK)
    assert Image.open(tmp_path / "s.png").text["edit"] == "restore"


def test_wrong_use(
    trained: Path, photos: list[Path], mask: Path, tmp_path: Path, wrong: Wrong
) -> None:
    photo, out = photos[0], ["--out", tmp_path / "x.png"]
    box = ["--box", "0,0,4,4"]

    def said(*arguments: object) -> str:
        return wrong("edit", trained, *arguments, *out)

    def saved(name: str, pixels: np.ndarray) -> Path:
        return save(tmp_path / name, pixels)

    assert "nothing to do: give --mask, --box, --outpaint" in said(photo)
    assert "--box and --strength: give one of them" in said(photo, *box, "--strength", 0.5)
    assert "edit needs IMAGE, before the flags" in said("--mask", mask, photo)
    assert "goes between two seeds, not images" in said(photo, "--interpolate", 0, 1)
    assert "is a folder; give its files, as" in said(photo.parent, "--strength", 0.5)
    assert "--soft has no meaning with --strength" in said(photo, "--strength", 0.5, "--soft", 1)
    assert "--fit has no meaning with --interpolate" in said("--interpolate", 0, 1, "--fit")
    assert "expected four whole numbers" in said(photo, "--box", "1,2,3")
    assert "width and height at 1" in said(photo, "--box", "1,2,0,3")
    assert "ends beyond the image, 8×8" in said(photo, "--box", "4,4,5,1")
    assert "expected EDGE=N, where EDGE is one of top" in said(photo, "--outpaint", "up=4")
    assert "expected EDGE=N" in said(photo, "--outpaint", "left=-4")
    twice = ["--outpaint", "left=4", "--outpaint", "left=2"]
    assert "--outpaint left=2: left is given twice" in said(photo, *twice)
    assert "--outpaint 3: left is given twice" in said(photo, "--outpaint", "left=4", 3)
    assert "--seed has no meaning with --interpolate" in said("--interpolate", 0, 1, "--seed", 0)
    assert "give at least one edge some pixels" in said(photo, "--outpaint", 0)
    assert "strength 0: give a number above 0" in said(photo, "--strength", 0)
    assert "--resample 0: give a number from 1 up" in said(photo, *box, "--resample", 0)
    assert "--soft -1: give a number from 0 up" in said(photo, *box, "--soft", -1)
    assert "-n 0: give a number from 1 up" in said(photo, *box, "-n", 0)
    assert "cannot go back and take a step again" in said(photo, *box, "--sampler", "dpm++")
    assert "--guidance 2: needs labels; add --label" in said(photo, *box, "--guidance", 2)
    assert "did you mean 'light'?" in said(photo, *box, "--label", "ligt")
    assert "none.png: cannot be read (No such file" in said(tmp_path / "none.png", *box)
    assert "is a folder; give its files" in said(tmp_path, *box)
    (tmp_path / "text.png").write_text("text")
    assert "is not an image of a known format" in said(tmp_path / "text.png", *box)
    wide = saved("wide.png", np.zeros((10, 20, 3), np.uint8))
    assert "is 20×10 pixels (width × height), and this model takes 8×8; add --fit" in said(
        wide, *box
    )
    assert "the mask is 20×10 pixels" in said(photo, "--mask", wide)
    assert "another size than" in said(photo, wide, "--outpaint", 4)
    none, all_ = (saved(f"{v}.png", np.full((8, 8), v, np.uint8)) for v in (0, 255))
    assert "the mask of image 0 keeps everything" in said(photo, "--mask", none)
    assert "the mask of image 0 keeps nothing" in said(photo, "--mask", all_)
    assert "3 files for 2 images" in said(*photos, "--mask", mask, mask, mask)
    assert "has no transparent pixels" in said(photo, "--mask", "alpha")
    assert "is not a sealed file" in said(photo, "--restore")
    assert "--restore takes one sealed file" in said(photo, photo, "--restore")
    assert "give a .png, .jpg or .webp (grid) or a folder" in wrong(
        *("edit", trained, photo, *box, "--out", tmp_path / "x.npz")
    )
    (tmp_path / "x.png").write_text("")
    assert "exists already; add --overwrite" in said(photo, *box)
    edit(trained, photo, *box, *out, *QUICK, "--overwrite")
