"""The U-Net: DDPM's network, and crops that are smaller images to it."""

import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DModel

from underpaint import backbones, config
from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.core.spaces import to_patches
from underpaint.errors import UserError

TINY = {"width": 16, "depth": 1, "heads": 1, "options": {"multipliers": [1, 2, 2]}}


def network(**changes):
    return config.Network(kind="unet", **{**TINY, **changes})


def build(grid, *, classes=0, patch=2, channels=3, seed=0, **changes):
    torch.manual_seed(seed)
    backbone = backbones.build(
        network(**changes), grid=grid, patch_dim=channels * patch**2, classes=classes, patch=patch
    )
    with torch.no_grad():  # many weights start as zero
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.eval()


def pixels(patches, grid, patch):
    """[B, N, 3·p²] → [B, 3, H, W], by folding instead of reshaping."""
    size = (grid[0] * patch, grid[1] * patch)
    return torch.nn.functional.fold(patches.transpose(1, 2), size, patch, stride=patch)


@pytest.mark.parametrize(
    ("size", "multipliers", "attention", "parameters"),
    [(32, [1, 2, 2, 2], [1], 35.7e6), (256, [1, 1, 2, 2, 4, 4], [4], 113.7e6)],
)
def test_published_sizes(size, multipliers, attention, parameters):
    options = {"multipliers": multipliers, "attention": attention}
    with torch.device("meta"):
        backbone = build((size, size), patch=1, width=128, depth=2, options=options)
    count = sum(p.numel() for p in backbone.parameters())
    own = 3 * 128 * 9  # three input channels more than DDPM's
    assert count - own == pytest.approx(parameters, rel=0.005)


def test_it_is_ddpms_network():
    """With nothing on the three further channels, it is diffusers' model as DDPM configures it."""
    grid = (8, 8)
    backbone = build(grid)
    reference = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        norm_num_groups=4,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()
    with torch.no_grad():
        backbone.unet.conv_in.weight[:, 3:] = 0
    state = dict(backbone.unet.state_dict())
    state["conv_in.weight"] = state["conv_in.weight"][:, :3]
    reference.load_state_dict(state)
    patches, c_noise = torch.randn(2, 64, 12), torch.tensor([3.0, 700.0])
    F = backbone(patches, c_noise, None, masks.Mask(grid)).visible
    expected = reference(pixels(patches, grid, 2), c_noise).sample
    torch.testing.assert_close(pixels(F, grid, 2), expected)


def crop(grid, corners, sides):
    """A crop mask with given corners, one an image."""
    h, w = grid
    numbers = torch.arange(h * w).view(h, w)
    visible = torch.stack(
        [numbers[t : t + sides[0], left : left + sides[1]].flatten() for t, left in corners]
    )
    window = torch.tensor([[t, left, *sides] for t, left in corners])
    return masks.Mask(grid, visible, None, window)


def test_a_crop_is_a_smaller_image_that_knows_its_place():
    grid, sides = (8, 12), (4, 6)
    backbone = build(grid)
    patches, c_noise = torch.randn(2, 96, 12), torch.tensor([3.0, 700.0])
    mask = crop(grid, [(0, 0), (4, 2)], sides)
    seen = masks.gather(patches, mask.visible)
    F = backbone(seen, c_noise, None, mask).visible

    H, W = 16, 24
    rows = ((torch.arange(H) + 0.5) / H * 2 - 1)[:, None].expand(H, W)
    columns = ((torch.arange(W) + 0.5) / W * 2 - 1).expand(H, W)
    image = pixels(patches, grid, 2)
    whole = torch.cat(
        [image, torch.ones(2, 1, H, W), torch.stack([rows, columns]).expand(2, 2, H, W)], 1
    )
    pieces = torch.stack([whole[0, :, :8, :12], whole[1, :, 8:16, 4:16]])
    expected = backbone.unet(pieces, c_noise).sample
    torch.testing.assert_close(pixels(F, sides, 2), expected)

    moved = backbone(seen, c_noise, None, crop(grid, [(4, 0), (0, 6)], sides)).visible
    assert (moved - F).abs().max() > 1e-3


