"""The latent space from end to end, with small autoencoders of random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from tests import systems
from tests.heard import Heard
from underpaint import config, data, model, model_folder, vae
from underpaint.core import spaces
from underpaint.data import cache, index, latents
from underpaint.errors import UserError
from underpaint.evaluation.validation import OverfitCheck
from underpaint.progress import following
from underpaint.training import train

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderKL: 1/2 of the side, 4 channels."""
    return systems.save_autoencoder(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("tiny")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
        scaling_factor=1.5,
    ).save_pretrained(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    return path


def encoded(images: Path, folder: Path) -> data.Dataset:
    dataset = data.prepare(config.Data(source=str(images)))
    return latents.prepare(dataset, vae.read(folder, 3))


def test_the_cache_holds_the_moments_of_both_sides(images: Path, folder: Path) -> None:
    dataset = encoded(images, folder)
    assert dataset.latents is not None
    moments = dataset.latents.moments
    assert (moments.shape, moments.dtype) == ((40, 2, 2, 4, 8, 8), np.float16)
    reference = AutoencoderKL.from_pretrained(folder).eval()
    planes = spaces.from_uint8(dataset.batch(np.array([3, 25])))
    for side, images_ in enumerate((planes, planes.flip(3))):
        with torch.no_grad():
            law = reference.encode(images_).latent_dist
        for i, expected in enumerate((law.mean, law.std)):
            found = torch.from_numpy(moments[[3, 25], side, i].astype(np.float32))
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def cut(entry: Path) -> None:
    with (entry / "moments.bin").open("r+b") as file:
        file.truncate(100)


def flipped(entry: Path) -> None:
    path = entry / "moments.bin"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def rewritten(entry: Path, sha: np.ndarray | None = None, **about: Any) -> None:
    """Another index, with a checksum of its contents."""
    arrays, known = index.read(entry / cache.INDEX)
    sums = np.array(arrays["sha"]) if sha is None else sha
    index.write(entry / cache.INDEX, {"sha": sums}, known | about)


def turned(entry: Path) -> None:
    n, sides, *rest = index.read(entry / cache.INDEX).about["shape"]
    rewritten(entry, shape=[sides, n, *rest])


def nested(entry: Path) -> None:
    text = b"[" * 200_000
    (entry / cache.INDEX).write_bytes(len(text).to_bytes(8, "little") + text)


def other_sums(entry: Path) -> None:
    rewritten(entry, sha=np.zeros((40, 32), np.uint8))


def no_sums(entry: Path) -> None:
    index.write(entry / cache.INDEX, {}, index.read(entry / cache.INDEX).about)


@pytest.mark.parametrize("damage", [cut, flipped, turned, nested, other_sums, no_sums])
def test_damaged_latents_are_made_anew(
    images: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    before = encoded(images, folder)
    assert before.latents is not None
    expected, entry = np.array(before.latents.moments), Path(before.report["latents_cache"])
    damage(entry)
    after = encoded(images, folder).latents
    assert after is not None
    assert np.array_equal(after.moments, expected)
    made = entry.stat().st_ino
    encoded(images, folder)
    assert entry.stat().st_ino == made  # and not a second time


def test_an_autoencoder_that_settings_name_is_said(
    images: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(recipe(images, folder), tmp_path / "run", quiet=True)
    caplog.clear()
    model_folder.warn_once.cache_clear()  # it is said once a process
    model.load(run, device="cpu").sample(2)
    assert [r.message for r in caplog.records if str(folder) in r.message] == [
        f"{folder}: the autoencoder that the model's settings name is read"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"_class_name": "AutoencoderKL", "in_channels": 1e999, "latent_channels": 4, '
        '"block_out_channels": [8, 8]}',
        '{"_class_name": "AutoencoderKL", "in_channels": 3, "latent_channels": 4, '
        '"block_out_channels": 5}',
        '{"_class_name": ["AutoencoderKL"]}',
        "[]",
    ],
)
def test_an_autoencoder_that_nobody_trained(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not the folder of an AutoencoderKL"):
        vae.read(tmp_path, 3)


def test_latents_are_drawn_anew_and_scaled_by_the_config(images: Path, folder: Path) -> None:
    own = encoded(images, folder).latents
    assert own is not None
    ids = np.zeros(4000, np.int64)
    drawn = own.draw(ids, np.random.default_rng(0), flip=False)
    mean, std = own.moments[0, 0].astype(np.float64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), 0.5 * (mean - 0.25), atol=0.1 * std.max())
    np.testing.assert_allclose(drawn.std(0), 0.5 * std, rtol=0.1)
    np.testing.assert_allclose(own.means(ids[:1])[0], 0.5 * (mean - 0.25), rtol=1e-5, atol=1e-6)
    again = own.draw(ids, np.random.default_rng(0), flip=False)
    assert np.array_equal(drawn, again)


def test_half_of_the_latents_are_mirrored(images: Path, tiny: Path) -> None:
    """A tiny autoencoder has no spread, so a drawn latent is one of two."""
    own = encoded(images, tiny).latents
    assert own is not None
    assert not own.moments[:, :, 1].any()
    drawn = own.draw(np.zeros(400, np.int64), np.random.default_rng(0), flip=True)
    straight, mirrored = 1.5 * own.moments[0, :, 0].astype(np.float32)
    is_mirrored = np.array([np.allclose(z, mirrored) for z in drawn])
    assert 150 < is_mirrored.sum() < 250
    assert all(np.allclose(z, straight) for z in drawn[~is_mirrored])


def test_latents_are_computed_once(
    images: Path, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data.prepare(config.Data(source=str(images)))
    encoder = vae.read(folder, 3)
    with following(heard := Heard()):
        first = latents.prepare(dataset, encoder, force=True)
    assert heard.said[-1] == ("encoding images", 40, 40)
    monkeypatch.setattr(vae.VAE, "module", property(lambda self: pytest.fail("it was read again")))
    second = latents.prepare(dataset, vae.read(folder, 3))
    assert first.latents is not None
    assert second.latents is not None
    assert np.array_equal(first.latents.moments, second.latents.moments)
    assert second.key == first.key != dataset.key
    assert vae.read(tiny, 3).digest != encoder.digest


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_decoding_undoes_the_scale(kind: str, folder: Path, tiny: Path) -> None:
    path = folder if kind == "kl" else tiny
    cls = AutoencoderKL if kind == "kl" else AutoencoderTiny
    raw = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = cls.from_pretrained(path).eval().decode(raw).sample
    own = vae.read(path, 3)
    torch.testing.assert_close(own.decode(own.scale * (raw - own.shift)), expected)


def recipe(images: Path, folder: Path | str) -> config.Run:
    return config.from_dict(
        config.Run,
        {
            "data": {"source": str(images), "held_out": "8"},
            "space": {"kind": "latents", "patch": 2, "factor": 2, "vae": str(folder)},
            "network": {"width": 16, "depth": 3, "heads": 2},
            "stages": {
                "masked": {"images": 16, "mask": "patch", "rate": 0.5, "batch": 8, "flip": True},
                "whole": {"images": 16, "batch": 8},
            },
            "train": {"threads": 1},
            "sampling": {"count": 4, "steps": 2, "sampler": "euler", "clip": "none"},
        },
        "test: ",
    )


def test_a_run_in_latents_trains_checks_and_samples(
    images: Path, folder: Path, tmp_path: Path
) -> None:
    run = train(recipe(images, folder), tmp_path / "run", make_check=OverfitCheck.of, quiet=True)
    assert list((run / "samples").glob("*.png"))
    trained = model.load(run, device="cpu")
    assert trained.space.grid == (4, 4)
    assert trained.space.patch_dim == 16
    samples = trained.sample(2, seed=1)
    assert (samples.shape, samples.dtype) == ((2, 16, 16, 3), np.uint8)
    x0 = torch.randn(1, 16, 16)
    expected = vae.read(folder, 3).decode(trained.space.decode(x0))
    assert torch.equal(trained.images(x0), expected)
    with pytest.raises(UserError, match="clip static: latents are not bounded"):
        trained.sample(1, clip="static")


def test_images_of_a_pixel_model_are_its_patches(tmp_path: Path) -> None:
    own = model.build(config.ModelSpec(network=config.Network(width=16, depth=1, heads=1)))
    x0 = torch.randn(1, 64, 48)
    assert torch.equal(own.images(x0), own.space.decode(x0))


def test_a_latent_model_denoises_latents(folder: Path) -> None:
    """Noisy z [B, c, H/f, W/f] in, the expected z out: as the network has it in its patches."""
    torch.manual_seed(0)
    own = model.build(systems.spec("uvit", "latents", "edm", folder))
    z = torch.randn(2, 4, 8, 8)
    x0 = own.denoise(z, 0.5, ["a", "b"])
    assert x0.shape == z.shape
    with torch.no_grad():
        expected = own.denoiser.denoise(own.space.encode(z), 0.5, torch.tensor([0, 1]))
    assert torch.equal(own.space.encode(x0), expected)
    with pytest.raises(UserError, match=r"latents of 3×16×16 were given.*takes latents of 4×8×8"):
        own.denoise(torch.randn(1, 3, 16, 16), 0.5)
    pixels = model.build(systems.spec("uvit", "wavelets", "edm"))
    with pytest.raises(UserError, match=r"images of 4×8×8 were given.*takes images of 3×16×16"):
        pixels.denoise(z, 0.5)


def test_an_autoencoder_that_has_moved(
    images: Path,
    folder: Path,
    trained: Path,
    tmp_path: Path,
    wrong: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from underpaint.cli import main

    before, after = tmp_path / "vae", tmp_path / "elsewhere"
    shutil.copytree(folder, before)
    wish = recipe(images, before)
    run = train(wish, tmp_path / "run", quiet=True)
    drawn = model.load(run, device="cpu").sample(2)
    before.rename(after)
    out = tmp_path / "x.npz"
    line = wrong("sample", run, "--out", out)
    assert f"{before}: the autoencoder that this model was trained with is not there" in line
    assert "add --vae and the folder where it is now" in line
    assert main(["sample", str(run), "-n", "2", "--out", str(out), "--vae", str(after)]) == 0
    assert np.array_equal(np.load(out)["images"], drawn)
    shown = capsys.readouterr()
    assert shown.out == f"{out}\n"
    assert "Cannot" not in shown.err  # diffusers' advice to install something else
    for verb in ("sample", "audit", "evaluate"):
        assert "is not the folder of an Auto" in wrong(verb, run, "--vae", images)
        if verb != "sample":
            assert "add --vae and the folder" in wrong(verb, run)
    line = wrong("sample", run, "--vae", before)
    assert "there is no such folder; give --vae the folder where it is" in line
    assert "this model works in pixels; leave --vae out" in wrong("sample", trained, "--vae", after)
    # a run goes on by its own recipe
    line = wrong("train", "--resume", "--out", run)
    assert f"write where it is now as space.vae into {run / 'config.yaml'}" in line
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(before), str(after)))
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0


# --- wrong use


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"vae": ""}, "space.kind latents needs an autoencoder; give --space.vae"),
        ({"vae": "nowhere"}, "nowhere: there is no such folder; give --space.vae the folder"),
        ({"vae": str(Path(__file__).parent)}, "tests: is not the folder of an AutoencoderKL"),
        ({"latent_channels": 8}, "its latent_channels is 4, space.latent_channels is 8"),
        ({"factor": 4}, "its factor is 2, space.factor is 4"),
    ],
)
def test_an_autoencoder_that_does_not_fit(
    images: Path, folder: Path, tmp_path: Path, space: dict[str, object], words: str
) -> None:
    run = recipe(images, folder)
    run.space = config.from_dict(config.Space, space, "", run.space)
    with pytest.raises(UserError, match=words):
        train(run, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_other_channels(folder: Path) -> None:
    with pytest.raises(UserError, match="takes images of 3 channels, these have 4"):
        vae.read(folder, 4)
    with pytest.raises(UserError, match="takes images of 3 channels, these have 1"):
        vae.read(folder, 1)


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 300 if "model" in file.name else None]
        )
    with pytest.raises(UserError, match="AutoencoderKL cannot be read") as raised:
        vae.read(tmp_path, 3).moments(torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stages.masked.shift", "2"], "cannot be shifted|not shifted"),
        (["--sampling.clip", "static"], "clip static"),
        (["--data.size", "18"], "18×18 is not divisible by space.patch 2 · space.factor 2"),
    ],
)
def test_settings_that_do_not_go_with_latents(
    images: Path, folder: Path, flags: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        config.check(config.apply_flags(recipe(images, folder), flags))


def test_prepare_computes_latents(
    images: Path, folder: Path, wrong: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    from underpaint.cli import main

    assert main(["prepare", str(images), "--latents", str(folder), "--quiet"]) == 0
    assert "4 × 8 × 8" in capsys.readouterr().out
    assert "is not the folder" in wrong("prepare", images, "--latents", images)


def test_latents_are_repainted_where_none_of_their_pixels_is_kept(
    images: Path, folder: Path
) -> None:
    """Latents of 2×2 pixels: kept pixels stay, and the autoencoder sees nothing that is erased."""
    spec = config.ModelSpec(size=(16, 16), space=config.Space(kind="latents", patch=2, factor=2))
    spec.space.vae = str(folder)
    spec.network = config.Network(kind="dit", width=32, depth=1, heads=2, labels=False)
    spec.sampling = config.Sampling(steps=3, sampler="euler", clip="none")
    painter = model.build(spec)
    pictures = np.load(images)[:2]
    keep = np.ones((16, 16), np.bool_)
    keep[3:11, 5:12] = False  # not on the grid of latents
    found = painter.inpaint(pictures, keep, resample=2)
    assert (found[:, keep] == pictures[:, keep]).all()
    others = np.where(keep[..., None], pictures, 255 - pictures)
    np.testing.assert_array_equal(painter.inpaint(others, keep, resample=2), found)
    assert (painter.inpaint(pictures, keep, resample=2, seed=1)[:, ~keep] != found[:, ~keep]).any()
    assert painter.vary(pictures, 0.5).shape == pictures.shape
    single = np.zeros((16, 16), np.bool_)
    single[4, 4] = True
    with pytest.raises(UserError, match="too little is kept: of 2×2 pixels"):
        painter.inpaint(pictures, single)
