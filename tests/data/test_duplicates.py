"""Duplicates: found, named, shown, and left out of training if asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from underpaint import config, data
from underpaint.cli import main
from underpaint.data import duplicates


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """40 soft pictures; four of them again, equal, brighter, as JPEG, and smaller."""
    place = tmp_path / "set"
    place.mkdir()
    rng = np.random.default_rng(5)
    for i in range(40):
        soft = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        soft.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{i:02}.png")
    (place / "again.png").write_bytes((place / "03.png").read_bytes())
    with Image.open(place / "03.png") as image:
        ImageEnhance.Brightness(image).enhance(1.005).save(place / "brighter.png")
    with Image.open(place / "07.png") as image:
        image.save(place / "saved.jpg", quality=95)
    with Image.open(place / "09.png") as image:
        image.resize((16, 16)).save(place / "smaller.png")
    return place


GROUPS = [
    ["03.png", "again.png", "brighter.png"],
    ["07.png", "saved.jpg"],
    ["09.png", "smaller.png"],
]


def test_groups_are_named(repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(repeated), "--size", "32", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["near_duplicates"] == GROUPS
    assert report["duplicates"] == 1
    assert main(["prepare", str(repeated), "--size", "32", "--quiet"]) == 0
    assert "03.png = again.png = brighter.png" in capsys.readouterr().out


def test_one_of_each_is_trained_on(repeated: Path) -> None:
    wanted = config.Data(source=str(repeated), size=(32,), held_out="none")
    everything = data.prepare(wanted)
    wanted.remove_duplicates = True
    chosen = data.prepare(wanted)
    left = {everything.names[i] for i in everything.train_ids}
    left -= {chosen.names[i] for i in chosen.train_ids}
    assert left == {"again.png", "brighter.png", "saved.jpg", "smaller.png"}
    assert len(list(repeated.iterdir())) == 44  # no file is touched


def test_none_is_trained_on_where_another_is_held_out() -> None:
    first = np.array([0, 0, 2, 2, 4, 5, 5])
    train, held = np.array([0, 2, 3, 4, 5]), np.array([1, 6])
    assert duplicates.kept(train, held, first).tolist() == [2, 4]


def test_the_answer_is_remembered(repeated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = data.prepare(config.Data(source=str(repeated), size=(32,)))
    found = duplicates.first_of_each(prepared.images, prepared.key)
    monkeypatch.setattr(duplicates, "_first_of_each", lambda images: pytest.fail("again"))
    assert duplicates.first_of_each(prepared.images, prepared.key).tolist() == found.tolist()


def test_the_page(repeated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 32), (7, 7, 7)).save(repeated / "plain.png")
    page = tmp_path / "pages" / "data.html"
    flags = ["prepare", str(repeated), "--size", "32", "--page", str(page), "--quiet"]
    assert main(flags) == 0
    text = page.read_text()
    assert "2 images, all equal" not in text
    assert "3 images" in text
    assert "brighter.png" in text
    assert 'alt="Of nearly one colour: plain.png"' in text
    assert '<p class="small">plain.png</p>' in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert main(flags) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*flags[:-2], str(tmp_path / "page.txt")]) == 2