def test_other_masks_are_zeros_and_a_channel():
    grid = (8, 8)
    backbone = build(grid)
    mask = masks.draw(MaskSpec("patch", 0.5), grid, 2, torch.Generator().manual_seed(0))
    patches, c_noise = torch.randn(2, 64, 12), torch.tensor([3.0, 700.0])
    F = backbone(masks.gather(patches, mask.visible), c_noise, None, mask).visible

    shown = torch.ones(2, 64, 1)
    shown[torch.arange(2)[:, None], mask.hidden] = 0
    axis = (torch.arange(16) + 0.5) / 8 - 1
    planes = [axis[:, None].expand(16, 16), axis.expand(16, 16)]
    image = torch.cat(
        [
            pixels(patches * shown, grid, 2),
            pixels(shown.expand(-1, -1, 4), grid, 2),
            torch.stack(planes).expand(2, 2, 16, 16),
        ],
        dim=1,
    )
    expected = backbone.unet(image, c_noise).sample
    whole = masks.gather(to_patches(expected, 2), mask.visible)
    torch.testing.assert_close(F, whole)


def test_a_crop_saves_and_other_masks_do_not():
    backbone = build((16, 16))
    assert backbone.stride == 2  # four pixels, two patches
    assert backbone.saves(64, "crop")
    assert not backbone.saves(64, "patch")
    assert not backbone.saves(64, "block")
    assert backbone.flops(64, "crop") < 0.26 * backbone.flops(256)
    assert backbone.activation_bytes(64, "crop") < 0.26 * backbone.activation_bytes(256)
    assert backbone.flops(64, "patch") == backbone.flops(256)


@pytest.mark.parametrize(("patch", "stride"), [(1, 4), (2, 2), (4, 1), (8, 1), (3, 4)])
def test_the_stride_is_in_patches(patch, stride):
    grid = (24 // patch, 48 // patch)
    assert build(grid, patch=patch).stride == stride


def test_crops_between_strides_are_refused():
    backbone, grid = build((16, 16)), (16, 16)
    mask = crop(grid, [(0, 0)], (3, 3))
    with pytest.raises(ValueError, match="multiples of 2"):
        backbone(torch.randn(1, 9, 12), torch.zeros(1), None, mask)


def test_weights_serve_every_size():
    small, large = build((8, 8)), build((12, 20), seed=1)
    state = backbones.interpolate_positions(small.state_dict(), (8, 8), (12, 20))
    large.load_state_dict(state)
    F = large(torch.randn(1, 240, 12), torch.zeros(1), None, masks.Mask((12, 20))).visible
    assert F.isfinite().all()


def test_it_starts_as_zero():
    torch.manual_seed(0)
    backbone = backbones.build(network(), grid=(8, 8), patch_dim=12, classes=2, patch=2)
    F = backbone(torch.randn(1, 64, 12), torch.zeros(1), torch.tensor([1]), masks.Mask((8, 8)))
    assert not F.visible.any()


@pytest.mark.parametrize("attention", [[0, 1], (0, 1)])
def test_levels_are_given_as_a_list(attention):
    backbone = build((8, 8), options={"multipliers": (1, 1, 1), "attention": attention})
    assert backbone.unet.config.down_block_types[:2] == ("AttnDownBlock2D",) * 2


def test_a_flag_with_one_level_is_a_list_of_one():
    run = config.apply_flags(config.Run(), ["--network.options.attention", "0"])
    backbone = build((8, 8), options={**TINY["options"], **run.network.options})
    assert backbone.unet.config.down_block_types[:2] == ("AttnDownBlock2D", "DownBlock2D")


@pytest.mark.parametrize(
    ("grid", "changes", "words"),
    [
        (
            (14, 14),
            {"options": {"multipliers": [1, 2, 2, 2]}},
            "28×28.*by 8; give size 24×24 or 32×32",
        ),
        ((3, 3), {"options": {"multipliers": [1, 2, 2, 2]}}, "give size 8×8"),
        ((8, 8), {"options": {"multipliers": []}}, "multipliers"),
        ((8, 8), {"options": {"multipliers": ["a"]}}, "multipliers: expected a value like"),
        ((8, 8), {"options": {"attention": [3], "multipliers": [1, 2]}}, "levels from 0 to 1"),
        ((8, 8), {"width": 18}, "divisible by 4"),
        ((8, 8), {"options": {"multipliers": [2, 3], "attention": [0]}}, "heads 1"),
        ((8, 8), {"options": {"multipliers": [1, 2], "head_width": 5}}, "head_width 5"),
        ((8, 8), {"options": {"multipliers": [1, 2], "groups": 3}}, "groups 3: give a number"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(grid, changes, words):
    with pytest.raises(UserError, match=words) as raised:
        build(grid, **changes)
    assert "\n" not in str(raised.value)


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(UserError, match=r"pip install 'underpaint\[diffusers\]'"):
        build((8, 8))


def test_diffusers_is_imported_when_it_is_needed():
    code = "import sys, underpaint.backbones; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
