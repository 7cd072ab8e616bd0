"""Both sides are whom the run recorded, seen as in training; of sealed images what was kept."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.privacy.test_shadows import RECIPE
from underpaint import config, model, model_folder
from underpaint.cli import main
from underpaint.core.masks import Mask, gather
from underpaint.privacy.membership import MembershipData, load, subsample
from underpaint.sealed.writer import seal
from underpaint.training import stages
from underpaint.training.batch import draw_batch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, sealed and not, and a recipe."""
    folder = tmp_path_factory.mktemp("sides")
    rng = np.random.default_rng(3)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "key").write_bytes(bytes(range(32)))
    data = config.Data(source=str(folder / "images.npz"), channels=1, held_out="24")
    seal(data, folder / "sealed.up", rate=0.5, kind="patch", key=bytes(range(32)), workers=1)
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(place / "cache"))


def trained(place: Path, name: str, *flags: object) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        own = ["--config", place / "recipe.yaml", "--channels", 1, "--out", place / name, "--quiet"]
        assert main(["pretrain", *map(str, own), *map(str, flags)]) == 0
    return place / name


@pytest.fixture(scope="module")
def closed(place: Path) -> Path:
    """Pre-trained on sealed images."""
    return trained(place, "closed", "--data", place / "sealed.up")


@pytest.fixture(scope="module")
def fixed(place: Path) -> Path:
    """Pre-trained on whole images under fixed masks, of which half are held out."""
    flags = ["--data", place / "images.npz", "--audit-split", 0.5]
    return trained(place, "fixed", *flags, "--stages.masked.fixed", "true")


def found(run: Path, *lists: str | None) -> tuple[model.Model, MembershipData]:
    loaded = model.load(run, device="cpu")
    members, others = lists or (None, None)
    return loaded, load(model_folder.find(run), loaded, members, others)


# --- fixed masks -----------------------------------------------------------------------------


def test_fixed_masks_are_those_of_training(fixed: Path) -> None:
    """What the network was shown of each image, the attacks show it again."""
    loaded, both = found(fixed)
    own, others = both.members, both.non_members
    masks, ensemble, seen = both.masks(loaded, own, others, 0)
    assert seen == "of each image the patches of its own fixed mask"
    assert ensemble[:2] == ("patch", 0.5)
    run = config.load(fixed / "config.yaml")
    (stage,) = stages.prepare_stages(run, lambda _: None)
    batch = draw_batch(stage, run, loaded, 0.5, 0, 30, 0)
    ids = stage.order.at(0, 30)  # one epoch: each of the 30 members once
    assert sorted(ids) == own.ids.tolist()
    assert masks[0] is not None
    assert masks[0].visible is not None
    assert batch.mask.visible is not None
    assert torch.equal(masks[0].visible[np.argsort(np.argsort(ids))], batch.mask.visible)
    assert masks[1] is not None
    assert len(masks[1].hidden) == len(others.ids) == 30


def test_fresh_masks_become_one_mask_for_all(place: Path) -> None:
    """No image may be told by its mask."""
    run = trained(place, "fresh", "--data", place / "images.npz", "--audit-split", 0.5)
    loaded, both = found(run)
    masks, _, seen = both.masks(loaded, both.members, both.non_members, 0)
    assert seen == "the same patches of every image"
    shown = {tuple(ids) for mask in masks for ids in mask.visible.tolist()}
    assert len(shown) == 1


def test_a_choice_of_a_side_is_a_function_of_the_seed(fixed: Path) -> None:
    _, both = found(fixed)
    one, again, other = (subsample(both.members, 12, seed).ids.tolist() for seed in (0, 0, 1))
    assert one == again == sorted(one)
    assert one != other
    assert set(one) <= set(both.members.ids)


# --- sealed images ---------------------------------------------------------------------------


def test_sealed_images_are_seen_as_they_were_kept(place: Path, closed: Path) -> None:
    loaded, both = found(closed)
    own, others = both.members, both.non_members
    assert not own.whole
    assert [len(own.ids), len(others.ids)] == [36, 24]
    assert not set(own.ids) & set(others.ids)
    masks, ensemble, _ = both.masks(loaded, own, others, 0)
    assert ensemble[:2] == ("patch", 0.5)
    with np.load(place / "images.npz") as arrays:
        images = arrays["images"]
    every = loaded.space.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    for side, mask in zip((own, others), masks, strict=True):
        assert isinstance(mask, Mask)
        patches = side.patches()
        shown = gather(patches, mask.visible)
        for i in range(len(patches)):
            same = (every[:, mask.visible[i]] - shown[i]).abs().amax((1, 2)) < 1e-6
            assert same.sum() == 1
            # as pixels, too: those that are shown, and black
            image = images[int(same.nonzero())]
            pixels = side.pixels(loaded)[i]
            assert set(np.unique(np.where(pixels == 0, 0, pixels ^ image))) == {0}
            assert (pixels == image).sum() >= 32  # 2 of 4 patches of 16 pixels


