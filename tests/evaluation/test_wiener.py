"""The Wiener filter against closed forms, and the scale it makes of the overfit check."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import nn

from tests.evaluation.test_early_stopping import FALLING, PATIENCE, checks
from tests.report.synthetic import write_images, write_run
from underpaint import report
from underpaint.core import schedules, spaces
from underpaint.core.masks import MaskSpec
from underpaint.evaluation import wiener
from underpaint.evaluation.early_stopping import judge
from underpaint.evaluation.validation import OverfitCheck
from underpaint.evaluation.verdict import GOOD, answers, verdict
from underpaint.evaluation.wiener import Wiener
from underpaint.sealed.training_set import SealedExamples
from underpaint.training.training_set import Array

torch.set_num_threads(1)
FLOW = schedules.build("flow", time="uniform")
SIGMAS = [math.exp(-(-6 + 1.5 * i + 0.75) / 2) for i in range(8)]  # the middles of the bins
COLOURS = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]


def power(channels: int, height: int, width: int) -> np.ndarray:
    """Falling with frequency, as of natural images; another strength for each colour."""
    radius = np.hypot(np.arange(height)[:, None], np.arange(width))
    return np.array([4.0, 1.0, 0.25])[:channels, None, None] / (1 + radius) ** 2


def gaussian(n: int, size: tuple[int, int], channels: int, seed: int) -> np.ndarray:
    """Images [n, C, H, W] with that spectrum, colours turned by COLOURS, and a mean that slopes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, channels, *size)) * np.sqrt(power(channels, *size))
    x = idctn(z, axes=(2, 3), norm="ortho")
    if channels == 3:
        x = np.einsum("ck,nkhw->nchw", COLOURS, x)
    return (x + np.linspace(-0.5, 0.5, size[1])).astype(np.float32)


def space_of(size: tuple[int, int], channels: int, patch: int = 2) -> spaces.Space:
    """A space whose planes are any numbers: that of latents."""
    return spaces.Latents((8 * size[0], 8 * size[1]), 3, patch, 8, channels)


def errors(x0: np.ndarray, found: Wiener, sigma: float) -> float:
    noise = np.random.default_rng(9).normal(size=x0.shape).astype(np.float32)
    levels = np.full(len(x0), sigma, np.float32)
    return float(((found.denoise(x0 + sigma * noise, levels) - x0) ** 2).mean())


# --- the filter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 3), ((8, 12), 3), ((6, 16), 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_gaussian_images_reach_the_closed_form_and_no_other_spectrum_does(
    size: tuple[int, int], channels: int, sigma: float
) -> None:
    found = Wiener.fit(iter(np.split(gaussian(4000, size, channels, 0), 4)))
    unseen = gaussian(2000, size, channels, 1)
    true = power(channels, *size)
    expected = (true * sigma**2 / (true + sigma**2)).mean()
    got = errors(unseen, found, sigma)
    # 2,000 · 64 squares or more: chance is 1 % at three standard errors
    assert got == pytest.approx(expected, rel=0.02)
    flat = np.full_like(found.power, found.power.mean())
    for other in (0.3 * found.power, 3 * found.power, flat, found.power[:, ::-1]):
        assert got < errors(unseen, found._replace(power=other), sigma)
    assert got < errors(unseen, found._replace(mean=0 * found.mean), sigma)
    if channels == 3:
        assert got < errors(unseen, found._replace(colours=np.eye(3)), sigma)


def test_the_spectrum_is_recovered() -> None:
    found = Wiener.fit(iter(np.split(gaussian(8000, (8, 12), 3, 0), 5)))
    # ascending eigenvalues; the spread of a variance of 8,000 numbers is 1.6 %
    assert found.power[::-1] == pytest.approx(power(3, 8, 12), rel=0.08)
    turned = np.abs(found.colours[:, ::-1].T @ COLOURS)
    assert turned == pytest.approx(np.eye(3), abs=0.03)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (6, 9)])
