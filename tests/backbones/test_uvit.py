import math

import pytest
import torch

from underpaint.backbones import UViT, interpolate_positions
from underpaint.backbones.layers import sinusoid
from underpaint.core import masks, spaces
from underpaint.core.masks import MaskSpec

S = {"width": 512, "depth": 13, "heads": 8}
B = {"width": 768, "depth": 12, "heads": 12}
L = {"width": 1024, "depth": 16, "heads": 16}


def published(grid, patch_dim, size, classes=0):
    with torch.device("meta"):
        return UViT(grid, patch_dim, classes, **size)


def small(grid=(4, 6), **changes):
    torch.manual_seed(0)
    return UViT(grid, 12, **{"width": 32, "depth": 5, "heads": 2, **changes})


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("grid", "patch_dim", "size", "millions"),
    [
        ((16, 16), 48, S, 44.29),  # 64², p4
        ((64, 64), 48, S, 46.26),  # 256², p4
        ((64, 64), 48, B, 102.42),
        ((32, 32), 192, L, 232.3),  # Haar transform, 12×128×128, p4
    ],
)
def test_has_maskdms_number_of_parameters(grid, patch_dim, size, millions):
    assert parameters(published(grid, patch_dim, size)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_labels_add_their_table_alone():
    with_labels, without = (published((16, 16), 48, S, classes) for classes in (10, 0))
    assert parameters(with_labels) - parameters(without) == 11 * 512


@pytest.mark.parametrize(("rate", "gflop"), [(0.0, 4449), (0.5, 1722), (0.9, 269)])
def test_training_costs_what_maskdm_b_costs(rate, gflop):
    V = masks.visible_count(MaskSpec("block", rate, block=4), (64, 64))
    assert 3 * published((64, 64), 48, B).flops(V) / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize(("depth", "blocks"), [(1, 1), (2, 3), (12, 13), (13, 13), (16, 17)])
def test_an_even_depth_has_its_middle_block_extra(depth, blocks):
    network = small(depth=depth)
    assert len(network.early) + 1 + len(network.late) == blocks
    assert len(network.early) == len(network.late) == len(network.skips) == depth // 2


def test_skips_join_mirrored_blocks():
    network = small(depth=7)
    early, joined = [], []
    for block in network.early:
        block.register_forward_hook(lambda _, args, out: early.append(out))
    for skip in network.skips:
        skip.register_forward_hook(lambda _, args, out: joined.append(args[0][..., 32:]))
    network(torch.randn(2, 24, 12), torch.zeros(2), None, masks.Mask((4, 6)))
    assert len(joined) == 3
    for a, b in zip(early, reversed(joined), strict=True):
        assert torch.equal(a, b)


def test_the_time_token_is_the_sinusoid_and_its_position():
    network = small()
    c_noise = torch.tensor([0.0, 999.0])
    [token] = network._tokens(c_noise, None).unbind(1)
    torch.testing.assert_close(token, sinusoid(c_noise, 32) + network.time_position.weight)
    i = 5
    omega = 10000 ** (-i / 16)
    assert sinusoid(c_noise, 32)[1, i].item() == pytest.approx(math.cos(999 * omega), abs=1e-4)
    assert sinusoid(c_noise, 32)[1, 16 + i].item() == pytest.approx(math.sin(999 * omega), abs=1e-4)


def test_the_sinusoid_stays_in_float32():
    c_noise = torch.tensor([999.0, 1000.0])
    with torch.autocast("cpu", torch.bfloat16):
        waves = sinusoid(c_noise, 64)
    assert waves.dtype == torch.float32
    assert (waves[0] - waves[1]).abs().max() > 0.5


def test_positions_are_resampled_over_the_same_image():
    ramp = torch.arange(4.0)[:, None] * 2 + torch.arange(6.0) * 0.5  # [4, 6]
    state = {"positions.weight": torch.stack([ramp.flatten(), torch.full((24,), 3.0)], dim=1)}
    finer = interpolate_positions(state, (4, 6), (8, 12))["positions.weight"]
    assert finer.shape == (96, 2)
    assert torch.allclose(finer[:, 1], torch.tensor(3.0), atol=1e-5)
    # the middle of fine patch (i, j) lies at ((i + 0.5)/2 − 0.5, (j + 0.5)/2 − 0.5)
    rows, columns = (torch.arange(8.0) + 0.5) / 2 - 0.5, (torch.arange(12.0) + 0.5) / 2 - 0.5
    expected = rows[:, None] * 2 + columns * 0.5
    inner = (slice(3, 5), slice(3, 9))  # bicubic bends a ramp where the border is repeated
    assert torch.allclose(finer[:, 0].view(8, 12)[inner], expected[inner], atol=1e-4)


def test_other_tensors_are_not_resampled():
    network = small()
    state = network.state_dict()
    moved = interpolate_positions(state, (4, 6), (8, 12))
    changed = {name for name in state if state[name].shape != moved[name].shape}
    assert changed == {"positions.weight"}


def convolved(**changes):
    """With the convolution of Bao et al., which is not what it starts as."""
    network = small(patch=2, final_conv=True, **changes)
    with torch.no_grad():
        network.conv_out.weight.add_(0.1 * torch.randn_like(network.conv_out.weight))
    return network


def test_the_final_convolution_starts_as_nothing():
    plain, network = small(), small(patch=2, final_conv=True)
    patches, times = torch.randn(2, 24, 12), torch.tensor([3.0, 700.0])
    found, wanted = (n(patches, times, None, masks.Mask((4, 6))).visible for n in (network, plain))
    assert torch.equal(found, wanted)


def test_the_final_convolution_sees_zeros_where_patches_are_hidden():
    network, grid = convolved(), (4, 6)
    plain = small()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "conv_out" not in k})
    mask = masks.draw(MaskSpec("patch", 0.5), grid, 2, torch.Generator().manual_seed(0))
    patches, times = torch.randn(2, 12, 12), torch.tensor([3.0, 700.0])
    seen = plain(patches, times, None, mask).visible
    whole = torch.zeros(2, 24, 12).scatter(1, mask.visible[:, :, None].expand(-1, -1, 12), seen)
    image = network.conv_out(spaces.to_planes(whole, grid, 2))
    wanted = masks.gather(spaces.to_patches(image, 2), mask.visible)
    found = network(patches, times, None, mask).visible
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_final_convolution_is_counted():
    more = convolved().flops(24) - small().flops(24)
    assert more == 2 * 3 * 3 * 9 * (8 * 12)  # in × out × 3×3, on 8×12 pixels


def test_time_may_be_scaled():
    patches, mask = torch.randn(2, 24, 12), masks.Mask((4, 6))
    scaled = small(time_scale=0.5)(patches, torch.tensor([20.0, 700.0]), None, mask).visible
    plain = small()(patches, torch.tensor([10.0, 350.0]), None, mask).visible
    assert torch.equal(scaled, plain)
