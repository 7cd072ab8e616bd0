"""The hourglass against the same network written on whole grids, with hidden places masked."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from underpaint import backbones, config
from underpaint.backbones import Hourglass, interpolate_positions
from underpaint.backbones.dit import modulate
from underpaint.backbones.hourglass import nest, unnest
from underpaint.backbones.layers import Attention, rotate, sinusoid
from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError

B, P, GRID = 3, 12, (8, 12)
LABELS = torch.tensor([0, 1, -1])
KINDS = ("none", "patch", "block", "crop", "salient")


def build(levels: int = 1, grid: tuple[int, int] = GRID, stir: float = 0.1, **changes) -> Hourglass:
    """A small network; `stir` moves every weight, since gates and the head start at zero."""
    torch.manual_seed(0)
    arguments = {"classes": 2, "width": 16, "depth": 2, "heads": 2, "levels": levels} | changes
    network = Hourglass(grid, P, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(stir * torch.randn_like(parameter))
    return network


def draw(network: Hourglass, kind: str, rate: float = 0.6) -> masks.Mask:
    h, w = network.grid
    contrast = torch.rand(B, h * w, generator=torch.Generator().manual_seed(1))
    spec = MaskSpec(kind, rate, unit=network.unit)
    generator = torch.Generator().manual_seed(0)
    return masks.draw(spec, network.grid, B, generator, contrast=contrast)


def inputs(grid: tuple[int, int] = GRID) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(B, grid[0] * grid[1], P, generator=generator)
    return patches, 1000 * torch.rand(B, generator=generator)


# --- the same network on whole grids -------------------------------------------------------------


def on_grids(network: Hourglass, patches: Tensor, c_noise: Tensor, seen: Tensor) -> Tensor:
    """F of whole images [B, N, P], right where `seen` [B, h, w]: row by row, nothing gathered."""
    h, w = network.grid
    time = network.time(sinusoid(c_noise, 256, shift=1))
    c = F.silu(time + network.labels(LABELS.clamp(min=0)) * (LABELS >= 0)[:, None])
    x = network.embed(patches) + network.positions(torch.arange(h * w).expand(B, -1))
    x, skips = x.unflatten(1, (h, w)), []
    for blocks, merge in zip(network.down, network.merge, strict=True):
        for block in blocks:
            x = local(block, x, c, seen)
        skips.append((x, seen))
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x, seen = merge(torch.cat(corners, dim=-1)), seen[:, ::2, ::2]
    x = attended(network, x, c, seen)
    for blocks, split in zip(reversed(network.up), reversed(network.split), strict=True):
        skip, seen = skips.pop()
        fine = torch.empty_like(skip)
        for k, corner in enumerate(split(x).chunk(4, dim=-1)):
            fine[:, k // 2 :: 2, k % 2 :: 2] = corner
        x = fine + skip
        for block in blocks:
            x = local(block, x, c, seen)
    shift, scale = network.modulation(c).chunk(2, dim=1)
    return network.head(modulate(x.flatten(1, 2), shift, scale))


def local(block, x: Tensor, c: Tensor, seen: Tensor) -> Tensor:
    """Nine shifted copies of what is seen, each times its weights."""
    shift, scale, gate = block.modulation(c)[:, None].chunk(3, dim=2)
    x_in = modulate(x.flatten(1, 2), shift[:, 0], scale[:, 0]).view_as(x)
    padded = F.pad(x_in.where(seen[..., None], 0.0), (0, 0, 1, 1, 1, 1))
    near = block.convolution.bias.expand_as(x)
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            near = near + block.convolution.weight[:, 0, i, j] * part
    return x + gate[:, None] * block.mlp(x_in + near)


def attended(network: Hourglass, x: Tensor, c: Tensor, seen: Tensor) -> Tensor:
    """The coarse blocks: turns as complex numbers, hidden keys at minus infinity."""
    rows, columns = x.shape[1:3]
    d = network.head_width
    omega = 100.0 ** (-torch.arange(d // 4) / (d // 4))
    place = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
    angles = (place[:, :, None] * omega).flatten(1)  # [T, d/2] of rows, then of columns
    turn = torch.polar(torch.ones_like(angles), angles)
    hidden = ~seen.flatten(1)[:, None, None, :]
    x = x.flatten(1, 2)
    for block in network.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(c).chunk(6, dim=1)
        own = block.attention
        q, k, v = (
            part.unflatten(2, (own.heads, d)).transpose(1, 2)
            for part in own.qkv(modulate(x, shift1, scale1)).chunk(3, dim=2)
        )
        turned = []
        for part, norm in ((q, own.norm_q), (k, own.norm_k)):
            part = part / part.square().mean(-1, keepdim=True).sqrt() * norm.weight
            pairs = torch.complex(*part.chunk(2, dim=-1)) * turn
            turned.append(torch.cat([pairs.real, pairs.imag], dim=-1))
        weights = turned[0] @ turned[1].mT / math.sqrt(d)
        mixed = weights.masked_fill(hidden, -math.inf).softmax(-1) @ v
        x = x + gate1[:, None] * own.out(mixed.transpose(1, 2).flatten(2))
        x = x + gate2[:, None] * block.mlp(modulate(x, shift2, scale2))
    return x.unflatten(1, (rows, columns))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"levels": 2}, {"local_depth": 2, "depth": 3}],
)
def test_it_is_the_network_on_whole_grids_with_hidden_places_masked(kind, changes):
    network, (patches, c_noise) = build(**changes), inputs()
    mask = draw(network, kind)
    seen = torch.ones(B, GRID[0] * GRID[1], dtype=torch.bool)
    if mask.hidden is not None:
        seen.scatter_(1, mask.hidden, False)
    with torch.no_grad():
        expected = on_grids(network, patches, c_noise, seen.unflatten(1, GRID))
        found = network(masks.gather(patches, mask.visible), c_noise, LABELS, mask).visible
    torch.testing.assert_close(found, masks.gather(expected, mask.visible), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_hidden_pixels_reach_nothing(kind, levels):
    """Not a number in all that is hidden: the same outputs and gradients, bit for bit."""
    network, (patches, c_noise) = build(levels), inputs()
    mask = draw(network, kind)

    def answer(patches):
        network.zero_grad(set_to_none=True)
        output = network(masks.gather(patches, mask.visible), c_noise, LABELS, mask).visible
        output.square().sum().backward()
        return [output.detach(), *(p.grad for p in network.parameters())]

    clean = answer(patches)
    poisoned = patches.scatter(1, mask.hidden[..., None].expand(-1, -1, P), math.nan)
    for a, b in zip(clean, answer(poisoned), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("levels", [1, 2])
def test_visible_patches_may_come_in_any_order(levels):
    network, (patches, c_noise) = build(levels), inputs()
    mask = draw(network, "patch")
    shown = masks.gather(patches, mask.visible)
    order = torch.stack([torch.randperm(shown.shape[1]) for _ in range(B)])
    mixed = mask._replace(visible=mask.visible.gather(1, order))
    with torch.no_grad():
        expected = masks.gather(network(shown, c_noise, LABELS, mask).visible, order)
        found = network(masks.gather(shown, order), c_noise, LABELS, mixed).visible
    assert torch.equal(found, expected)


def test_patches_that_are_no_whole_squares_are_an_error():
    network, (patches, c_noise) = build(), inputs()
    visible = torch.arange(6).expand(B, -1)
    mask = masks.from_visible(GRID, visible, "patch")
    with pytest.raises(ValueError, match="6 visible patches are not whole squares of 2×2"):
        network(patches[:, :6], c_noise, LABELS, mask)


def test_it_starts_at_zero():
    network, (patches, c_noise) = build(stir=0), inputs()
    assert not network(patches, c_noise, LABELS, masks.Mask(GRID)).visible.any()


# --- the order of tokens -------------------------------------------------------------------------


def test_nested_order_is_square_by_square():
    numbers = torch.arange(32).view(1, 4, 8, 1)
    assert nest(numbers, 1)[0, :3, :, 0].tolist() == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13]]
    first, second = nest(numbers, 2)[0, :, :, 0].tolist()
    assert first == [0, 1, 8, 9, 2, 3, 10, 11, 16, 17, 24, 25, 18, 19, 26, 27]
    assert second == [number + 4 for number in first]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_unnest_is_the_inverse_and_keys_are_places_in_nested_order(levels):
    grid = (8, 16)
    x = torch.randn(2, *grid, 3)
    assert torch.equal(unnest(nest(x, levels), grid, levels), x)
    numbers = nest(torch.arange(128).view(1, *grid, 1), levels).flatten()
    network = build(levels, grid=grid)
    assert torch.equal(network._keys(numbers), torch.arange(128))


# --- what attention knows of places --------------------------------------------------------------


def test_attention_knows_distances_alone():
    network = build(grid=(8, 8))  # 4×4 units
    q, k = torch.randn(2, 1, 1, 1, network.head_width)

    def product(one: int, two: int) -> float:
        turns = (network._turn(torch.tensor([[unit]])) for unit in (one, two))
        q_turned, k_turned = (rotate(x, turn) for x, turn in zip((q, k), turns, strict=True))
        return float((q_turned * k_turned).sum())

    for shift in (1, 4, 5):  # a column, a row, both
        assert product(0, 6) == pytest.approx(product(0 + shift, 6 + shift), abs=1e-5)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert abs(product(0, 1) - product(0, 4)) > 1e-3  # a column is no row
    assert abs(product(0, 1) - product(1, 0)) > 1e-3


def test_at_another_resolution_places_are_those_of_the_old_one():
    """In old units: a unit's middle is at j + 1/4 of its first patch; two new ones are as long."""
    old, new = build(), build(grid=(16, 24))
    new.load_state_dict(interpolate_positions(old.state_dict(), GRID, (16, 24)))
    omega = 100.0 ** (-torch.arange(4) / 4)
    for network, rows, columns in (
        (old, torch.arange(4) + 0.25, torch.arange(6) + 0.25),
        (new, torch.arange(8) / 2, torch.arange(12) / 2),
    ):
        angles = (torch.cartesian_prod(rows, columns)[:, :, None] * omega).flatten(1)
        cos, sin = network._turn(None)
        torch.testing.assert_close(cos[0, 0], angles.cos())
        torch.testing.assert_close(sin[0, 0], angles.sin())


