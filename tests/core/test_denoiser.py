"""Preconditioning and the denoiser: every output means the same x0 and the same noise."""

import pytest
import torch
from torch import Tensor, nn

from underpaint import config, factory
from underpaint.core import denoiser, preconditioning, schedules
from underpaint.core.guidance import guided
from underpaint.core.masks import Mask, MaskSpec, draw
from underpaint.core.preconditioning import Preconditioning
from underpaint.errors import UserError

NAMES = ["eps", "x0", "v", "flow", "score", "edm"]
PAIRS = [
    ("vp-linear", "eps"),
    ("vp-linear", "x0"),
    ("vp-linear", "v"),
    ("vp-cosine", "eps"),
    ("vp-cosine", "x0"),
    ("vp-cosine", "v"),
    ("flow", "eps"),
    ("flow", "x0"),
    ("flow", "flow"),
    ("edm", "eps"),
    ("edm", "x0"),
    ("edm", "score"),
    ("edm", "edm"),
    ("ve", "eps"),
    ("ve", "x0"),
    ("ve", "score"),
    ("ve", "edm"),
]
every = pytest.mark.parametrize("name", NAMES)


def build(backbone: nn.Module, process: str, prediction: str) -> denoiser.Denoiser:
    said = preconditioning.build(prediction, process)
    return denoiser.Denoiser(backbone, schedules.build(process), said)


class Oracle(nn.Module):
    """A backbone that knows x0 and the noise of all patches, and answers as it was asked to."""

    def __init__(self, x0: Tensor, n: Tensor, answer) -> None:
        super().__init__()
        self.grid, self.patch_dim, self.classes = (2, 3), x0.shape[-1], 0
        self.x0, self.n, self.answer = x0, n, answer
        self.got: tuple = ()

    def forward(self, x, c_noise, labels, mask):
        self.got = (x, c_noise, labels, mask)
        ids = mask.visible
        x0, n = self.x0, self.n
        if ids is not None:
            i = torch.arange(len(ids))[:, None]
            x0, n = x0[i, ids], n[i, ids]
        return denoiser.Prediction(self.answer(x0, n))


def data(batch: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(batch, 6, 5, generator=g, dtype=torch.float64) * 2 - 1
    return x0.to(dtype), torch.randn(batch, 6, 5, generator=g, dtype=torch.float64).to(dtype)


def per_image(values: Tensor) -> Tensor:
    return values[:, None, None]


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_output_of_the_definition_gives_back_x0_and_noise(process: str, prediction: str) -> None:
    """The targets as the literature defines them, in alpha and sigma_t, not in our coefficients."""
    steps = schedules.build(process)
    x0, n = data()
    t = torch.tensor([0.02, 0.3, 0.7, 0.95], dtype=torch.float64)
    sigma = per_image(steps.sigma(t))
    alpha = steps.alpha(sigma)
    sigma_t = alpha * sigma
    x_t = alpha * x0 + sigma_t * n
    q = 0.5
    c_skip, c_out = q**2 / (sigma**2 + q**2), sigma * q / (sigma**2 + q**2).sqrt()
    F = {
        "eps": n,
        "x0": x0,
        "v": alpha * n - sigma_t * x0,
        "flow": n - x0,
        "score": -n,
        "edm": (x0 - c_skip * x_t) / c_out,
    }[prediction]
    said = preconditioning.build(prediction, process)
    x, levels = x_t / alpha, steps.sigma(t)
    torch.testing.assert_close(said.x0(x, F, levels), x0)
    torch.testing.assert_close(said.eps(x, F, levels), n)
    torch.testing.assert_close(said.target(x0, n, levels), F)


@every
def test_lines_are_each_others_inverse(name: str) -> None:
    """x = D + sigma·eps whatever F is, and the target is the F that gives x0 and n back."""
    s = torch.logspace(-4, 3, 50, dtype=torch.float64)
    a, b, c, d, e, f = Preconditioning(name).coefficients(s)
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    for left, right in [
        (a + s * c, one),
        (b + s * d, zero),
        (a + b * e, one),
        (a * s + b * f, zero),
        (c + d * e, zero),
        (c * s + d * f, one),
    ]:
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * 1e4)
    torch.testing.assert_close(Preconditioning(name).b(s), b)


