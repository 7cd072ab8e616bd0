"""Training on sealed data is training on the images under the same fixed masks, bit for bit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.runs import assert_same_run, metrics
from underpaint import config
from underpaint.cli import main
from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.core.spaces import Pixels
from underpaint.sealed import format as sealed
from underpaint.sealed.writer import seal
from underpaint.training import train

KEY = bytes(range(32))
Make = Callable[..., Path]
Wrong = Callable[..., str]


@pytest.fixture
def make(images: Path, tmp_path: Path) -> Make:
    """Seal the 60 images of 16×16."""

    def run(name: str = "sealed.up", held_out: str = "auto", **options: object) -> Path:
        data = config.Data(source=str(images), held_out=held_out)
        options = {"rate": 0.75, "key": KEY, "labels": True} | options
        seal(data, tmp_path / name, **options)
        return tmp_path / name

    return run


def in_sealed_order(path: Path, images: Path, out: Path) -> Path:
    """The images in the order of the sealed file, found by their patches."""
    with np.load(images) as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    every = Pixels((16, 16), 3, 4).encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    found, at = sealed.read(path).batch(np.arange(60))
    order = [
        int(np.flatnonzero((every[:, where] == patches).all((1, 2)))[0])
        for patches, where in zip(found, at, strict=True)
    ]
    assert sorted(order) == list(range(60))
    np.savez(out, images=pixels[order], labels=labels[order])
    return out


@pytest.mark.parametrize(
    ("kind", "count", "network"),
    [
        ("block", 100, "dit"),
        ("patch", 10, "dit"),
        ("crop", 10, "dit"),
        ("block", 5, "hourglass"),
        ("crop", 5, "hourglass"),
    ],
)
def test_losses_are_those_of_the_images_bit_for_bit(
    kind: str,
    count: int,
    network: str,
    make: Make,
    images: Path,
    recipe: config.Run,
    tmp_path: Path,
) -> None:
    recipe.network.kind = network
    path = make(kind=kind, held_out="none", multiple=2 if network == "hourglass" else 1)
    whole = in_sealed_order(path, images, tmp_path / "whole.npz")
    (tmp_path / "key").write_bytes(KEY)
    masked = dataclasses.replace(recipe.stages["masked"], images=8 * count, flip=False)
    loop = dataclasses.replace(recipe.train, log_every=8, sample_every=-1)
    fixed = dataclasses.replace(
        masked, mask=kind, rate=0.75, fixed=True, fixed_key=str(tmp_path / "key")
    )

    def losses(name: str, source: Path, stage: config.Stage) -> Path:
        data = config.Data(source=str(source), held_out="none" if source == whole else "auto")
        run = dataclasses.replace(recipe, data=data, stages={"masked": stage}, train=loop)
        return train(run, tmp_path / name, quiet=True)

    one, two = losses("sealed", path, masked), losses("images", whole, fixed)
    steps = [record["loss"] for record in metrics(one) if record["kind"] == "step"]
    assert len(steps) == count
    assert_same_run(one, two)
    fresh = dataclasses.replace(fixed, fixed=False, fixed_key="")
    other = [r["loss"] for r in metrics(losses("fresh", whole, fresh)) if r["kind"] == "step"]
    assert steps[0] != other[0]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (6, 2)])
@pytest.mark.parametrize("kind", sealed.KINDS)
def test_a_mask_is_restored_from_what_it_shows(kind: str, grid: tuple[int, int]) -> None:
    mask = masks.draw(MaskSpec(kind, 0.6), grid, 9, torch.Generator().manual_seed(0))
    restored = masks.from_visible(grid, mask.visible, kind)
    assert torch.equal(restored.hidden, mask.hidden)
    assert torch.equal(restored.visible, mask.visible)
    assert (restored.window is None) == (mask.window is None)
    if mask.window is not None:
        assert torch.equal(restored.window, mask.window)


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("uvit", "patch"),
        ("dit", "block"),
        ("maskdit", "block"),
        ("dit", "crop"),
        ("unet", "crop"),
        ("hourglass", "block"),
        ("hourglass", "crop"),
    ],
)
def test_every_network_that_can_takes_them_and_the_run_says_so(
    network: str, kind: str, make: Make, small: Path, tmp_path: Path
) -> None:
    path = make(kind=kind, rate=0.5, multiple=2 if network in ("unet", "hourglass") else 1)
    flags = ["--config", small, "--data", path, "--out", tmp_path / "run", "--quiet"]
    flags += ["--network.kind", network, "--train.check_every", 16]
    if network == "maskdit":
        flags += ["--network.options", '{"decoder_depth": 1, "decoder_width": 48}']
    if network == "unet":
        flags += ["--network.options", '{"multipliers": [1, 2]}']
    assert main(["pretrain", *map(str, flags)]) == 0
    records = metrics(tmp_path / "run")
    start = next(r for r in records if r["kind"] == "stage")
    V = sealed.read(path).about["visible"]
    assert (start["mask"], start["visible"]) == (kind, V)
    checks = [r for r in records if r["kind"] == "check"]
    assert checks
    assert {r["mask"] for r in checks} == {"stage"}
    assert checks[-1]["held_out"] is not None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The images are sealed" in page
    assert f"{V} patches of each" in page


def test_a_run_goes_on_and_whole_images_may_follow(
    make: Make, images: Path, recipe: config.Run, tmp_path: Path
) -> None:
    """Masked on sealed images, then whole public ones: one run."""
    stages = dict(recipe.stages)
    stages["whole"] = dataclasses.replace(
        stages["whole"], data=config.Data(source=str(images), limit=10)
    )
    data = config.Data(source=str(make()))
    run = dataclasses.replace(recipe, data=data, stages=stages)
    out = train(run, tmp_path / "run", quiet=True)
    kinds = [r["mask"] for r in metrics(out) if r["kind"] == "stage" and r["event"] == "start"]
    assert kinds == ["block", "none"]


# --- wrong use -----------------------------------------------------------------------------------


@pytest.fixture
def refused(wrong: Wrong, small: Path, tmp_path: Path) -> Wrong:
    def run(path: Path, *flags: object, verb: str = "pretrain") -> str:
        return wrong(verb, "--config", small, "--data", path, "--out", tmp_path / "run", *flags)

    return run


def test_what_sealed_data_cannot_do(make: Make, refused: Wrong, wrong: Wrong) -> None:
    path = make()
    assert "stages.whole: whole images are asked for" in refused(path, verb="train")
    assert "it holds visible patches and no whole image" in wrong("prepare", path)
    assert "noise.hidden_weight 0.1 needs the hidden patches" in refused(
        path, "--network.kind", "maskdit", "--noise.hidden_weight", 0.1
    )
    assert "add --space.patch 4" in refused(path, "--space.patch", 2)
    assert "set --space.kind pixels" in refused(path, "--space.kind", "wavelets")
    assert "cannot become 8×8" in refused(path, "--size", 8)
    assert "was decided at sealing" in refused(path, "--held-out", "none")


def test_a_network_that_takes_no_patches(make: Make, refused: Wrong) -> None:
    flags = ["--network.kind", "unet", "--network.options", '{"multipliers": [1, 2]}']
    assert "network.kind unet computes on whole images" in refused(make(), *flags)


def test_a_network_that_takes_other_squares(make: Make, refused: Wrong) -> None:
    """2×2 patches a coarsest token: single patches, other blocks and crops do not fit."""
    to_blocks = "seal them again with --kind block --block 2, or use uvit, dit or maskdit"
    for number, options in enumerate(({"kind": "patch"}, {"block": 1}, {"block": 3})):
        line = refused(make(f"{number}.up", **options), "--network.kind", "hourglass")
        assert "network.kind hourglass takes masks in squares of 2×2 patches" in line
        assert to_blocks in line
    crops = refused(make("crops.up", kind="crop"), "--network.kind", "hourglass")
    assert "takes crops in multiples of 2 patches" in crops
    assert "seal them again with --multiple 2" in crops


def test_a_sealed_file_that_changed(make: Make, refused: Wrong, wrong: Wrong) -> None:
    path = make()
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    assert "is truncated" in refused(path)
    assert "is truncated" in wrong("seal", "--verify", path)
    path.write_bytes(data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:])
    says = "has been changed: the checksum of patches of images 0 to 59"
    assert says in refused(path)
    assert says in wrong("seal", "--verify", path)


def test_sealing_wrongly(wrong: Wrong, images: Path, make: Make, tmp_path: Path) -> None:
    out = tmp_path / "new.up"
    assert "seal needs DATA and --out FILE" in wrong("seal", images)
    assert "exists" in wrong("seal", images, "--out", make())
    assert "give the hidden share" in wrong("seal", images, "--out", out, "--rate", 1)
    assert "hides nothing" in wrong("seal", images, "--out", out, "--rate", 0.01)
    assert "not divisible by patch 5" in wrong("seal", images, "--out", out, "--patch", 5)
    assert "give auto, none or a number" in wrong(
        "seal", images, "--out", out, "--held-out", images
    )
    assert "hold out fewer" in wrong("seal", images, "--out", out, "--held-out", 60)
    (tmp_path / "short").write_bytes(b"short")
    assert "16 or more" in wrong("seal", images, "--out", out, "--key", tmp_path / "short")
    assert "cannot be read" in wrong("seal", images, "--out", out, "--key", tmp_path / "none")
    assert "there is no such file" in wrong("seal", tmp_path / "nowhere", "--out", out)
    assert "writes none" in wrong("seal", images, "--verify", out)
    assert not out.exists()


def test_the_key_of_fixed_masks_without_them(wrong: Wrong, small: Path, images: Path) -> None:
    line = wrong("train", "--config", small, "--data", images, "--stages.masked.fixed_key", "key")
    assert "stages.masked.fixed_key is the key of fixed masks" in line


def test_fixed_masks_of_other_squares(
    wrong: Wrong, small: Path, images: Path, tmp_path: Path
) -> None:
    """Of single patches, for a network of coarse tokens of 2×2."""
    (tmp_path / "key").write_bytes(KEY)
    flags = ["--stages.masked.fixed", "true", "--stages.masked.fixed_key", tmp_path / "key"]
    flags += ["--network.kind", "hourglass", "--out", tmp_path / "run"]
    line = wrong("train", "--config", small, "--data", images, *flags)
    assert "masks of sealed data are no squares of 2×2 patches" in line


def test_seal_prints_what_verify_prints(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.up"
    flags = ["--patch", "4", "--rate", "0.75", "--json", "--quiet"]
    assert main(["seal", str(images), "--out", str(out), *flags]) == 0
    written = json.loads(capsys.readouterr().out)
    assert main(["seal", "--verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).items() <= written.items()
    assert main(["seal", "--verify", str(out)]) == 0
    assert "4 of 16 patches of 48 bytes" in capsys.readouterr().out
