import dataclasses
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from underpaint.core import masks
from underpaint.core.masks import MaskSpec

sides = st.integers(1, 12)
grids = st.tuples(sides, sides)
rates = st.floats(0, 0.95)
kinds = st.sampled_from(masks.KINDS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden_share(spec: MaskSpec, grid: tuple[int, int]) -> float:
    return 1 - masks.visible_count(spec, grid) / (grid[0] * grid[1])


def hidden_map(mask: masks.Mask, batch: int) -> torch.Tensor:
    h, w = mask.grid
    hidden = torch.zeros(batch, h * w, dtype=torch.bool)
    if mask.hidden is not None:
        hidden.scatter_(1, mask.hidden, True)
    return hidden.view(batch, h, w)


# --- promises of every kind


@settings(max_examples=200, deadline=None)
@given(kinds, grids, rates, st.integers(1, 4), st.integers(0, 2**32))
def test_visible_and_hidden_split_the_grid(kind, grid, rate, block, seed):
    block = min(block, *grid)
    spec, N, B = MaskSpec(kind, rate, block=block), grid[0] * grid[1], 5
    try:
        V = masks.visible_count(spec, grid)
    except ValueError:
        assert kind == "crop"  # the others keep a patch at any rate below 1
        assert (1 - rate) * N < 1
        return
    contrast = torch.rand(B, N, generator=seeded(seed))
    mask = masks.draw(spec, grid, B, seeded(seed), contrast=contrast)
    assert mask.grid == grid
    assert 1 <= V <= N
    assert hidden_share(spec, grid) == pytest.approx(1 - V / N)
    if V == N:
        assert mask == masks.Mask(grid)
        return
    assert mask.visible.shape == (B, V)
    assert mask.hidden.shape == (B, N - V)
    assert mask.visible.dtype == mask.hidden.dtype == torch.int64
    for ids in (mask.visible, mask.hidden):
        assert (ids.diff(dim=1) > 0).all()
    everything = torch.cat([mask.visible, mask.hidden], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(N).expand(B, N))


@pytest.mark.parametrize("kind", ["patch", "block", "crop"])
def test_a_generator_determines_the_masks(kind):
    first, again, other = (
        masks.draw(MaskSpec(kind, 0.5), (8, 8), 16, seeded(seed)).visible for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["patch", "block", "crop"])
def test_images_of_a_batch_have_their_own_masks(kind):
    visible = masks.draw(MaskSpec(kind, 0.5), (8, 8), 64, seeded(0)).visible
    assert len(visible.unique(dim=0)) > 5


@pytest.mark.parametrize("kind", ["patch", "block", "crop", "salient"])
def test_with_a_generator_for_each_image_a_mask_depends_on_its_own(kind):
    contrast = torch.rand(3, 64, generator=seeded(0))

    def draw(seeds, rows, rate=0.6):
        generators = [seeded(seed) for seed in seeds]
        spec = MaskSpec(kind, rate)
        return masks.draw(spec, (8, 8), len(seeds), generators, contrast=contrast[rows])

    three = draw([5, 6, 7], [0, 1, 2])
    assert torch.equal(three.visible[1:], draw([6, 7], [1, 2]).visible)
    assert not torch.equal(three.visible[0], three.visible[1])
    if kind in ("patch", "block"):  # a lower rate shows the same and more
        lower = hidden_map(draw([5, 6, 7], [0, 1, 2], rate=0.3), 3)
        assert not (lower & ~hidden_map(three, 3)).any()


# --- rounding


@pytest.mark.parametrize(
    ("kind", "grid", "rate", "block", "visible"),
    [
        ("patch", (16, 16), 0.1, 1, 256 - 25),
        ("patch", (16, 16), 0.9, 1, 256 - 230),
        ("patch", (10, 10), 0.29, 1, 71),  # 0.29 · 100 = 28.999999999999996 in floating point
        ("block", (16, 16), 0.9, 4, 256 - 14 * 16),  # 14 of 16 blocks: 0.875
        ("block", (16, 16), 0.9, 2, 256 - 57 * 4),
        ("block", (7, 7), 0.5, 2, 49 - 24),  # 2 does not divide 7: exactly ⌊rN⌋
        ("salient", (16, 16), 0.9, 1, 256 - 230),
        ("crop", (16, 16), 0.1, 1, 15 * 15),
        ("crop", (16, 16), 0.5, 1, 11 * 11),
        ("crop", (16, 16), 0.9, 1, 5 * 5),
        ("crop", (10, 10), 0.64, 1, 6 * 6),
        ("crop", (8, 16), 0.75, 1, 4 * 8),  # the grid's aspect
        ("crop", (1, 16), 0.5, 1, 1 * 11),
        ("none", (4, 4), 0.5, 1, 16),
    ],
)
def test_rounding_is_the_published_one(kind, grid, rate, block, visible):
    assert masks.visible_count(MaskSpec(kind, rate, block=block), grid) == visible


# --- each kind is what its name says


def test_patches_are_hidden_uniformly():
    B = 4000
    hidden = hidden_map(masks.draw(MaskSpec("patch", 0.5), (4, 4), B, seeded(3)), B).float()
    deviation = math.sqrt(0.25 / B)
    assert (hidden.mean(0) - 0.5).abs().max() < 5 * deviation
    pair = (hidden[:, 0, 0] * hidden[:, 0, 1]).mean()  # neighbours are not tied: 8/16 · 7/15
    assert pair == pytest.approx(8 * 7 / (16 * 15), abs=5 * deviation)


@pytest.mark.parametrize("block", [2, 4])
def test_blocks_are_hidden_whole_and_uniformly(block):
    B, grid = 2000, (8, 16)
    mask = masks.draw(MaskSpec("block", 0.5, block=block), grid, B, seeded(4))
    hidden = hidden_map(mask, B)
    cells = hidden.unfold(1, block, block).unfold(2, block, block).flatten(3)  # [B, ., ., b²]
    assert torch.equal(cells.any(-1), cells.all(-1))
    frequency = hidden.float().mean(0)
    assert (frequency - 0.5).abs().max() < 5 * math.sqrt(0.25 / B)


@settings(max_examples=60, deadline=None)
@given(grids, rates, st.integers(2, 5), st.integers(0, 2**32))
def test_at_most_one_block_is_hidden_in_part(grid, rate, block, seed):
    block = min(block, *grid)
    mask = masks.draw(MaskSpec("block", rate, block=block), grid, 4, seeded(seed))
    for hidden in hidden_map(mask, 4):
        partial = 0
        for rows in hidden.split(block, 0):
            for cell in rows.split(block, 1):  # edge blocks are smaller
                partial += bool(cell.any()) and not bool(cell.all())
        divides = grid[0] % block == 0 and grid[1] % block == 0
        assert partial <= (0 if divides else 1)


def test_a_crop_shows_its_window_and_nothing_else():
    B, grid = 400, (6, 9)
    mask = masks.draw(MaskSpec("crop", 0.5), grid, B, seeded(5))
    shown = ~hidden_map(mask, B)
    for image, (top, left, height, width) in zip(shown, mask.window.tolist(), strict=True):
        assert image[top : top + height, left : left + width].all()
        assert image.sum() == height * width == mask.visible.shape[1]
    places = mask.window[:, :2].unique(dim=0)
    assert len(places) == (6 - 4 + 1) * (9 - 6 + 1)  # every place is met


def test_only_crops_have_a_window():
    for kind in ("patch", "block"):
        assert masks.draw(MaskSpec(kind, 0.5), (4, 4), 2, seeded(0)).window is None


# --- what a network gets


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 30), st.lists(st.integers(1, 3), max_size=2), st.data())
def test_gather_is_indexing(B, N, rest, data):
    V = data.draw(st.integers(1, N))
    x = torch.randn(B, N, *rest)
    ids = torch.stack([torch.randperm(N)[:V] for _ in range(B)])
    picked = masks.gather(x, ids)
    assert torch.equal(picked, torch.stack([x[b, ids[b]] for b in range(B)]))
    assert masks.gather(x, None) is x