@every
def test_no_cancellation_in_float32(name: str) -> None:
    said = Preconditioning(name)
    s = torch.logspace(-4, 3, 500)  # float32
    for single, double in zip(said.coefficients(s), said.coefficients(s.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=5e-7, atol=0)


@pytest.mark.parametrize("name", ["eps", "v", "flow", "score", "edm"])
def test_noise_is_exact_at_tiny_sigma(name: str) -> None:
    """At sigma 1e-4, (x − D)/sigma would be off by 6e-4 in float32: the direct line is not."""
    said = Preconditioning(name)
    x0, n = data()
    s = torch.full((4,), 1e-4, dtype=torch.float64)
    x, F = (x0 + per_image(s) * n).float(), said.target(x0, n, s).float()
    error = (said.eps(x, F, s.float()) - n).abs().max()
    # v, flow and edm add x and F, each rounded to 1e-7, and edm's F is 1/sigma_data as large
    assert error < 2e-6


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_denoiser_returns_the_visible_patches(process: str, prediction: str) -> None:
    said = preconditioning.build(prediction, process)
    x0, n = data()
    sigma = torch.tensor([0.01, 0.5, 3.0, 40.0], dtype=torch.float64)
    mask = draw(MaskSpec("patch", 0.5), (2, 3), 4, torch.Generator().manual_seed(1))
    model = build(Oracle(x0, n, lambda x0, n: said.target(x0, n, sigma)), process, prediction)
    i = torch.arange(4)[:, None]
    x = x0 + per_image(sigma) * n
    seen = x[i, mask.visible]
    torch.testing.assert_close(model.denoise(seen, sigma, None, mask), x0[i, mask.visible])
    torch.testing.assert_close(model.eps(seen, sigma, None, mask), n[i, mask.visible])
    torch.testing.assert_close(model.denoise(x, sigma), x0)  # no mask: the whole image


@pytest.mark.parametrize(
    ("process", "c_in", "c_noise"),
    [
        ("vp-cosine", lambda s: (1 + s**2) ** -0.5, None),
        ("flow", lambda s: 1 / (1 + s), lambda s: 1000 * s / (1 + s)),
        ("edm", lambda s: (s**2 + 0.25) ** -0.5, lambda s: torch.tensor(s).log() / 4),
        ("ve", lambda s: (s**2 + 0.25) ** -0.5, lambda s: torch.tensor(s).log() / 4),
    ],
)
def test_what_the_backbone_is_given(process: str, c_in, c_noise) -> None:
    x0, n = data(dtype=torch.float32)
    backbone = Oracle(x0, n, lambda x0, n: n)
    model = build(backbone, process, "eps")
    labels = torch.tensor([0, 1, 2, -1])
    model.denoise(x0, 0.7, labels)
    x, told, given, mask = backbone.got
    torch.testing.assert_close(x, x0 * c_in(0.7))
    assert told.shape == (4,)
    assert told.dtype == torch.float32
    if c_noise:
        torch.testing.assert_close(told, torch.full((4,), float(c_noise(0.7))))
    assert given is labels
    assert mask == Mask((2, 3))


def test_a_number_is_a_level_for_each_image() -> None:
    x0, n = data(dtype=torch.float32)
    backbone = Oracle(x0, n, lambda x0, n: n)
    model = build(backbone, "flow", "eps")
    expected = model.denoise(x0, torch.full((4,), 0.3))
    for same in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        assert torch.equal(model.denoise(x0, same), expected)


def test_float32_outside_the_network_under_autocast() -> None:
    class Linear(nn.Module):
        grid = (2, 3)

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(5, 5)

        def forward(self, x: Tensor, c_noise: Tensor, labels, mask: Mask) -> denoiser.Prediction:
            self.dtype = self.map(x).dtype
            return denoiser.Prediction(self.map(x), self.map(x))

    model = build(Linear(), "edm", "edm")
    x = torch.randn(4, 6, 5)
    plain = model.denoise(x, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.denoise(x, 1e-3)
        F = model.predict(x, 1e-3, None, None)
    assert model.backbone.dtype == torch.bfloat16
    assert mixed.dtype == F.visible.dtype == F.hidden.dtype == torch.float32
    # F's bfloat16 error of about 1e-2 counts with b(1e-3) = 1e-3; rounding x to it would give 1e-2
    assert (mixed - plain).abs().max() < 5e-5
    assert torch.equal(model.denoise(x, 1e-3), plain)
    model.bf16 = True  # the same, wherever it is called
    assert torch.equal(model.denoise(x, 1e-3), mixed)
    assert model.predict(x.bfloat16(), 1e-3, None, None).visible.dtype == torch.float32
    assert model.denoise(x.bfloat16(), 1e-3).dtype == torch.float32


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (process, prediction)
        for process in schedules.TIME_LAWS
        for prediction in NAMES
        if (process, prediction) not in PAIRS
    ],
)
def test_other_combinations_are_refused_in_one_line(process: str, prediction: str) -> None:
    with pytest.raises(ValueError, match="does not go with") as error:
        preconditioning.build(prediction, process)
    says = str(error.value)
    assert f"'{prediction}' does not go with process {process}, since it" in says
    assert "; use eps, x0" in says
    assert "\n" not in says


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="'noise' is unknown; use one of eps"):
        preconditioning.build("noise", "flow")


def test_settings_of_a_recipe_are_refused_by_their_name() -> None:
    with pytest.raises(UserError, match=r"^noise\.prediction 'noise' is unknown; use one of eps"):
        factory.check_noise(config.Noise(prediction="noise"))
    with pytest.raises(UserError, match=r"^noise\.prediction 'v' does not go with process flow"):
        factory.check_noise(config.Noise(prediction="v"))


def test_guidance() -> None:
    calls = []

    def denoise(x: Tensor, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
        calls.append(len(x))
        assert labels is not None
        level = sigma if isinstance(sigma, float) else per_image(sigma)
        return x * level + per_image(labels).double()

    x = torch.randn(3, 2, 2, dtype=torch.float64)
    labels, null = torch.tensor([4, 5, 6]), torch.full((3,), -1)
    for sigma in (0.5, torch.tensor([0.1, 0.2, 0.3])):
        asked, unasked = denoise(x, sigma, labels), denoise(x, sigma, null)
        calls.clear()
        for scale in (1.0, 0.0, 2.5):
            got = guided(denoise, labels, null, scale)(x, sigma)
            torch.testing.assert_close(got, unasked + scale * (asked - unasked))
        assert calls == [3, 6, 6]  # one call each; without guidance not twice the batch
