"""Editing pictures with models whose answers are known, and with every space."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

import underpaint as up
from tests.heard import Heard
from tests.privacy.known import GRID, Known, Memoriser, Normal
from underpaint import config, model
from underpaint.core import alpha, spaces
from underpaint.editing import repainting, variation
from underpaint.errors import UserError
from underpaint.progress import following

SIZE = (6, 6)  # three by three patches of 2×2 grey pixels
LEFT = np.arange(6)[None, :] < 3  # of each row


def grey(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SIZE, 1), dtype=np.uint8)


def known(denoiser: Known) -> up.Model:
    """A model of that denoiser, for grey pictures of 6×6."""
    spec = config.ModelSpec(size=SIZE, channels=1, space=config.Space(patch=2))
    spec.sampling.clip = "none"
    found = model.Model(spec, denoiser, spaces.Pixels(SIZE, 1, 2))
    assert found.space.grid == GRID
    return found


def network(space: str = "pixels", channels: int = 3) -> up.Model:
    """An untrained network for pictures of 8×8."""
    spec = config.ModelSpec(size=(8, 8), channels=channels, space=config.Space(kind=space, patch=2))
    spec.network = config.Network(kind="dit", width=32, depth=1, heads=2, labels=False)
    spec.sampling = config.Sampling(steps=3, sampler="euler")
    torch.manual_seed(0)
    found = model.build(spec)
    for parameter in found.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found


# --- inpainting ------------------------------------------------------------------------------


def test_a_model_that_remembers_finds_what_was_erased() -> None:
    images = grey(12)
    remembers = known(Memoriser(spaces.to_patches(spaces.from_uint8(images), 2)))
    keep = np.broadcast_to(LEFT, SIZE)
    found = remembers.inpaint(images, keep, seed=3, resample=10, soft=0, steps=20)
    same = (np.abs(found.astype(int) - images) <= 1).all((1, 2, 3))
    assert same.mean() > 0.9


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("space", ["pixels", "wavelets"])
@pytest.mark.parametrize("soft", [0, 2])
def test_what_is_kept_stays_and_what_is_erased_is_not_read(
    space: str, channels: int, soft: int
) -> None:
    """Of transparent pictures the colours that nobody sees stay, too."""
    rng = np.random.default_rng(1)
    images, others = rng.integers(0, 256, (2, 3, 8, 8, channels), dtype=np.uint8)
    keep = rng.random((3, 8, 8)) < 0.6
    others = np.where(keep[..., None], images, others)
    painter = network(space, channels)
    found = painter.inpaint(images, keep, resample=2, soft=soft)
    assert (found[keep] == images[keep]).all()
    assert (found[~keep] != images[~keep]).mean() > 0.5
    np.testing.assert_array_equal(painter.inpaint(others, keep, resample=2, soft=soft), found)
    again = alpha.straight(alpha.premultiplied(found))
    np.testing.assert_array_equal(again[~keep], found[~keep])


def test_masks_of_patches_are_masks_of_their_pixels() -> None:
    images, patches = grey(2), np.eye(3, dtype=bool)
    pixels = patches.repeat(2, 0).repeat(2, 1)
    painter = known(Normal())
    expected = painter.inpaint(images, pixels)
    np.testing.assert_array_equal(painter.inpaint(images, patches), expected)
    for_each = np.stack([pixels, pixels])
    np.testing.assert_array_equal(painter.inpaint(images, for_each), expected)


def test_a_seam_is_hidden_in_the_erased_part_alone() -> None:
    """A model that is off by 0.3 everywhere: less of it near the edge, linear in the distance."""
    keep = np.zeros((1, 5, 12), np.bool_)
    keep[:, :, :4] = True
    difference = torch.where(torch.from_numpy(keep), 0.3, torch.nan)[:, None]
    added = repainting._seam(difference, keep, 3)[0, 0]
    expected = [0.0] * 4 + [0.3 * (1 - d / 4) for d in (1, 2, 3)] + [0.0] * 5
    torch.testing.assert_close(added, torch.tensor(expected).expand(5, 12))


def test_erased_pixels_are_filled_by_the_nearest() -> None:
    images = torch.arange(12.0).view(1, 1, 2, 6)
    keep = np.zeros((1, 2, 6), np.bool_)
    keep[0, 0, 1] = keep[0, 1, 5] = True
    filled = repainting._nearest(images.where(torch.from_numpy(keep), torch.nan), keep)
    assert filled[0, 0].tolist() == [[1, 1, 1, 1, 11, 11], [1, 1, 1, 11, 11, 11]]


def test_progress_is_of_steps() -> None:
    with following(heard := Heard()):
        known(Normal()).inpaint(
            grey(5), np.broadcast_to(LEFT, SIZE), batch=2, steps=4, grid="log-snr", resample=3
        )
    _, *steps = [(done, total) for what, done, total in heard.said if what == "sampling"]
    total = int(steps[-1][1])
    assert steps == [(i + 1, total) for i in range(total)]
    assert total % 3 == 0  # batches
    assert total // 3 > 4


# --- wider pictures, and sealed ones ---------------------------------------------------------


@pytest.mark.parametrize(("size", "margins"), [((6, 6), (0, 5, 0, 0)), ((4, 5), (1, 1, 1, 0))])
def test_wider_pictures_hold_the_picture(
    size: tuple[int, int], margins: tuple[int, int, int, int]
) -> None:
    top, right, bottom, left = margins
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 1), dtype=np.uint8)
    edges = dict(zip(("top", "right", "bottom", "left"), margins, strict=True))
    found = known(Normal()).outpaint(images, **edges)
    H, W = size
    assert found.shape == (3, H + top + bottom, W + left + right, 1)
    np.testing.assert_array_equal(found[:, top : top + H, left : left + W], images)
    beyond = np.ones(found.shape, bool)
    beyond[:, top : top + H, left : left + W] = False
    assert found[beyond].std() > 30


@pytest.mark.parametrize("place", [(0, 0), (3, 8), (10, 4)])
def test_windows_fill_the_canvas_from_what_is_known(place: tuple[int, int]) -> None:
    canvas, size = np.zeros((16, 20), np.bool_), (6, 8)
    canvas[place[0] : place[0] + 6, place[1] : place[1] + 8] = True
    order = repainting._windows(canvas, size)
    for y, x in order:
        window = canvas[y : y + 6, x : x + 8]
        assert window.shape == size
        assert 0 < window.sum() < 48  # each continues something, and each draws something
        window[:] = True
    assert canvas.all()


def test_sealed_patches_are_kept_and_the_rest_is_drawn() -> None:
    images = grey(2)
    patches = np.stack([spaces.to_patches(torch.from_numpy(images[..., 0])[:, None].float(), 2)])[0]
    positions = np.array([[0, 4, 8], [1, 2, 3]])
    lines = np.arange(2)[:, None]
    shown = np.zeros((2, 9), np.bool_)
    shown[lines, positions] = True
    painter = known(Normal())
    found = painter.restore(patches[lines, positions].astype(np.uint8), positions, seed=4)
    np.testing.assert_array_equal(found, painter.inpaint(images, shown.reshape(2, 3, 3), seed=4))


# --- variations ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "ancestral"])
def test_variations_go_from_the_picture_to_a_sample(sampler: str) -> None:
    images, painter = grey(40), known(Normal())
    near = painter.vary(images, 1e-3, sampler=sampler)
    assert np.abs(near.astype(int) - images).max() <= 1
    far = painter.vary(images, 1.0, seed=7, sampler=sampler)
    np.testing.assert_array_equal(far, painter.sample(40, seed=7, sampler=sampler))
    alike = [
        np.corrcoef(painter.vary(images, strength, sampler=sampler).ravel(), images.ravel())[0, 1]
        for strength in (0.2, 0.5, 0.7, 1.0)
    ]
    assert alike == sorted(alike, reverse=True)
    assert abs(alike[-1]) < 0.1


def test_strength_is_the_share_of_the_steps() -> None:
    levels = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    assert variation._from(levels, 1.0).tolist() == [8, 4, 2, 1, 0]
    assert variation._from(levels, 0.5).tolist() == [2, 1, 0]
    between = variation._from(levels, 0.625).tolist()
    assert between == pytest.approx([math.sqrt(8), 2, 1, 0])
    assert variation._from(levels, 0.125).tolist() == [0.5, 0]


# --- interpolation ---------------------------------------------------------------------------


def test_the_sphere_is_not_left() -> None:
    a, b = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = b / b.norm() * a.norm()
    points = [variation.slerp(a, b, t / 10) for t in range(11)]
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)
    for point in points:
        assert float(point.norm()) == pytest.approx(float(a.norm()))
    steps = [float((q - p).norm()) for p, q in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 10)
    assert float(variation.slerp(a, 3 * b, 0.5).norm()) == pytest.approx(2 * float(a.norm()))
    torch.testing.assert_close(variation.slerp(a, a, 0.3), a)


def test_between_two_seeds() -> None:
    painter = known(Normal())
    found = painter.interpolate(3, 8, 5, batch=2)
    np.testing.assert_array_equal(found[[0]], painter.sample(1, seed=3))
    np.testing.assert_array_equal(found[[-1]], painter.sample(1, seed=8))
    first = np.abs(found.astype(float) - found[:1]).mean((1, 2, 3))
    assert (np.diff(first) > 0).all()


# --- all of them -----------------------------------------------------------------------------

EDITS: dict[str, Callable[..., np.ndarray]] = {
    "inpaint": lambda m, images, **how: m.inpaint(images, np.broadcast_to(LEFT, SIZE), **how),
    "outpaint": lambda m, images, **how: m.outpaint(images, left=2, bottom=4, **how),
    "vary": lambda m, images, **how: m.vary(images, 0.6, **how),
    "restore": lambda m, images, **how: m.restore(
        images.reshape(-1, 9, 4)[:, :5], np.arange(5)[None].repeat(len(images), 0), **how
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_picture_depends_on_its_seed_and_not_on_the_batch(name: str) -> None:
    images, painter, edit = grey(5), known(Normal()), EDITS[name]
    how = {"sampler": "ancestral", "steps": 5}
    found = edit(painter, images, seed=10, **how)
    np.testing.assert_array_equal(edit(painter, images, seed=10, batch=2, **how), found)
    np.testing.assert_array_equal(edit(painter, images[3:4], seed=13, **how), found[3:4])
    assert (edit(painter, images, seed=11, **how) != found).any()


def test_labels_and_guidance_reach_the_network(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = up.load(trained, device="cpu")
    asked: list[list[int]] = []
    denoise = painter.denoiser.denoise

    def heard(x, sigma, labels=None, mask=None):
        asked.append(labels.tolist())
        return denoise(x, sigma, labels, mask)

    monkeypatch.setattr(painter.denoiser, "denoise", heard)
    images = np.zeros((3, 8, 8, 3), np.uint8)
    painter.inpaint(images, np.eye(8, dtype=bool), labels=["light", "dark"], guidance=2, batch=2)
    assert asked[0] == [-1, -1, 1, 0]
    assert asked[-1] == [-1, 1]
    painter.vary(images, 0.5)
    assert asked[-1] == [-1, -1, -1]
    with pytest.raises(UserError, match="label 'ligt' is unknown"):
        painter.vary(images, 0.5, labels=["ligt"])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.inpaint(grey(1)[:, :5], LEFT), "images of 5×6 pixels were given; this model"),
        (lambda m: m.inpaint(grey(1)[..., 0], LEFT), r"uint8 \[1, 6, 6\] were given; this model"),
        (lambda m: m.inpaint(grey(1) / 255, LEFT), r"images float64 .* takes uint8 \[n, 6, 6, 1\]"),
        (lambda m: m.vary(grey(2).repeat(3, 3), 0.5), r"takes uint8 \[n, 6, 6, 1\]"),
        (lambda m: m.inpaint(grey(1), np.ones(SIZE, bool)), "image 0 keeps everything"),
        (lambda m: m.inpaint(grey(1), np.zeros(SIZE, bool)), "image 0 keeps nothing"),
        (lambda m: m.inpaint(grey(1), np.ones((4, 4), bool)), r"of pixels \[6, 6\] or patches"),
        (lambda m: m.inpaint(grey(1), np.full(SIZE, 255)), "expected booleans"),
        (lambda m: m.inpaint(grey(3), np.ones((2, 6, 6), bool)), "given for 3 images"),
        (lambda m: m.inpaint(grey(1), np.eye(6, dtype=bool), resample=0), "resample 0: give at"),
        (lambda m: m.inpaint(grey(1), np.eye(6, dtype=bool), sampler="dpm++"), "cannot go back"),
        (lambda m: m.outpaint(grey(1)), "give at least one edge some pixels"),
        (lambda m: m.outpaint(grey(1), left=-2, right=4), "none less than 0"),
        (lambda m: m.outpaint(grey(1)[:, :3], left=4), "outpaint to 3×10 pixels: this model draws"),
        (lambda m: m.vary(grey(1), 0.0), r"strength 0: give a number above 0"),
        (lambda m: m.vary(grey(1), 1.2), "strength 1.2: give"),
        (lambda m: m.interpolate(0, 1, 1), "1 images to interpolate"),
        (lambda m: m.interpolate(0, 1, sampler="ancestral"), "adds noise of its own"),
        (lambda m: m.restore(np.zeros((1, 2, 5), np.uint8), np.zeros((1, 2), int)), "are not of"),
        (lambda m: m.restore(np.zeros((1, 2, 4), np.uint8), np.array([[3, 9]])), "from 3 to 9"),
        (lambda m: m.restore(np.zeros((1, 2, 4), np.uint8), np.zeros((1, 3), int)), "positions"),
        (lambda m: m.vary(grey(1), 0.5, seed=-1), "seed -1"),
        (lambda m: m.interpolate(-1, 1), "seed -1"),
    ],
)
def test_wrong_use(edit: Callable[[up.Model], np.ndarray], said: str) -> None:
    with pytest.raises(UserError, match=said):
        edit(known(Normal()))
