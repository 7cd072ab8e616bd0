"""Pictures with transparency: from files to the network, and to PNGs with alpha again."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.test_augmentation import changes
from tests.data.pictures import png
from tests.evaluation.test_evaluate import Pooled
from underpaint import config, data, model, model_folder, pictures
from underpaint.cli import main
from underpaint.core import alpha, augmentation, masks, spaces
from underpaint.data.decode import Options, decode
from underpaint.evaluation import features
from underpaint.evaluation.evaluate import evaluate
from underpaint.evaluation.nearest import distance_ratios
from underpaint.evaluation.sample_health import texture
from underpaint.sealed import format as sealed
from underpaint.sealed.writer import seal

torch.set_num_threads(1)

Wrong = Callable[..., str]
RECIPE = """\
network: {width: 64, depth: 3, heads: 2}
stages:
  masked: {images: 16, mask: patch, rate: 0.5, batch: 8, flip: true}
  whole: {images: 32, batch: 8, shift: 1, augment: 0.5}
train: {threads: 1, precision: fp32, check_every: 24, check_samples: 4, sample_every: 24}
sampling: {count: 8, steps: 2, sampler: euler}
"""


def icons(n: int, seed: int = 0) -> np.ndarray:
    """Discs of 8×8 with soft edges, uint8 [n, 8, 8, 4]; what is transparent is bright green."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8] - 3.5
    cover = np.clip(rng.uniform(1.5, 4, (n, 1, 1)) - np.hypot(y, x), 0, 1)[..., None]
    colours = np.where(cover > 0, rng.integers(0, 256, (n, 1, 1, 3)), [0, 255, 0])
    return np.concatenate([colours, 255 * cover], 3).round().astype(np.uint8)


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i:03}.png").write_bytes(png(image))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`icons` (160 discs, 70 held out), `opaque` pictures, a feature network, a trained `run`."""
    place = tmp_path_factory.mktemp("transparent")
    write(place / "icons", icons(160))
    write(place / "opaque", icons(80)[..., :3])
    (place / "recipe.yaml").write_text(RECIPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Pooled()).save(str(place / "pooled.pt"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        flags = ["--config", place / "recipe.yaml", "--data", place / "icons", "--channels", "rgba"]
        flags += ["--held-out", 70, "--out", place / "run", "--quiet"]
        assert main(["train", *map(str, flags)]) == 0
    return place


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(place / "cache"))


# --- numbers ---------------------------------------------------------------------------------


def test_every_premultiplied_colour_comes_back() -> None:
    a, c = (v.ravel() for v in np.mgrid[:256, :256])
    seen = np.stack([c, c, c, a], -1)[c <= a].astype(np.uint8)  # all there are
    straight = alpha.straight(seen)
    np.testing.assert_array_equal(alpha.premultiplied(straight), seen)
    np.testing.assert_array_equal(alpha.straight(alpha.premultiplied(straight)), straight)
    assert not straight[seen[:, 3] == 0].any()
    exact = straight[:, 0] * straight[:, 3].astype(float) / 255
    assert np.abs(exact - seen[:, 0]).max() <= 0.5


def test_pictures_come_back_from_the_network() -> None:
    known = alpha.straight(alpha.premultiplied(icons(5)))
    planes = spaces.from_uint8(known)
    assert planes.shape == (5, 4, 8, 8)
    assert bool((planes[:, :3] <= planes[:, 3:]).all())  # premultiplied
    np.testing.assert_array_equal(spaces.to_uint8(planes).numpy(), known)
    too_bright = torch.tensor([1.0, 0.5, -2.0, 0.0]).view(1, 4, 1, 1)
    assert spaces.to_uint8(too_bright).flatten().tolist() == [255, 255, 0, 128]


def test_over_a_ground_is_pillows() -> None:
    image = icons(1)[0]
    for ground in (0, 255):
        behind = Image.new("RGBA", (8, 8), (ground, ground, ground, 255))
        expected = Image.alpha_composite(behind, Image.fromarray(image)).convert("RGB")
        away = alpha.over(image, ground).astype(int) - np.asarray(expected)
        assert np.abs(away).max() <= 1


def test_other_channels_are_left_alone() -> None:
    colours = icons(2)[..., :3]
    assert alpha.premultiplied(colours) is colours
    assert alpha.straight(colours) is colours
    assert alpha.over(colours, 0) is colours


# --- files -----------------------------------------------------------------------------------


def decoded(content: bytes, size: tuple[int, int] | None = None, fit: str = "crop") -> np.ndarray:
    return decode(content, Options(size, 4, fit, (255, 255, 255))).pixels


def test_what_cannot_be_seen_does_not_bleed_into_what_can() -> None:
    wide = np.zeros((16, 16, 4), np.uint8)
    wide[:, :, 1] = 255  # invisible green
    wide[:, :8] = (255, 0, 0, 255)
    small = decoded(png(wide), (4, 4))
    assert (small[small[..., 3] > 0][:, :3] == (255, 0, 0)).all()
    assert (small[small[..., 3] == 0] == 0).all()
    assert small[:, 0, 3].tolist() == [255] * 4
    assert small[:, 3, 3].tolist() == [0] * 4


def test_files_without_alpha_are_opaque_and_padding_is_not() -> None:
    red = np.full((4, 8, 3), (200, 0, 0), np.uint8)
    assert (decoded(png(red)) == (200, 0, 0, 255)).all()
    padded = decoded(png(red), (8, 8), "pad")
    assert (padded[2:6] == (200, 0, 0, 255)).all()
    assert not padded[:2].any()
    assert not padded[6:].any()
    assert (decoded(png(red[..., 0]))[..., :3] == 200).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_which_files_are_transparent(mode: str) -> None:
    image = Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).convert(mode)
    options = Options(None, 3, "crop", (255, 255, 255))
    assert not decode(saved(image), options).transparent
    if mode in ("P", "L"):
        hole = image.getpixel((0, 0))
        found = decode(saved(image, transparency=hole), options)
    else:
        image.putalpha(254)
        found = decode(saved(image), options)
    assert found.transparent


