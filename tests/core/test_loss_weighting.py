"""The learned size of the error at each noise level."""

import math

import pytest
import torch

from underpaint.core.loss_weighting import Uncertainty


def test_it_starts_as_the_plain_loss() -> None:
    error, sigma = torch.rand(6), torch.logspace(-3, 3, 6)
    assert torch.equal(Uncertainty()(error, sigma), error)


def test_the_formula() -> None:
    levels = Uncertainty()
    torch.manual_seed(0)
    with torch.no_grad():
        levels.weight.normal_()
    sigma = 0.3
    z = (math.log(sigma) + 8) / 16
    w = levels.weight.tolist()
    u = 10 * sum(w[k] * math.cos(math.pi * k * z) / (k + 1) for k in range(16))
    assert float(levels.u(torch.tensor([sigma])).detach()) == pytest.approx(u, rel=1e-4)
    loss = levels(torch.tensor([0.7]), torch.tensor([sigma]))
    assert float(loss.detach()) == pytest.approx(0.7 * math.exp(-u) + u, rel=1e-4)


def test_it_is_finite_at_all_levels() -> None:
    levels = Uncertainty()
    with torch.no_grad():
        levels.weight.fill_(0.1)
    sigma = torch.tensor([1e-9, 1e-4, 1.0, 1e4, 1e9])
    assert levels.u(sigma).isfinite().all()
    assert levels.u(sigma)[0] == levels.u(sigma)[1]


def test_it_learns_the_log_of_the_expected_error() -> None:
    levels = Uncertainty()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(levels.parameters(), lr=1e-2)

    def expected(sigma: torch.Tensor) -> torch.Tensor:
        return 0.01 + sigma**2 / (1 + sigma**2)

    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 600)
        sigma = torch.exp(2 * torch.randn(256, generator=generator))
        noise = -torch.rand(256, generator=generator).log()  # of mean one
        loss = levels(expected(sigma) * noise, sigma).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sigma = torch.logspace(-1, 1, 9)
    torch.testing.assert_close(levels.u(sigma), expected(sigma).log(), atol=0.15, rtol=0)