def test_the_transform_is_scipys(size: tuple[int, int]) -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, *size))
    z = wiener.dct(x)
    np.testing.assert_allclose(z, dctn(x, axes=(2, 3), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(wiener.dct(z, inverse=True), x, atol=1e-12)
    assert wiener.dct(x.astype(np.float32)).dtype == np.float32


def test_it_is_the_posterior_mean_of_a_diagonal_gaussian() -> None:
    """E[x0 | x] = μ + Σ(Σ + σ²)⁻¹(x − μ) with the covariance written out as a matrix."""
    rng = np.random.default_rng(0)
    variances, mean = power(1, 4, 6), rng.normal(size=(1, 4, 6))
    found = Wiener(dctn(mean, axes=(1, 2), norm="ortho"), variances, np.eye(1))
    U = dctn(np.eye(24).reshape(24, 4, 6), axes=(1, 2), norm="ortho").reshape(24, 24).T
    S, x, sigma = U.T @ np.diag(variances.ravel()) @ U, rng.normal(size=(5, 1, 4, 6)), 0.7
    gain = S @ np.linalg.inv(S + sigma**2 * np.eye(24))
    expected = mean.ravel() + (x.reshape(5, 24) - mean.ravel()) @ gain.T
    assert found.denoise(x, np.full(5, sigma)).reshape(5, 24) == pytest.approx(expected)


def test_equal_images_are_known() -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
    found = Wiener.fit([np.repeat(image, 5, 0)])
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert found.denoise(x, np.ones(2, np.float32)) == pytest.approx(
        np.repeat(image, 2, 0), abs=1e-3
    )


# --- in patches ----------------------------------------------------------------------------------


def test_pixels_and_wavelets_have_the_same_filter_of_whole_images() -> None:
    """Coefficients are pixels turned and halved: the noise is twice as loud in pixels."""
    images = np.clip(127.5 * (1 + 0.4 * gaussian(300, (16, 8), 3, 0)), 0, 255).astype(np.uint8)
    images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    pixels = spaces.build("pixels", (16, 8), 3, patch=4)
    coefficients = spaces.build("wavelets", (16, 8), 3, patch=2)
    x = torch.randn(5, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for space, sigma in ((pixels, 0.6), (coefficients, 0.3)):
        denoise = wiener.denoiser(Array(images, space), None, space, torch.Generator())
        found.append(space.decode(denoise(space.encode(x), torch.full((5,), sigma))))
    assert found[0].numpy() == pytest.approx(found[1].numpy(), rel=1e-4, abs=1e-4)


def test_at_a_mask_each_visible_patch_is_filtered_by_itself() -> None:
    """Patches of their own spectrum, whatever stands beside them: the closed form of one patch."""
    tiles = gaussian(16 * 600, (4, 4), 3, 0).reshape(600, 4, 4, 3, 4, 4)
    images = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(600, 3, 16, 16)
    space, spec = space_of((16, 16), 3, patch=4), MaskSpec("patch", 0.75)
    check = OverfitCheck(Array(images[:400], space), Array(images[400:], space), space, FLOW, 0)
    true = power(3, 4, 4)
    expected = [(true * s**2 / (true + s**2)).mean() for s in SIGMAS]
    # 200 · 4 patches: their power is known to some per cent
    assert check._wiener(spec) == pytest.approx(expected, rel=0.08)
    whole = check._wiener(None)
    assert whole is not None
    assert check._wiener(spec) != whole


def test_sealed_data_have_a_filter_of_their_patches() -> None:
    rng = np.random.default_rng(0)
    shades = rng.integers(64, 192, (60, 4, 1)) + rng.integers(-2, 3, (60, 4, 12))
    positions = np.sort(rng.permuted(np.tile(np.arange(16), (60, 1)), axis=1)[:, :4], axis=1)
    spec, space = MaskSpec("patch", 0.75), spaces.build("pixels", (8, 8), 3, patch=2)

    def sealed(part: slice) -> SealedExamples:
        return SealedExamples(shades[part].astype(np.uint8), positions[part], spec, (4, 4))

    check = OverfitCheck(sealed(slice(40)), sealed(slice(40, 60)), space, FLOW, 0, whole=False)
    (record,) = check.run(SimpleNamespace(denoiser=Function(zeros)), spec)
    # patches of one shade each: eleven of twelve numbers of a patch are known to be noise
    assert record["wiener"][6] < 0.2 * SIGMAS[6] ** 2
    said = wiener.below(record) or ""
    assert said.endswith("% above a Wiener filter of each patch")


# --- the scale -----------------------------------------------------------------------------------


class Function(nn.Module):
    """A denoiser that is a function of (x, sigma, labels, mask)."""

    def __init__(self, denoise: Any) -> None:
        super().__init__()
        self.denoise = denoise


def zeros(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def test_the_filter_itself_is_at_0_a_perfect_network_at_100_percent() -> None:
    images, space = gaussian(90, (8, 12), 3, 0), space_of((8, 12), 3)
    train, held_out = Array(images[:60], space), Array(images[60:], space)
    filtered = wiener.denoiser(train, None, space, torch.Generator())
    record = OverfitCheck(train, held_out, space, FLOW, 0).measure(Function(filtered))
    assert record["below_wiener"] == pytest.approx(0, abs=1e-12)
    assert record["held_out"] == record["wiener"]
    assert wiener.below(record) == "the same as a Wiener filter"
    assert wiener.worse(record) is None
    known = space.encode(torch.from_numpy(images))

    def perfect(x: torch.Tensor, *_: Any) -> torch.Tensor:
        return known[:60] if len(x) == 60 else known[60:]

    record = OverfitCheck(train, held_out, space, FLOW, 0).measure(Function(perfect))
    assert record["below_wiener"] == 1
    assert wiener.below(record) == "100 % below a Wiener filter"


def test_it_is_fitted_once_for_a_mask_and_again_to_the_same_after_a_resume() -> None:
    images, space = gaussian(60, (8, 8), 1, 0), space_of((8, 8), 1)
    fitted = []

    def run() -> list[dict[str, Any]]:
        check = OverfitCheck(Array(images[:40], space), Array(images[40:], space), space, FLOW, 7)
        train = check.fitted_to()
        check.fitted_to = lambda: fitted.append(1) or train  # type: ignore[func-returns-value]
        model = SimpleNamespace(denoiser=Function(zeros))
        first = check.run(model, MaskSpec("patch", 0.5))
        assert check.run(model, MaskSpec("patch", 0.5)) == first
        return first

    before = torch.get_rng_state()
    first = run()
    assert len(fitted) == 2  # whole images, and at the mask
    assert run() == first
    assert torch.equal(torch.get_rng_state(), before)
    assert [r["wiener"] is not None for r in first] == [True, True]
    assert first == json.loads(json.dumps(first))


def test_one_training_image_has_no_spectrum_and_no_held_out_image_no_scale() -> None:
    images, space = gaussian(5, (8, 8), 1, 0), space_of((8, 8), 1)
    for train, held_out in ((images[:1], images[1:]), (images, images[:0])):
        check = OverfitCheck(Array(train, space), Array(held_out, space), space, FLOW, 0)
        record = check.measure(Function(zeros))
        assert (record["wiener"], record["below_wiener"]) == (None, None)
        assert wiener.below(record) is None


# --- in words ------------------------------------------------------------------------------------

EIGHT = [0.1, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005, 0.002]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([], None),
        ([7], "worse than linear filtering at the lowest noise"),
        ([0], "worse than linear filtering at the highest noise"),
        ([5, 6, 7], "worse than linear filtering at the 3 lowest noise levels"),
        ([0, 1], "worse than linear filtering at the 2 highest noise levels"),
        ([2, 7], "worse than linear filtering at 2 of 8 noise levels"),
        (range(8), "worse than linear filtering at every noise level"),
    ],
)
def test_it_is_said_where_linear_filtering_is_better(bad: list[int], said: str | None) -> None:
    held_out = [x * (1.2 if i in bad else 1.005) for i, x in enumerate(EIGHT)]
    assert wiener.worse({"held_out": held_out, "wiener": EIGHT}) == said


def scaled(
    records: list[dict[str, Any]], share: float, mask: str = "whole"
) -> list[dict[str, Any]]:
    """Checks with a Wiener filter whose error leaves `share` to the last, better at the end."""
    for record in records:
        filtered = [e / (1 - share) for e in record["held_out"]]
        filtered[-1] = record["held_out"][-1] / 1.5
        record |= {"mask": mask, "wiener": filtered, "below_wiener": share}
    return records


def test_the_log_says_how_far_below_it_the_network_is() -> None:
    flat, linear = [0.185] * PATIENCE, "; worse than linear filtering at the lowest noise"
    found = judge(scaled(checks(FALLING, FALLING), 0.62))
    assert found.sentence == (
        "still improving: held-out error 0.1851 (−3 %; 62 % below a Wiener filter), best so far"
        + linear
    )
    assert found.evidence["below_wiener"] == 0.62
    found = judge(scaled(checks([*FALLING, *flat], [*FALLING, *flat]), -0.08))
    assert "; 8 % above a Wiener filter), best at 6,000 images" in found.sentence
    assert found.sentence.endswith("; worse than linear filtering at every noise level")
    found = judge(scaled(checks(FALLING, FALLING), 0.62, "stage"))
    assert "62 % below a Wiener filter of each patch" in found.sentence


def test_the_verdict_is_of_samples_error_and_time() -> None:
    def looks(name: str, sentence: str | None = None) -> dict[str, Any]:
        return {"kind": "sample", "health": {"verdict": name, "sentence": sentence}}

    improving = scaled(checks(FALLING, FALLING), 0.62)
    assert verdict([*improving, looks("good")]) == [
        "Samples are as sharp as real images, without noise or copies; judge their shapes by eye.",
        "The held-out error is 62 % below a Wiener filter, the best linear denoiser; worse than "
        "linear filtering at the lowest noise.",
        "More training would probably help: the held-out error was still falling.",
    ]
    noise = looks("noise", "samples are still noise after 9 of 9 images: train longer (--minutes)")
    assert "train longer" in verdict([*improving, noise])[0]
    flat = [*FALLING, *[0.185] * PATIENCE]
    stopped = verdict([*checks(flat, flat), noise])  # training longer is no advice then
    assert stopped[0] == "Samples are still noise."
    assert "would not help" in stopped[1]
    copies = verdict([*improving, looks("copies", "most samples are copies: train for less time")])
    assert not any("More training" in sentence for sentence in copies)
    memorizing = checks([*FALLING, 0.19, 0.20], [*FALLING, 0.17, 0.15])
    assert verdict(memorizing) == [
        "More training would make it worse: it is memorizing its training images."
    ]
    assert verdict([]) == []
    young = verdict([*scaled(checks(FALLING, FALLING), -0.55), looks("good")])
    assert young[0].startswith("Samples cannot be good yet: the network removes noise worse than")


def test_a_page_answers_three_questions() -> None:
    def grid(copied: float | None) -> dict[str, Any]:
        health = {"verdict": "good", "sentence": None, "copied": copied}
        return {"kind": "sample", "health": health}

    nothing = answers([])
    assert nothing.good == nothing.copies == "Not measured so far."
    assert "two checks" in nothing.longer
    short = answers([grid(0.0) | {"images": 2208}])
    assert "2,208 images seen are few for shapes: train longer" in short.good
    assert "few for shapes" in answers([grid(0.0) | {"images": 5216}]).good  # textures as yet
    assert "few for shapes" not in answers([grid(0.0) | {"images": 8000}]).good
    tuned = answers([grid(0.0) | {"images": n} for n in (0, 2208)])  # began with other weights
    assert tuned.good == f"{GOOD[0].upper()}{GOOD[1:]}."
    blind = [check | {"held_out_mean": None} for check in scaled(checks(FALLING, FALLING), 0.6)]
    assert (
        "no images were held out" in answers([{**c, "held_out_images": None} for c in blind]).longer
    )
    found = answers([*scaled(checks(FALLING, FALLING), 0.62), grid(0.0)])
    assert "as sharp as real images" in found.good
    assert "62 % below a Wiener filter" in found.good
    assert found.longer.startswith("More training would probably help")
    assert found.copies == "No sample of the last grid is a near copy of a training image."
    assert answers([grid(0.25)]).copies.startswith("25% of the samples of the last grid are near")
    memorizing = checks([*FALLING, 0.19, 0.20], [*FALLING, 0.17, 0.15])
    assert answers(memorizing).copies.startswith("It is memorizing")


def test_the_report_shows_the_scale(tmp_path: Path) -> None:
    source = str(write_images(tmp_path / "images.npz"))
    run = write_run(tmp_path / "run", source)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "check":
            scaled([line], 0.5, line["mask"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.build(run).read_text(encoding="utf-8")
    top = page[page.index('id="verdict"') : page.index("This model")]
    assert "The held-out error is 50 % below a Wiener filter, the best linear denoiser" in top
    assert "worse than linear filtering at the lowest noise" in top
    assert "below the error of a Wiener filter" in page
    assert "is 50, 50, 50, 50, 50, 50, 50, −50 % below the filter" in page
    assert "Wiener filter, held-out images" in page
    assert "50 % below a Wiener filter of each patch" in page
    assert "Wiener" not in report.build(write_run(tmp_path / "old", source)).read_text()