def saved(image: Image.Image, **options: object) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_grids_are_on_a_chequerboard_and_files_keep_alpha(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 4), np.uint8)
    images[1] = (10, 199, 30, 128)
    sheet = np.asarray(pictures.grid(images, 2))
    greys = {int(v) for v in np.unique(sheet[:, : sheet.shape[1] // 2])}
    assert greys == {pictures.LIGHT, pictures.DARK}
    at = pictures.GAP
    assert sheet[at, at, 0] == sheet[at + 8, at + 8, 0] != sheet[at + 8, at, 0]
    half = sheet[at, -at - 1].astype(float)
    board = np.array([pictures.LIGHT, pictures.DARK])[:, None]
    mixed = 128 / 255 * np.array([10, 199, 30]) + 127 / 255 * board
    assert np.abs(half - mixed).max(1).min() <= 1
    (file,) = pictures.save_folder(tmp_path / "one", images[1:], [7])
    assert Image.open(file).mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), images[1])
    pictures.save_npz(tmp_path / "some.npz", images, [0, 1])
    again = data.prepare(config.Data(source=str(tmp_path / "some.npz"), channels="rgba"))
    np.testing.assert_array_equal(again.images, images)


# --- what is measured -------------------------------------------------------------------------


def test_colours_are_augmented_as_if_they_were_not_premultiplied() -> None:
    straight, a = torch.rand(1, 3, 6, 6) * 2 - 1, torch.rand(1, 1, 6, 6)

    def seen(colours: torch.Tensor) -> torch.Tensor:
        """Straight colours in [−1, 1] as premultiplied planes."""
        return torch.cat([a * (colours + 1) - 1, 2 * a - 1], 1)

    for strength in ({"brightness": [0.3]}, {"contrast": [-1.0]}, {"saturation": [1.0]}):
        some = changes(**strength)
        expected = seen(augmentation.apply(straight, some))
        found = augmentation.apply(seen(straight), some)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert torch.equal(found[:, 3], seen(straight)[:, 3])
    drawn = augmentation.draw(np.random.default_rng(0), 50, 0.0, square=True, colour=True)
    planes = spaces.from_uint8(icons(50))
    assert torch.equal(augmentation.apply(planes, drawn), planes)


def test_features_are_the_means_over_black_and_white(place: Path) -> None:
    network = features.load("torchscript", place / "pooled.pt")
    images = icons(3)
    both = [network(alpha.over(images, ground)) for ground in (0, 255)]
    np.testing.assert_allclose(network(images), (both[0] + both[1]) / 2)
    clear, black = np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)
    black[..., 3] = 255  # the same as a clear one over black alone
    assert np.abs(network(clear) - network(black)).max() == pytest.approx(0.5)
    assert network.identity(4)["grounds"] == features.GROUNDS
    assert "grounds" not in network.identity(3)


