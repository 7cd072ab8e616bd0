"""A trial: each token reads and draws a window that overlaps those of its neighbours.

Network `hourglass-overlap`: the first layer reads a patch and the pixels around it, `margin` on
each side; the head draws the same window, and what windows share is added up. So no seam between
two patches is drawn by either alone. For whole images only.
"""

from torch import Tensor
from torch.nn import functional

from underpaint.backbones.base import Prediction, register
from underpaint.backbones.hourglass import Hourglass
from underpaint.core.masks import Mask
from underpaint.core.spaces import to_patches, to_planes


@register("hourglass-overlap", "a trial of studies/ladder")
class Overlapping(Hourglass):
    """An hourglass whose windows are `margin` pixels larger than its patches, on each side."""

    def __init__(
        self,
        grid: tuple[int, int],
        patch_dim: int,
        classes: int = 0,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        margin: int = 1,
    ) -> None:
        window = patch_dim * (patch + 2 * margin) ** 2 // patch**2
        super().__init__(grid, window, classes, width=width, depth=depth, heads=heads)
        self.patch_dim, self.patch = patch_dim, patch
        self.windows = {"kernel_size": patch + 2 * margin, "padding": margin, "stride": patch}

    def forward(
        self,
        patches: Tensor,
        c_noise: Tensor,
        labels: Tensor | None,
        mask: Mask,
        condition: Tensor | None = None,
    ) -> Prediction:
        """As the hourglass's; `mask` hides nothing."""
        assert mask.visible is None
        image = to_planes(patches, self.grid, self.patch)
        read = functional.unfold(image, **self.windows).transpose(1, 2)  # [B, N, C·k²]
        drawn = super().forward(read, c_noise, labels, mask, condition).visible
        size = image.shape[2:]
        image = functional.fold(drawn.transpose(1, 2), size, **self.windows)
        return Prediction(to_patches(image, self.patch))
