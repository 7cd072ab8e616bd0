"""A network written for the tests: one file and one registration are all that a new one needs."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from underpaint.backbones import base
from underpaint.core.masks import Mask

__all__ = ["Toy", "toy"]


class Toy(base.Backbone):
    """Every token gets a share of the mean token."""

    def __init__(
        self,
        grid: tuple[int, int],
        patch_dim: int,
        classes: int = 0,
        *,
        width: int,
        share: float = 0.5,
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        self.share = share
        self.embed = nn.Linear(patch_dim, width)
        self.positions = nn.Embedding(grid[0] * grid[1], width)
        self.level = nn.Linear(1, width)
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.head = nn.Linear(width, patch_dim)

    def forward(
        self, patches: Tensor, c_noise: Tensor, labels: Tensor | None, mask: Mask
    ) -> base.Prediction:
        ids = base.position_ids(mask, len(patches), self.grid, patches.device)
        x = self.embed(patches) + self.positions(ids) + self.level(c_noise[:, None] / 1000)[:, None]
        if self.labels is not None:
            if labels is None:
                raise ValueError("labels are missing")
            x = x + self.labels(torch.where(labels < 0, self.classes, labels))[:, None]
        return base.Prediction(self.head(torch.tanh(x + self.share * x.mean(1, keepdim=True))))


@pytest.fixture(scope="module")
def toy() -> Iterator[None]:
    """The toy is `network.kind: toy` while the tests of a file run."""
    base.register("toy", "a network of the tests")(Toy)
    yield
    del base._KINDS["toy"]