def test_colours_that_cannot_be_seen_do_not_count() -> None:
    images = icons(12)
    grey = np.where(images[..., 3:] > 0, images, [[9, 9, 9, 0]]).astype(np.uint8)
    ratios = distance_ratios(grey, images, np.arange(12))
    assert not ratios.distances.any()
    np.testing.assert_array_equal(texture(grey).grain, texture(images).grain)


def test_sealed_patches_are_those_that_training_sees(place: Path, tmp_path: Path) -> None:
    wanted = config.Data(source=str(place / "icons"), channels="rgba")
    about = seal(wanted, tmp_path / "icons.up", kind="patch", rate=0.5, key=bytes(32))
    assert about["channels"] == 4
    closed, known = sealed.read(tmp_path / "icons.up"), data.prepare(wanted)
    patches, positions = closed.batch(np.arange(len(closed.labels)))
    space = spaces.Pixels((8, 8), 4, 4)
    whole = space.encode(spaces.from_uint8(np.array(known.images)))  # [n, N, P]
    found = spaces.levels(patches)
    for i in range(5):
        same = masks.gather(whole, torch.from_numpy(positions[i : i + 1]).expand(len(whole), -1))
        assert bool((same == found[i]).flatten(1).all(1).any())


# --- a run -----------------------------------------------------------------------------------


