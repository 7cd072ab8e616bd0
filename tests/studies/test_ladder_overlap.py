"""The ladder's trial of windows that overlap."""

import torch
from torch import Tensor, nn

from studies.ladder.overlap import Overlapping
from underpaint.backbones.hourglass import Hourglass
from underpaint.core.masks import Mask
from underpaint.core.spaces import to_patches

GRID, PATCH, CHANNELS = (4, 6), 4, 3
SHAPE = {"width": 16, "depth": 1, "heads": 2}


def drawn(network: Hourglass, images: Tensor) -> Tensor:
    """What it says of images at one time."""
    found: Tensor = network(to_patches(images, PATCH), torch.zeros(len(images)), None, Mask(GRID))[
        0
    ]
    return found


def images() -> Tensor:
    return torch.randn(2, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH)


def test_without_a_margin_it_is_the_hourglass() -> None:
    plain = Hourglass(GRID, CHANNELS * PATCH**2, **SHAPE)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    other = Overlapping(GRID, CHANNELS * PATCH**2, patch=PATCH, margin=0, **SHAPE)
    other.load_state_dict(plain.state_dict())
    x = images()
    assert torch.equal(drawn(plain, x), drawn(other, x))


def test_a_token_reads_and_draws_beyond_its_patch() -> None:
    network = Overlapping(GRID, CHANNELS * PATCH**2, patch=PATCH, margin=1, **SHAPE)
    read: list[Tensor] = []
    network.embed.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    nn.init.ones_(network.head.bias)  # the weights are zero: each window is drawn as ones
    x = images()
    there = drawn(network, x)[0, 7].unflatten(0, (CHANNELS, PATCH, PATCH))  # row 1, column 1
    window = read[0][0, 7].unflatten(0, (CHANNELS, PATCH + 2, PATCH + 2))
    assert torch.equal(window, x[0, :, 3:9, 3:9])
    drawers = torch.tensor([2.0, 1.0, 1.0, 2.0])  # at the edges the neighbour's window, too
    assert torch.equal(there, torch.outer(drawers, drawers).expand(CHANNELS, -1, -1))