def test_queries_and_keys_are_always_normed():
    torch.manual_seed(0)
    attention, x = Attention(16, 2, qkv_bias=True, qk_norm=True), torch.randn(2, 5, 16)
    turn = torch.ones(1, 1, 5, 4), torch.zeros(1, 1, 5, 4)
    before = attention(x, turn)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 100.0
        attention.qkv.bias[:32] *= 100.0
    torch.testing.assert_close(attention(x, turn), before, rtol=1e-4, atol=1e-4)


# --- local blocks --------------------------------------------------------------------------------


def test_local_blocks_see_their_neighbours_among_visible_units_alone():
    network = build(grid=(8, 8))
    block = network.down[0][0]
    x, c = torch.randn(1, 64, 16), torch.randn(1, 16)

    def changed(shown: Tensor | None, count: int) -> Tensor:
        """Tokens whose output depends on the first token of the sixth unit, (2, 2), in order."""
        seen = x[:, :count].clone().requires_grad_()
        output = block(seen, c, (4, 4), shown)
        place = 4 * (5 if shown is None else int((shown == 5).nonzero()[0, 1]))
        reached = [
            bool(
                torch.autograd.grad(output[0, i].sum(), seen, retain_graph=True)[0][0, place].any()
            )
            for i in range(count)
        ]
        return torch.tensor(reached)

    whole = unnest(changed(None, 64).view(1, 16, 4, 1), (8, 8), 1)[0, ..., 0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(whole, expected)
    # of its neighbours unit 4 is visible, to the left, and unit 0, at the corner
    masked = changed(torch.tensor([[0, 4, 5, 15]]), 16).view(4, 4)
    assert masked.int().tolist() == [[0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


# --- what it costs -------------------------------------------------------------------------------


def test_a_small_network_has_these_parameters_and_costs_this():
    network = Hourglass((16, 16), 48, width=128, depth=3, heads=4)
    assert sum(p.numel() for p in network.parameters()) == 3_683_888
    assert 3 * network.flops(256) / 1e9 == pytest.approx(1.474, abs=5e-4)


@pytest.mark.parametrize(("levels", "visible"), [(1, 96), (1, 24), (2, 96), (2, 32)])
def test_it_costs_what_it_costs_on_paper(levels, visible):
    width, depth, local_depth, ratio, N = 16, 2, 3, 2, 96
    network = build(levels, depth=depth, local_depth=local_depth, mlp_ratio=float(ratio), classes=0)
    coarse, tokens = width << levels, visible >> 2 * levels
    linear = 256 * width + width**2 + 2 * width**2  # time; the head's modulation
    linear += visible * 2 * P * width  # into the network and out of it
    convolution = 0
    for level in range(levels):
        w, T = width << level, visible >> 2 * level
        blocks = 2 * local_depth
        linear += blocks * (3 * width * w + T * 2 * ratio * w**2)  # modulation, MLP
        linear += T * 2 * (2 * w * w)  # merge and split: T/4 tokens of 4w to 2w, and back
        convolution += blocks * (N >> 2 * level) * 9 * w  # on the whole grid
    linear += depth * (6 * width * coarse + tokens * (4 + 2 * ratio) * coarse**2)
    attention = depth * 4 * tokens**2 * coarse
    assert network.flops(visible) == 2 * (linear + convolution) + attention


def test_convolutions_are_a_small_part_of_a_whole_images_cost():
    """As the module says."""
    network = Hourglass((16, 16), 48, width=128, depth=3, heads=4)
    convolutions = 2 * 2 * 256 * 9 * 128
    assert convolutions / network.flops(256) == pytest.approx(0.0024, abs=5e-5)


# --- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"levels": 0}, r"network\.options\.levels 0: give 1 or more, or use .*dit"),
        ({}, {"local_depth": 0}, r"network\.options\.local_depth 0: give 1 or more"),
        ({}, {"levels": 3}, r"levels 3: a grid of 8×12 patches is not divisible by 8; give fewer"),
        ({"width": 18}, {}, r"network\.width 18: .* divisible by 4"),
        ({"width": 12, "heads": 4}, {}, r"network\.heads 4: 24 features .* give fewer heads"),
        ({}, {"levels": "two"}, r"network\.options\.levels: expected a value like 1, got 'two'"),
        ({}, {"levels": 1.5}, r"network\.options\.levels: expected a value like 1, got 1\.5"),
        ({}, {"local_depth": True}, r"local_depth: expected a value like 1, got True"),
        ({}, {"level": 2}, r"'level' is not an option of hourglass; did you mean 'levels'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, options, words):
    settings = config.Network(
        **{"kind": "hourglass", "width": 16, "heads": 2, "options": options, **changes}
    )
    with pytest.raises(UserError, match=words) as raised:
        backbones.build(settings, grid=GRID, patch_dim=P, classes=0)
    assert "\n" not in str(raised.value)