def test_a_sealed_run_is_audited_on_what_was_kept(
    place: Path, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Membership and the whole set; copies and completion need whole images, which is said."""
    flags = ["--attacks", "loss,masks", "--json", "--quiet", "--no-control"]
    assert main(["audit", str(closed), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["members"], result["non_members"]) == (24, 24)
    assert (result["parts"], result["patches"]) == (2, 4)
    assert result["copies"] is result["completion"] is None
    assert result["tests"] == 2 + 1
    assert "The images are sealed" in result["notes"][0]
    page = (closed / "audit" / "audit.html").read_text()
    assert "Copies and completion cannot be tried" in page
    assert "Does it draw copies?" not in page
    # a model that went on with other images is asked about the sealed ones by their file
    assert main(["audit", str(closed), *flags, "--members", str(place / "sealed.up")]) == 0
    assert json.loads(capsys.readouterr().out)["membership"] == result["membership"]


def test_a_sealed_run_is_audited_on_the_originals_if_they_are_given(
    place: Path, closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(place / "images.npz") as arrays:
        np.savez(tmp_path / "m.npz", images=arrays["images"][:30])
        np.savez(tmp_path / "o.npz", images=arrays["images"][30:])
    flags = ["--attacks", "loss", "--samples", "4", "--json", "--quiet", "--no-control"]
    flags += ["--members", str(tmp_path / "m.npz"), "--non-members", str(tmp_path / "o.npz")]
    assert main(["audit", str(closed), *flags, "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["members"], result["non_members"]) == (30, 30)
    assert result["parts"] == 2  # as much as the model has ever seen of an image
    assert result["copies"]["training_images"] == 30
    assert result["completion"]["images"] == [30, 30]


def test_wrong_use(
    place: Path, closed: Path, fixed: Path, wrong: Callable[..., str], tmp_path: Path
) -> None:
    file, images = place / "sealed.up", place / "images.npz"
    assert "was trained on sealed images" in wrong("audit", closed, "--members", images)
    assert "leave --non-members out" in wrong(
        "audit", fixed, "--members", images, "--non-members", file
    )
    assert "leave --non-members out" in wrong(
        "audit", fixed, "--members", file, "--non-members", images
    )
    shadow = wrong("audit", closed, "--against", "shadow")
    assert "trains on whole images, and these are sealed" in shadow
    other = config.Data(source=str(images), channels=1, held_out="24")
    seal(other, tmp_path / "fine.up", rate=0.5, patch=2, kind="patch", workers=1)
    assert "give the file that it was trained on" in wrong(
        "audit", fixed, "--members", tmp_path / "fine.up"
    )
    data = file.read_bytes()
    (tmp_path / "cut.up").write_bytes(data[:-40])
    assert "is truncated" in wrong("audit", fixed, "--members", tmp_path / "cut.up")
    (tmp_path / "new.up").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "has been changed" in wrong("audit", fixed, "--members", tmp_path / "new.up")


def test_networks_of_whole_images_cannot_be_asked_about_patches(
    place: Path, closed: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., str]
) -> None:
    """A U-Net computes on all patches whatever it is shown."""
    kind = type(model.load(closed, device="cpu").backbone)
    monkeypatch.setattr(kind, "saves", lambda self, visible, mask: False)
    line = wrong("audit", closed)
    assert "a network of kind dit computes on whole images" in line


def test_networks_of_coarse_tokens_cannot_be_asked_about_other_squares(
    place: Path,
    tmp_path: Path,
    wrong: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """2×2 patches a token, and a file of single patches."""
    flags = ["--space.patch", 2, "--network.kind", "hourglass", "--stages.masked.images", 32]
    run = trained(place, "coarse", "--data", place / "images.npz", *flags)
    capsys.readouterr()
    data = config.Data(source=str(place / "images.npz"), channels=1, held_out="24")
    seal(data, tmp_path / "patches.up", patch=2, rate=0.5, kind="patch", workers=1)
    line = wrong("audit", run, "--members", tmp_path / "patches.up")
    assert "not in squares of 2×2 patches, as a network of kind hourglass takes them" in line