def test_of_a_whole_image_all_patches_are_visible():
    x = torch.randn(2, 16, 3)
    assert masks.gather(x, masks.Mask((4, 4)).visible) is x


# --- rates over a stage


def test_a_constant_rate_is_one_level():
    assert masks.rate_levels(MaskSpec("patch", 0.75), (8, 8), 0.1, "constant") == [(0.0, 0.75)]
    assert masks.rate_levels(MaskSpec("none", 0.75), (8, 8), 0.1, "linear") == [(0.0, 0.0)]


@settings(max_examples=100, deadline=None)
@given(grids, rates, rates, st.sampled_from(["linear", "cos4"]))
def test_levels_go_from_start_to_end_in_few_shapes(grid, rate, rate_end, schedule):
    spec = MaskSpec("patch", rate)
    levels = masks.rate_levels(spec, grid, rate_end, schedule)
    starts = [start for start, _ in levels]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < 1
    counts = [masks.visible_count(spec.at(r), grid) for _, r in levels]
    assert len(counts) <= 8
    assert len(set(counts)) == len(counts)  # no shape comes twice
    assert counts == sorted(counts, reverse=rate < rate_end)
    assert counts[0] == masks.visible_count(spec, grid)
    assert counts[-1] == masks.visible_count(spec.at(rate_end), grid)


