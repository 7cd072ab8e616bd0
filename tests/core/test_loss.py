"""The loss, on networks so small that the right answer is known."""

import math

import pytest
import torch
from torch import nn

from underpaint.backbones import Backbone, Prediction, UViT
from underpaint.core import masks, preconditioning, schedules
from underpaint.core.denoiser import Denoiser
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec

GRID, P = (2, 3), 2
COMBINATIONS = [
    ("vp-linear", "eps"),
    ("vp-linear", "x0"),
    ("vp-cosine", "v"),
    ("flow", "flow"),
    ("edm", "edm"),
    ("edm", "score"),
    ("ve", "score"),
    ("ve", "eps"),
    ("ve", "edm"),
]


class Linear(Backbone):
    """F = W x over the flattened visible patches of one fixed mask."""

    def __init__(self, count):
        super().__init__(GRID, P, 0)
        self.matrix = nn.Parameter(torch.zeros(count * P, count * P, dtype=torch.float64))

    def forward(self, patches, c_noise, labels, mask):
        return Prediction((patches.flatten(1) @ self.matrix.T).unflatten(1, (-1, P)))


def denoiser(backbone, process="flow", prediction="flow"):
    return Denoiser(backbone, schedules.build(process), preconditioning.build(prediction, process))


def loss_of(model, patches, mask, t, noise, **settings):
    """The loss of clean `patches` and `noise` of whole images [B, N, P] at times `t` [B]."""
    patches, noise = (masks.gather(x, mask.visible) for x in (patches, noise))
    return DenoisingLoss(model, **settings)(patches, None, mask, t, noise)


def times(model, sigma, batch):
    """Times [B] at which the level is `sigma`."""
    return model.process.t(torch.full((batch,), sigma, dtype=torch.float64))


def exact_gaussian(batch, covariance):
    """x0 and noise whose sample moments are exactly N(0, covariance) and N(0, I), independent."""
    D = len(covariance)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 2 * D, generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / batch)).T
    return z[:, :D] @ torch.linalg.cholesky(covariance).T, z[:, D:]


@pytest.mark.parametrize(("process", "prediction"), COMBINATIONS)
@pytest.mark.parametrize("visible", [[0, 1, 2, 3, 4, 5], [1, 2, 5], [4]])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_gaussian_data_are_learned_as_their_posterior(process, prediction, visible, sigma):
    """The optimum is E[x0^ | x^] = Σ^^ (Σ^^ + σ² I)⁻¹ x^: that of the visible part given the same.

    The sample moments are exact, so the gradient at the closed form vanishes to rounding.
    """
    batch, D = 64, 6 * P
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / D + 0.1 * torch.eye(D, dtype=torch.float64)
    x0, n = (x.unflatten(1, (6, P)) for x in exact_gaussian(batch, covariance))
    ids = torch.tensor(visible)
    hidden = torch.tensor([i for i in range(6) if i not in visible], dtype=torch.long)
    mask = masks.Mask(GRID, ids.expand(batch, -1), hidden.expand(batch, -1))

    numbers = (ids[:, None] * P + torch.arange(P)).flatten()
    part = covariance[numbers][:, numbers]
    eye = torch.eye(len(numbers), dtype=torch.float64)
    posterior = part @ torch.linalg.inv(part + sigma**2 * eye)

    backbone = Linear(len(visible))
    model = denoiser(backbone, process, prediction)
    t = times(model, sigma, batch)
    level = torch.tensor(sigma, dtype=torch.float64)
    at, c_in = model.prediction.coefficients(level), model.process.c_in(level)
    best = (posterior - at.a * eye) / (at.b * c_in)  # D = a x + b W c_in x

    def loss(matrix):
        backbone.matrix = nn.Parameter(matrix)
        return loss_of(model, x0, mask, t, n)

    lowest = loss(best)
    lowest.mean.backward()
    assert backbone.matrix.grad.abs().max() < 1e-9
    expected = torch.trace(part - posterior @ part) / len(numbers)  # posterior variance
    assert lowest.x0_mse.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    for _ in range(3):
        step = torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert loss(best + 0.1 * step).mean > lowest.mean