def test_a_run_draws_pictures_with_alpha(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    card = json.loads(model_folder.find(run).joinpath("config.json").read_text())
    assert card["model"]["channels"] == 4
    assert "channels: rgba" in (run / "config.yaml").read_text()
    out = tmp_path / "out"
    assert main(["sample", str(run), "-n", "3", "--out", str(out)]) == 0
    drawn = model.load(run, device="cpu").sample(3)
    for file, expected in zip(sorted(out.glob("*.png")), drawn, strict=True):
        with Image.open(file) as image:
            assert image.mode == "RGBA"
            np.testing.assert_array_equal(np.asarray(image), expected)
    np.testing.assert_array_equal(alpha.straight(alpha.premultiplied(drawn)), drawn)
    with Image.open(sorted((run / "samples").glob("*.png"))[-1]) as grid:
        assert grid.mode == "RGB"
    assert "in colour with transparency" in (run / "report.html").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [r for r in records if r["kind"] == "scores"]
    checks = [r for r in records if r["kind"] == "check" and r["mask"] == "whole"]
    assert scores[-1]["copies"] is not None
    assert checks[-1]["wiener"] is not None
    health = [r["health"] for r in records if r["kind"] == "sample"]
    assert health[-1]["verdict"] == "noise"


def test_wavelets_of_four_channels(place: Path, tmp_path: Path) -> None:
    flags = ["--config", place / "recipe.yaml", "--data", place / "icons", "--channels", "rgba"]
    flags += ["--space.kind", "wavelets", "--space.patch", 2, "--train.check_every", -1]
    assert main(["train", *map(str, flags), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert model.load(tmp_path / "run", device="cpu").sample(2).shape == (2, 8, 8, 4)


def test_scores_are_over_two_grounds(place: Path, tmp_path: Path) -> None:
    how = {"extractor": "torchscript", "weights_file": place / "pooled.pt", "interval": False}
    found = evaluate(place / "run", **how)
    assert found is not None
    assert found["protocol"]["grounds"] == features.GROUNDS
    write(tmp_path / "others", icons(70, seed=1))
    other = evaluate(tmp_path / "others", str(place / "icons"), channels="rgba", **how)
    on_white = evaluate(tmp_path / "others", str(place / "icons"), **how)
    assert other is not None
    assert on_white is not None
    assert other["scores"]["train"]["frechet"] < found["scores"]["train"]["frechet"]
    assert "add --channels rgba" in " ".join(on_white["warnings"])
    assert "grounds" not in on_white["protocol"]


# --- what is said -----------------------------------------------------------------------------


def test_transparent_pictures_are_offered_rgba(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(place / "icons"), "--quiet"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "160 of 160 images have transparent pixels, which become white" in out
    assert f"underpaint train --data {place / 'icons'} --channels rgba" in out
    assert main(["prepare", str(place / "icons"), "--size", "16", "--quiet"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"underpaint train --data {place / 'icons'} --size 16 --channels rgba" in out
    mixed = write(tmp_path / "mixed", icons(20))
    (mixed / "020.png").write_bytes(png(icons(1)[0, ..., :3]))
    assert main(["prepare", str(mixed), "--channels", "rgba", "--quiet"]) == 0
    assert "1 of 21 images have no transparent pixels and are opaque" in capsys.readouterr().out
    assert main(["prepare", str(place / "opaque"), "--quiet"]) == 0
    assert "--channels" not in capsys.readouterr().out


def test_grey_pictures_are_offered_one_channel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = np.repeat(icons(70)[..., :1], 3, axis=3)  # as many scanners write them
    folder = write(tmp_path / "grey", grey)
    assert main(["prepare", str(folder), "--quiet"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "64 images, tried of 70, are grey; so that samples are grey, too" in out
    assert f"underpaint train --data {folder} --channels 1" in out
    assert main(["prepare", str(folder), "--channels", "1", "--quiet"]) == 0
    assert "--channels" not in capsys.readouterr().out
    grey[35, 3, 3, 0] ^= 1  # of one image of those that are tried
    assert main(["prepare", str(write(tmp_path / "one", grey)), "--quiet"]) == 0
    assert "--channels" not in capsys.readouterr().out


def test_a_plan_learns_transparency_where_most_pictures_have_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*flags: str) -> tuple[str, str]:
        out = tmp_path / "plan.yaml"
        given = ["plan", str(place / "icons"), "--size", "16", "--device", "h100", "--quiet"]
        assert main([*given, "--out", str(out), "--overwrite", *flags]) == 0
        return out.read_text(), capsys.readouterr().out

    written, said = plan()
    assert "  channels: rgba" in written
    assert "channels rgba: 160 of 160 images have transparent pixels" in said
    assert "channels rgba: 160 of 160" in " ".join(written.replace("#", "").split())
    written, said = plan("--channels", "3")
    assert "  channels: 3" in written
    assert "160 of 160 images have transparent pixels, which become white" in said


def test_wrong_use_of_transparency(place: Path, tmp_path: Path, wrong: Wrong) -> None:
    recipe, out = ["--config", place / "recipe.yaml"], ["--out", tmp_path / "run"]
    both = ["--data", place / "icons", *recipe, *out]
    assert "--channels: 4 is not one of 1, 3, rgba" in wrong("train", *both, "--channels", 4)
    assert "leave background out" in wrong(
        *("train", *both, "--channels", "rgba", "--data.background", "black")
    )
    line = wrong("train", *recipe, *out, "--data", place / "opaque", "--channels", "rgba")
    assert "none of its 80 images has a transparent pixel; give --channels 3" in line
    line = wrong("finetune", "--from", place / "run", "--data", place / "opaque", *out)
    assert "none of its 80 images has a transparent pixel" in line
    line = wrong("finetune", "--from", place / "run", *both)
    assert "its data.channels is rgba, the recipe's is 3; set --data.channels rgba" in line
    line = wrong("evaluate", place / "run", "--reference", place / "opaque")
    assert "opaque has a transparent pixel; give other images as --reference" in line
    assert "this model draws rgba" in wrong("evaluate", place / "run", "--channels", 3)