def test_schedules_follow_their_formula():
    linear = masks.rate_levels(MaskSpec("patch", 0.7), (64, 64), 0.0, "linear")
    assert [r for _, r in linear] == pytest.approx([0.7 * (1 - i / 7) for i in range(8)])
    cos4 = masks.rate_levels(MaskSpec("patch", 0.5), (64, 64), 0.0, "cos4")
    expected = [0.5 * math.cos(math.pi / 2 * i / 7) ** 4 for i in range(8)]
    assert [r for _, r in cos4] == pytest.approx(expected)
    assert [start for start, _ in cos4] == [i / 8 for i in range(8)]


# --- masks in units, squares of patches that a network's coarse tokens stand for

units = st.sampled_from([2, 4])
small = st.tuples(st.integers(1, 6), st.integers(1, 6))


def enlarged(hidden: torch.Tensor, unit: int) -> torch.Tensor:
    """Each place of [B, h, w] as a square of unit × unit."""
    return hidden.repeat_interleave(unit, 1).repeat_interleave(unit, 2)


@settings(max_examples=150, deadline=None)
@given(kinds, small, units, rates, st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
def test_masks_in_units_are_those_of_a_grid_of_units(kind, few, unit, rate, block, each, seed):
    """Patch by patch the same squares, from the same generator; blocks are rounded up."""
    B, grid = 4, (few[0] * unit, few[1] * unit)
    block = min(block, unit * min(few))
    spec = MaskSpec(kind, rate, block=block, unit=unit, reweight=True)
    of_units = MaskSpec(kind, rate, block=math.ceil(block / unit), reweight=True)
    if kind == "crop":
        of_units = MaskSpec(kind, rate, multiple=unit)
    try:
        V = masks.visible_count(spec, grid)
    except ValueError:
        assert kind == "crop" or math.prod(few) == 1
        return
    contrast = torch.rand(B, *few, generator=seeded(seed))

    def draw(spec, grid, contrast):
        generator = [seeded(seed + i) for i in range(B)] if each else seeded(seed)
        return masks.draw(spec, grid, B, generator, contrast=contrast)

    mask = draw(spec, grid, enlarged(contrast, unit).flatten(1))
    hidden = hidden_map(mask, B)
    if kind == "crop":
        assert torch.equal(hidden, hidden_map(draw(of_units, grid, None), B))
        return
    plain = draw(of_units, few, contrast.flatten(1))
    assert unit**2 * masks.visible_count(of_units, few) == V
    assert hidden_share(spec, grid) == pytest.approx(hidden_share(of_units, few))
    assert torch.equal(hidden, enlarged(hidden_map(plain, B), unit))
    if mask.weights is not None:
        every = torch.zeros(B, math.prod(grid)).scatter_(1, mask.visible, mask.weights)
        of_plain = torch.zeros(B, math.prod(few)).scatter_(1, plain.visible, plain.weights)
        expected = enlarged(of_plain.view(B, *few), unit).flatten(1)
        torch.testing.assert_close(every, expected)


@pytest.mark.parametrize(
    ("kind", "grid", "rate", "block", "unit", "visible"),
    [
        ("patch", (16, 16), 0.9, 1, 2, 4 * (64 - 57)),
        ("patch", (16, 16), 0.5, 1, 4, 16 * 8),
        ("block", (16, 16), 0.9, 2, 2, 4 * (64 - 57)),  # a block is a unit
        ("block", (16, 16), 0.9, 3, 2, 4 * (64 - 56)),  # 2×2 units: 14 of 16 blocks
        ("block", (12, 12), 0.9, 4, 2, 4 * (36 - 32)),  # 8 of 9 blocks of 2×2 units
        ("block", (10, 10), 0.5, 4, 2, 4 * (25 - 12)),  # 2 does not divide 5: ⌊rN⌋ units
        ("salient", (16, 16), 0.9, 1, 2, 4 * (64 - 57)),
        ("crop", (16, 16), 0.9, 1, 2, 6 * 6),  # ⌊5.06⌋ = 5, to the nearest multiple: 6
        ("crop", (16, 16), 0.9, 1, 4, 4 * 4),
        ("none", (16, 16), 0.9, 1, 2, 256),
    ],
)
def test_rounding_is_to_units(kind, grid, rate, block, unit, visible):
    spec = MaskSpec(kind, rate, block=block, unit=unit)
    assert masks.visible_count(spec, grid) == visible
    N = grid[0] * grid[1]
    assert hidden_share(spec, grid) == pytest.approx(1 - visible / N)


@pytest.mark.parametrize(("multiple", "unit", "both"), [(1, 2, 2), (4, 2, 4), (3, 2, 6), (2, 4, 4)])
def test_crops_keep_to_multiples_and_units(multiple, unit, both):
    spec = MaskSpec("crop", 0.6, multiple=multiple, unit=unit)
    assert spec.crop_multiple == both
    window = masks.draw(spec, (24, 24), 200, seeded(8)).window
    assert not (window % both).any()
    plain = MaskSpec("crop", 0.6, multiple=both)
    assert torch.equal(window, masks.draw(plain, (24, 24), 200, seeded(8)).window)


@settings(max_examples=100, deadline=None)
@given(
    kinds,
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    units,
    rates,
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_masks_said_to_be_in_units_are(kind, few, unit, rate, block, multiple, seed):
    """And blocks that are fit are drawn, in patches or in units, from the same numbers."""
    grid = (few[0] * unit, few[1] * unit)
    spec = MaskSpec(kind, rate, block=min(block, *grid), multiple=multiple)
    if not spec.in_units(unit, grid) or grid[0] % multiple or grid[1] % multiple:
        return
    try:
        masks.visible_count(spec, grid)
    except ValueError:
        assert kind == "crop"
        return
    mask = masks.draw(spec, grid, 3, seeded(seed))
    hidden = hidden_map(mask, 3)
    assert torch.equal(hidden, enlarged(hidden[:, ::unit, ::unit], unit))
    if math.prod(few) > 1:
        in_units = masks.draw(dataclasses.replace(spec, unit=unit), grid, 3, seeded(seed))
        assert torch.equal(hidden, hidden_map(in_units, 3))


@pytest.mark.parametrize(
    ("spec", "unit", "grid", "fit"),
    [
        (MaskSpec("none"), 4, (8, 8), True),
        (MaskSpec("patch", 0.5), 2, (8, 8), False),
        (MaskSpec("patch", 0.5), 1, (8, 8), True),
        (MaskSpec("patch", 0.5, unit=4), 2, (8, 8), True),
        (MaskSpec("block", 0.5, block=4), 2, (8, 8), True),
        (MaskSpec("block", 0.5, block=2), 4, (8, 8), False),
        (MaskSpec("block", 0.5, block=4), 2, (8, 12), True),
        (MaskSpec("block", 0.5, block=4), 2, (8, 10), False),  # a block may be hidden in part
        (MaskSpec("crop", 0.5), 2, (8, 8), False),
        (MaskSpec("crop", 0.5, multiple=4), 2, (8, 8), True),
        (MaskSpec("salient", 0.5), 2, (8, 8), False),
    ],
)
def test_it_is_known_which_masks_are_in_units(spec, unit, grid, fit):
    assert spec.in_units(unit, grid) == fit


@pytest.mark.parametrize("kind", ["patch", "block"])
def test_without_units_masks_are_drawn_as_ever(kind):
    """The smallest keys are hidden: a number a patch, or the rank of its block."""
    spec, grid, B = MaskSpec(kind, 0.6), (6, 8), 5
    generator = seeded(9)
    if kind == "patch":
        key = torch.rand(B, 48, generator=generator)
    else:
        rank = torch.rand(B, 12, generator=generator).argsort(1).argsort(1).float()
        key = enlarged(rank.view(B, 3, 4), 2).flatten(1)
    count = {"patch": 28, "block": 28}[kind]  # ⌊0.6 · 48⌋, seven blocks of 4
    hidden = torch.zeros(B, 48, dtype=torch.bool)
    hidden.scatter_(1, key.sort(dim=1, stable=True).indices[:, :count], True)
    assert torch.equal(hidden_map(masks.draw(spec, grid, B, seeded(9)), B), hidden.view(B, 6, 8))


@pytest.mark.parametrize("kind", masks.KINDS)
def test_a_grid_that_is_not_of_whole_units_is_refused(kind):
    with pytest.raises(ValueError, match="6×8 patches does not consist of squares of 4×4"):
        masks.visible_count(MaskSpec(kind, 0.5, unit=4), (6, 8))


@pytest.mark.parametrize("kind", ["patch", "block", "salient"])
def test_of_a_single_unit_no_part_can_be_hidden(kind):
    spec = MaskSpec(kind, 0.5, unit=4)
    with pytest.raises(ValueError, match="4×4 is only one; use mask none, smaller") as raised:
        masks.visible_count(spec, (4, 4))
    assert "\n" not in str(raised.value)
    assert masks.visible_count(spec.at(0.0), (4, 4)) == 16


def test_a_block_that_is_larger_than_the_grid_is_named_in_patches():
    words = "8×8 patches holds no block of 9×9; give a block from 1 to 8"
    with pytest.raises(ValueError, match=words):
        masks.visible_count(MaskSpec("block", 0.5, block=9, unit=2), (8, 8))


# --- wrong use is one sentence


@pytest.mark.parametrize(
    ("kind", "grid", "rate", "block", "words"),
    [
        ("patch", (4, 4), 1.0, 2, "rate 1"),
        ("patch", (4, 4), -0.1, 2, "rate -0.1"),
        ("patch", (4, 4), math.nan, 2, "rate nan"),
        ("block", (2, 2), 0.5, 4, "no block of 4×4"),
        ("block", (2, 2), 0.5, 0, "no block of 0×0"),
        ("crop", (4, 4), 0.99, 2, "no visible patch"),
        ("patch", (4, 4), 1 - 1e-15, 2, "no visible patch"),
        ("stripes", (4, 4), 0.5, 2, "stripes"),
    ],
)
def test_impossible_masks_are_refused(kind, grid, rate, block, words):
    with pytest.raises(ValueError, match=words) as raised:
        masks.visible_count(MaskSpec(kind, rate, block=block), grid)
    assert "\n" not in str(raised.value)


# --- crops in multiples, as a U-Net wants them


@settings(max_examples=200, deadline=None)
@example((2, 3), 1e-9, 1, 0)  # all but rounding is shown: both sides must agree that it is all
@example((2, 4), 0.75 + 1e-9, 1, 0)
@given(grids, rates, st.integers(1, 4), st.integers(0, 2**32))
def test_crops_keep_to_multiples(grid, rate, multiple, seed):
    grid = (grid[0] * multiple, grid[1] * multiple)
    spec = MaskSpec("crop", rate, multiple=multiple)
    try:
        V = masks.visible_count(spec, grid)
    except ValueError:
        assert (1 - rate) * grid[0] * grid[1] < 1
        return
    height, width = masks.crop_sides(grid, V, multiple)
    assert height * width == V
    assert height % multiple == width % multiple == 0
    mask = masks.draw(spec, grid, 5, seeded(seed))
    if grid[0] * grid[1] == V:
        assert mask == masks.Mask(grid)
        return
    assert not (mask.window % multiple).any()
    assert (mask.window[:, 2:] == torch.tensor([height, width])).all()
    assert (mask.window[:, :2] >= 0).all()
    assert (mask.window[:, :2] + mask.window[:, 2:] <= torch.tensor(grid)).all()
    rows, columns = mask.visible // grid[1], mask.visible % grid[1]
    inside = torch.stack([rows, columns], 2) - mask.window[:, None, :2]
    assert ((inside >= 0) & (inside < mask.window[:, None, 2:])).all()


@pytest.mark.parametrize(
    ("rate", "multiple", "side"),
    # 32 patches a side: ⌊32 √(1−r)⌋ is 10, 16, 22, 30
    [(0.9, 1, 10), (0.9, 8, 8), (0.75, 8, 16), (0.5, 8, 24), (0.1, 8, 32), (0.99, 8, 8)],
)
def test_a_crop_is_rounded_to_the_nearest_multiple(rate, multiple, side):
    spec = MaskSpec("crop", rate, multiple=multiple)
    assert masks.visible_count(spec, (32, 32)) == side**2
    realised = hidden_share(spec, (32, 32))
    assert realised == pytest.approx(1 - (side / 32) ** 2)


@pytest.mark.parametrize("side", [10, 20])
def test_a_crop_loses_no_row_to_rounding(side):
    """√(1 − 0.91) is 0.3, in floating point a little less."""
    assert int(math.sqrt(1 - 0.91) * side) < 0.3 * side
    assert masks.visible_count(MaskSpec("crop", 0.91), (side, side)) == (3 * side // 10) ** 2


def test_every_corner_on_the_multiples_is_drawn():
    window = masks.draw(MaskSpec("crop", 0.75, multiple=2), (8, 8), 400, seeded(6)).window
    corners = {tuple(corner) for corner in window[:, :2].tolist()}
    assert corners == {(top, left) for top in (0, 2, 4) for left in (0, 2, 4)}


@pytest.mark.parametrize("kind", ["patch", "block"])
def test_other_masks_know_no_multiples(kind):
    plain = masks.draw(MaskSpec(kind, 0.5), (8, 8), 3, seeded(7)).visible
    again = masks.draw(MaskSpec(kind, 0.5, multiple=4), (8, 8), 3, seeded(7)).visible
    assert torch.equal(plain, again)


def test_levels_of_a_crop_count_its_multiples():
    spec = MaskSpec("crop", 0.9, multiple=8)
    levels = masks.rate_levels(spec, (32, 32), 0.0, "linear")
    counts = [masks.visible_count(spec.at(rate), (32, 32)) for _, rate in levels]
    assert counts == sorted(set(counts))
    assert counts[0] == 64
    assert counts[-1] == 1024


def test_a_count_that_no_crop_has_is_an_error():
    with pytest.raises(ValueError, match="multiples of 2"):
        masks.crop_sides((8, 8), 9, 2)