def random_problem(batch=5):
    torch.manual_seed(3)
    patches, n = torch.randn(batch, 6, P).double(), torch.randn(batch, 6, P).double()
    mask = masks.draw(MaskSpec("patch", 0.5), GRID, batch, torch.Generator().manual_seed(0))
    backbone = Linear(3)
    nn.init.normal_(backbone.matrix, std=0.3)
    return backbone, patches, n, mask


def test_output_weight_on_eps_is_ddpms_loss():
    backbone, patches, n, mask = random_problem()
    model = denoiser(backbone, "vp-linear", "eps")
    t = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    loss = loss_of(model, patches, mask, t, n)
    x0, eps = masks.gather(patches, mask.visible), masks.gather(n, mask.visible)
    sigma = model.process.sigma(t)[:, None, None]
    alpha = model.process.alpha(sigma)
    sigma_t = alpha * sigma
    x_t = alpha * x0 + sigma_t * eps
    F = backbone(x_t, None, None, mask).visible
    plain = (F - eps).square().mean(dim=(1, 2))
    torch.testing.assert_close(loss.per_image, plain, rtol=1e-8, atol=0)
    assert loss.mean.item() == pytest.approx(plain.mean().item())


@pytest.mark.parametrize(("process", "prediction"), COMBINATIONS)
def test_weights_are_those_of_the_literature(process, prediction):
    """Each weight against its definition in x0 space, D from the denoiser itself."""
    backbone, patches, n, mask = random_problem()
    model, gamma = denoiser(backbone, process, prediction), 5.0
    sigma = torch.tensor([0.1, 0.4, 0.5, 2.0, 9.0], dtype=torch.float64)
    t = model.process.t(sigma)
    x0 = masks.gather(patches, mask.visible)
    x = x0 + sigma[:, None, None] * masks.gather(n, mask.visible)
    error = (model.denoise(x, sigma, None, mask) - x0).square().mean(dim=(1, 2))
    b, snr = model.prediction.b(sigma), 1 / sigma**2
    time = sigma / (1 + sigma)
    weights = {
        "output": 1 / b**2,
        "x0": 1,
        "min-snr": snr.clamp(max=gamma),
        "velocity": time.clamp(min=0.05) ** -2,
    }
    for weighting, w in weights.items():
        loss = loss_of(model, patches, mask, t, n, weighting=weighting, gamma=gamma)
        torch.testing.assert_close(loss.per_image, w * error, rtol=1e-6, atol=0)
        torch.testing.assert_close(loss.x0_mse, error, rtol=1e-6, atol=0)
        assert not loss.x0_mse.requires_grad


@pytest.mark.parametrize(
    ("process", "prediction", "factor"),
    [
        ("vp-linear", "eps", lambda snr, low: low / snr),
        ("vp-cosine", "v", lambda snr, low: low / (snr + 1)),
        ("vp-linear", "x0", lambda snr, low: low),
    ],
)
def test_min_snr_on_the_output(process, prediction, factor):
    """Hang et al. 2023: min(SNR, γ)/SNR on eps, min(SNR, γ)/(SNR + 1) on v."""
    backbone, patches, n, mask = random_problem()
    model = denoiser(backbone, process, prediction)
    sigma = torch.tensor([0.1, 0.4, 0.5, 2.0, 9.0], dtype=torch.float64)
    plain, weighted = (
        loss_of(model, patches, mask, model.process.t(sigma), n, weighting=weighting).per_image
        for weighting in ("output", "min-snr")
    )
    snr = 1 / sigma**2
    torch.testing.assert_close(weighted / plain, factor(snr, snr.clamp(max=5.0)))


def test_the_weight_of_velocity_is_flow_matchings_loss():
    """(x̂ − x_t)/t against n − x0, whatever the network predicts: the output weight on flow."""
    backbone, patches, n, mask = random_problem()
    sigma = torch.tensor([0.06, 0.4, 0.5, 2.0, 9.0], dtype=torch.float64)
    flow, x0 = (denoiser(backbone, "flow", prediction) for prediction in ("flow", "x0"))
    t = flow.process.t(sigma)
    one, other = (
        loss_of(flow, patches, mask, t, n, weighting=weighting).per_image
        for weighting in ("output", "velocity")
    )
    torch.testing.assert_close(other, one)
    per_image = loss_of(x0, patches, mask, t, n, weighting="velocity").per_image
    clean, noise = (masks.gather(v, mask.visible) for v in (patches, n))
    time = t[:, None, None]
    x_t = (1 - time) * clean + time * noise
    x_hat = x0.denoise(clean + sigma[:, None, None] * noise, sigma, None, mask)
    velocity = (x_t - x_hat) / time
    torch.testing.assert_close(per_image, (velocity - (noise - clean)).square().mean((1, 2)))


