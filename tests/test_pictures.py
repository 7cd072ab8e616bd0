"""Grids, folders and arrays of samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from underpaint.errors import UserError
from underpaint.pictures import (
    CAPTION,
    GAP,
    PAPER,
    grid,
    save_folder,
    save_grid,
    save_npz,
)


def some(n: int, side: int = 8, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (n, side, side, channels), dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 9),
    columns=st.integers(1, 5),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
)
def test_every_image_is_where_it_belongs(
    n: int, columns: int, side: tuple[int, int], channels: int
) -> None:
    images = some(n * 81, 1, channels)[: n * side[0] * side[1]].reshape(n, *side, channels)
    sheet = np.asarray(grid(images, columns))
    factor = (sheet.shape[1] - GAP * (columns + 1)) // (columns * side[1])
    for i, image in enumerate(images):
        top = GAP + i // columns * (side[0] * factor + GAP)
        left = GAP + i % columns * (side[1] * factor + GAP)
        cell = sheet[top : top + side[0] * factor, left : left + side[1] * factor]
        assert np.array_equal(cell[::factor, ::factor], np.broadcast_to(image, (*side, 3)))
        assert np.array_equal(
            cell[factor - 1 :: factor, factor - 1 :: factor], cell[::factor, ::factor]
        )


@pytest.mark.parametrize(
    ("side", "columns"), [(8, 8), (28, 10), (32, 8), (64, 5), (96, 6), (32, 1)]
)
def test_a_sheet_is_600_to_1000_pixels_wide(side: int, columns: int) -> None:
    assert 600 <= grid(some(columns, side), columns).width <= 1000


def test_between_too_narrow_and_too_wide_it_is_wide() -> None:
    assert grid(some(8, 64), 8).width == 2 * 8 * 64 + 9 * GAP


def test_large_images_stay_as_they_are() -> None:
    assert grid(some(8, 256), 8).width == 8 * 256 + 9 * GAP


def test_captions_stand_over_their_columns() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    plain = np.asarray(grid(images, 2))
    sheet = np.asarray(grid(images, 2, ["a", ""]))
    top = plain.shape[1] // 40 + 3 * GAP
    long = np.asarray(grid(images, 2, ["a" * 99, ""]))  # which fits in no size, and is cut
    assert len(long) - len(plain) == CAPTION + 2 * GAP
    assert np.array_equal(sheet[top:], plain[GAP:])
    head = (sheet[:top] != PAPER).any(axis=(0, 2))
    assert head[: len(head) // 2].any()  # ink over the first column
    assert not head[len(head) // 2 :].any()


def test_long_captions_keep_to_their_column() -> None:
    images = np.full((3, 8, 8, 3), 255, np.uint8)
    wide = np.asarray(grid(images, 3, ["", "a very long name of a class " * 9, ""]))
    ink = (wide != PAPER).any(axis=(0, 2)).nonzero()[0]
    assert len(ink)
    assert wide.shape[1] / 3 <= ink.min() < ink.max() <= wide.shape[1] * 2 / 3


@pytest.mark.parametrize(
    ("images", "columns", "labels"),
    [
        (some(0), 1, None),
        (some(2)[0], 1, None),
        (some(2), -1, None),
        (some(2, channels=2), 1, None),
        (some(2), 2, ["a"]),
    ],
)
def test_what_is_no_grid(images: np.ndarray, columns: int, labels: list[str] | None) -> None:
    with pytest.raises(ValueError, match="column"):
        grid(images, columns, labels)


def test_a_folder_holds_each_image_with_its_seed(tmp_path: Path) -> None:
    images = some(2, channels=1)
    about = {"model": "runs/ä", "steps": 20}
    paths = save_folder(tmp_path / "a" / "b", images, [3, 4], ["T-shirt/top", "bag"], about)
    assert [p.name for p in paths] == ["seed00000003_T-shirt-top.png", "seed00000004_bag.png"]
    for path, pixels in zip(paths, images, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), pixels[:, :, 0])
    with Image.open(paths[0]) as image:
        expected = {"model": "runs/ä", "steps": "20", "seed": "3", "label": "T-shirt/top"}
        assert image.info == expected


def test_an_array_holds_all(tmp_path: Path) -> None:
    images = some(2)
    save_npz(tmp_path / "new" / "x.npz", images, [3, 4], ["a", None], {"steps": 20})
    found = np.load(tmp_path / "new" / "x.npz", allow_pickle=False)
    assert np.array_equal(found["images"], images)
    assert (found["seeds"].tolist(), found["labels"].tolist()) == ([3, 4], ["a", ""])
    assert json.loads(str(found["about"])) == {"steps": 20}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for save in (
        lambda path: save_grid(path, some(1), 1),
        lambda path: save_folder(path, some(1), [0]),
        lambda path: save_npz(path, some(1), [0]),
    ):
        with pytest.raises(UserError, match=r"cannot be written .*choose another --out"):
            save(tmp_path / "file" / "x")


@pytest.mark.parametrize("name", ["grid.png", "grid.jpg", "grid.JPEG", "grid.webp"])
def test_a_grid_in_other_formats_says_how_it_was_made(name: str, tmp_path: Path) -> None:
    images = np.full((4, 8, 8, 3), 200, np.uint8)
    save_grid(tmp_path / name, images, 2, about={"model": "runs/ä", "seed": 7})
    with Image.open(tmp_path / name) as image:
        assert image.width >= 600
        if name.endswith("png"):
            found = dict(image.text)  # type: ignore[attr-defined]
        else:
            found = json.loads(image.getexif()[0x010E])
    assert found == {"model": "runs/ä", "seed": "7"}
