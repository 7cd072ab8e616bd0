"""Gaussian data, for which everything is known in closed form: D = mu + C (C + σ²I)⁻¹ (x − mu)."""

import torch
from torch import Tensor

__all__ = ["Gaussian"]


class Gaussian:
    """x0 ~ N(mean, cov) over the last axis, with the given eigenvalues and random eigenvectors."""

    def __init__(self, eigenvalues: list[float], seed: int = 0, mean: float = 0.3) -> None:
        g = torch.Generator().manual_seed(seed)
        n = len(eigenvalues)
        self.values = torch.tensor(eigenvalues, dtype=torch.float64)
        self.axes = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
        self.mean = mean * torch.randn(n, generator=g, dtype=torch.float64)
        self.cov = self.axes @ torch.diag(self.values) @ self.axes.T

    def _scale(self, x: Tensor, factors: Tensor) -> Tensor:
        y = (x.double() - self.mean) @ self.axes
        return (self.mean + (y * factors) @ self.axes.T).to(x.dtype)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x], in the precision of x."""
        return self._scale(x, self.values / (self.values + sigma**2))

    def exact(self, x: Tensor, s: float, r: float) -> Tensor:
        """Where the probability-flow trajectory through x at level s is at level r."""
        return self._scale(x, ((self.values + r**2) / (self.values + s**2)).sqrt())

    def draw(self, count: int, sigma: float, seed: int = 1) -> Tensor:
        """x at level sigma: [count, n] float64."""
        g = torch.Generator().manual_seed(seed)
        n = torch.randn(count, len(self.values), generator=g, dtype=torch.float64)
        return self.mean + (n * (self.values + sigma**2).sqrt()) @ self.axes.T