@pytest.mark.parametrize("process", ["ve", "edm"])
def test_output_weight_on_score_is_ncsns_loss(process):
    """λ(σ) ‖s(x, σ) + n/σ‖² with λ = σ² (Song & Ermon 2019), the score from Tweedie's formula."""
    backbone, patches, n, mask = random_problem()
    model = denoiser(backbone, process, "score")
    sigma = torch.tensor([0.01, 0.1, 0.5, 2.0, 50.0], dtype=torch.float64)
    loss = loss_of(model, patches, mask, model.process.t(sigma), n)
    level, eps = sigma[:, None, None], masks.gather(n, mask.visible)
    x = masks.gather(patches, mask.visible) + level * eps
    score = (model.denoise(x, sigma, None, mask) - x) / level**2
    plain = sigma**2 * (score + eps / level).square().mean(dim=(1, 2))
    torch.testing.assert_close(loss.per_image, plain, rtol=1e-6, atol=0)


def test_edm_weighs_its_output_by_one():
    """(σ² + σ_d²)/(σ σ_d)² in x0 space, as Karras et al. 2022."""
    backbone, patches, n, mask = random_problem()
    model = denoiser(backbone, "edm", "edm")
    sigma = torch.tensor([0.002, 0.1, 0.5, 2.0, 80.0], dtype=torch.float64)
    loss = loss_of(model, patches, mask, model.process.t(sigma), n)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(loss.per_image, weight * loss.x0_mse, rtol=1e-6, atol=0)


def test_hidden_pixels_are_never_touched():
    network = UViT(GRID, P, 0, width=8, depth=3, heads=2)
    patches, n = torch.randn(4, 6, P), torch.randn(4, 6, P)
    mask = masks.draw(MaskSpec("patch", 0.5), GRID, 4, torch.Generator().manual_seed(0))
    t = torch.tensor([0.01, 0.3, 0.6, 0.99])

    def run():
        network.zero_grad()
        loss = loss_of(denoiser(network), patches, mask, t, n)
        loss.mean.backward()
        return [*loss, *(p.grad.clone() for p in network.parameters())]

    clean = run()
    for x in (patches, n):
        x.scatter_(1, mask.hidden[..., None].expand(-1, -1, P), math.nan)
    for a, b in zip(clean, run(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_the_loss_is_float32_under_autocast():
    network = UViT(GRID, P, 0, width=8, depth=3, heads=2)
    patches, n = torch.randn(4, 6, P), torch.randn(4, 6, P)
    t = torch.tensor([0.01, 0.3, 0.6, 0.99])
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(denoiser(network), patches, masks.Mask(GRID), t, n)
    assert {x.dtype for x in loss} == {torch.float32}


def test_an_unknown_weighting_is_an_error():
    backbone, patches, n, mask = random_problem()
    with pytest.raises(ValueError, match="cube"):
        loss_of(denoiser(backbone), patches, mask, torch.full((5,), 0.5), n, weighting="cube")


def test_weights_of_a_mask_multiply_the_errors_of_its_patches():
    backbone, patches, n, mask = random_problem()
    t, weights = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.rand(5, 3).double()
    model = denoiser(backbone)
    plain = loss_of(model, patches, mask, t, n)
    weighted = loss_of(model, patches, mask._replace(weights=weights), t, n, weighting="output")
    sigma = model.process.sigma(t)
    x = masks.gather(patches + sigma[:, None, None] * n, mask.visible)
    output = model.predict(x, sigma, None, mask).visible
    target = masks.gather(n - patches, mask.visible)  # flow
    errors = (output - target).square().mean(2)  # [B, V]
    torch.testing.assert_close(plain.per_image, errors.mean(1))
    torch.testing.assert_close(weighted.per_image, (weights * errors).mean(1))
    assert torch.equal(weighted.x0_mse, plain.x0_mse)
