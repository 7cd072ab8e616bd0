"""MobileNetV2 up to its last features (Sandler et al. 2018, arXiv 1801.04381, table 2).

Inverted residuals: a 1×1 convolution widens, a 3×3 one works on each channel alone, a 1×1 one
narrows, and what has the same shape is added. Its 1280 features after global average pooling are a
light feature space for scores. The names of the parts are those of the ImageNet weights that
torchvision published, so that their file fits; torchvision itself is not needed.
"""

from torch import Tensor, nn

BLOCKS = (  # expansion, channels, repetitions, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    """Convolution, normalisation, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; no nonlinearity at the narrow end."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([convolution(inputs, wide, 1)] if expansion > 1 else []),
            convolution(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Normalised images [B, 3, H, W] → features [B, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [convolution(3, 32, 3, stride=2)], 32
        for expansion, outputs, repetitions, first in BLOCKS:
            for i in range(repetitions):
                stride = first if i == 0 else 1
                layers.append(InvertedResidual(channels, outputs, expansion, stride))
                channels = outputs
        self.features = nn.Sequential(*layers, convolution(channels, 1280, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))
