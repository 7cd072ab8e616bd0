"""A part of images drawn anew: `inpaint`, `outpaint` and `restore`.

The space decides where the known part is put in: pixels as they are; wavelets through their inverse
(white noise of coefficients is white noise of pixels, 2^levels as large); latents where none of a
latent's pixels are erased, with the erased pixels filled by the nearest kept ones before encoding.
There the model's image of the kept part is not quite the truth, so a seam shows. `soft` pixels of
the erased part hide it: the difference, averaged over the kept pixels nearby, is added to what was
drawn, less and less with the distance to the edge.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core import alpha, inpainting, spaces
from underpaint.core.samplers import Draw
from underpaint.editing.drawing import Drawing, Pictures, checked
from underpaint.errors import UserError

RESAMPLE = 5  # times that each step is taken
SOFT = 2  # pixels in which a seam is hidden

Keep = NDArray[np.bool_]  # [n, H, W]: True where an image stays


def inpaint(
    drawing: Drawing, images: Pictures, keep: NDArray[np.bool_], resample: int, soft: int
) -> Pictures:
    """Draw what `keep` leaves out: see `Model.inpaint`."""
    images = checked(drawing, images)
    kept = _kept(keep, len(images), drawing.space)
    step = drawing.counter(_steps(drawing, resample))
    found = np.empty_like(images)
    for part, source, first in drawing.parts():
        chosen = slice(part.start, part.stop)
        paint = partial(_paint, drawing, part, source.step, resample, soft, step)
        found[chosen] = paint(images[chosen], kept[chosen], first)
    return found


def outpaint(
    drawing: Drawing,
    images: Pictures,
    margins: tuple[int, int, int, int],
    resample: int,
    soft: int,
) -> Pictures:
    """Draw margins (top, right, bottom, left) around images: see `Model.outpaint`."""
    top, right, bottom, left = margins
    images = checked(drawing, images, any_size=True)
    if min(margins) < 0 or max(margins) == 0:
        raise UserError(
            f"outpaint by {top}, {right}, {bottom} and {left} pixels (top, right, bottom, left): "
            "give at least one edge some pixels, and none less than 0"
        )
    H, W = drawing.space.size
    frame = ((0, 0), (top, bottom), (left, right))
    canvas = np.pad(images, (*frame, (0, 0)))
    kept = np.pad(np.ones(images.shape[:3], np.bool_), frame)
    if canvas.shape[1] < H or canvas.shape[2] < W:
        raise UserError(
            f"outpaint to {canvas.shape[1]}×{canvas.shape[2]} pixels: this model draws {H}×{W}, "
            "and the result has to be at least as large; give larger margins"
        )
    order = _windows(kept[0], (H, W))
    step = drawing.counter(_steps(drawing, resample) * len(order))
    for part, source, first in drawing.parts():
        paint = partial(_paint, drawing, part, source.step, resample, soft, step)
        x = first
        for y, z in order:
            window = (slice(part.start, part.stop), slice(y, y + H), slice(z, z + W))
            canvas[window] = paint(canvas[window], kept[window], x)
            kept[window] = True
            x = source.step().to(drawing.device)
    return canvas


def restore(
    drawing: Drawing,
    patches: NDArray[np.uint8],
    positions: NDArray[np.integer],
    resample: int,
    soft: int,
) -> Pictures:
    """Images from some of their patches: see `Model.restore`."""
    (H, W), C = drawing.space.size, drawing.space.channels
    patches, positions = np.asarray(patches), np.asarray(positions)
    side = math.isqrt(patches.shape[-1] // C) if patches.ndim == 3 else 0
    if not (
        patches.dtype == np.uint8
        and patches.ndim == 3
        and side > 0
        and C * side**2 == patches.shape[2]
        and positions.shape == patches.shape[:2]
        and H % side == W % side == 0
    ):
        raise UserError(
            f"patches {patches.dtype} {list(patches.shape)} at positions {list(positions.shape)} "
            f"are not of this model's images, {H}×{W}×{C}; give uint8 [n, V, {C}·p²] and [n, V], "
            "as sealed data hold them"
        )
    n, grid = len(patches), (H // side, W // side)
    if positions.size and not 0 <= positions.min() <= positions.max() < math.prod(grid):
        raise UserError(
            f"positions from {positions.min()} to {positions.max()}: this model's images have "
            f"{math.prod(grid)} patches of {side}×{side} pixels, numbered from 0"
        )
    whole = np.zeros((n, math.prod(grid), patches.shape[2]), np.uint8)
    shown = np.zeros((n, math.prod(grid)), np.bool_)
    lines = np.arange(n)[:, None]
    whole[lines, positions], shown[lines, positions] = patches, True
    planes = spaces.to_planes(torch.from_numpy(whole).float(), grid, side)
    premultiplied = planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    kept = shown.reshape(n, *grid).repeat(side, 1).repeat(side, 2)
    return inpaint(drawing, alpha.straight(premultiplied), kept, resample, soft)


def _paint(
    drawing: Drawing,
    part: range,
    draw: Draw,
    resample: int,
    soft: int,
    step: Callable[[], None],
    images: Pictures,
    keep: Keep,
    first: Tensor,
) -> Pictures:
    """One batch, `first` [B, N, P] being its standard normal noise."""
    space = drawing.space
    kept = torch.from_numpy(keep.copy())[:, None].to(drawing.device)  # [B, 1, H, W]
    images_in = np.where(keep[..., None], images, 0).astype(np.uint8)  # what is erased is not read
    known = spaces.from_uint8(images_in).to(drawing.device)
    if drawing.vae is None:
        truth, cells = space.encode(known), kept
    else:
        filled = _nearest(known.cpu(), keep).to(drawing.device)
        truth = space.encode(drawing.vae.latents(filled))
        cells = -F.max_pool2d(-kept.float(), drawing.vae.factor) > 0.5
        if not cells.flatten(1).any(1).all():
            raise UserError(
                f"too little is kept: of {drawing.vae.factor}×{drawing.vae.factor} pixels, for "
                "which a latent of this model stands, none are kept as a whole; keep more"
            )

    def mix(x: Tensor, other: Tensor) -> Tensor:
        return space.encode(torch.where(cells, space.decode(other), space.decode(x)))

    end = inpainting.repaint(
        drawing.denoise(part),
        first * float(drawing.sigmas[0]),
        drawing.sigmas,
        drawing.sampling,
        truth,
        mix,
        noise=draw,
        resample=resample,
        callback=step,
    )
    # of latents the known ones are put back before they are decoded
    drawn = drawing.images(end if drawing.vae is None else mix(end, truth))
    if soft:
        drawn = drawn.cpu() + _seam(known.cpu() - drawn.cpu(), keep, soft)
    return np.where(keep[..., None], images, spaces.to_uint8(drawn).numpy())


def _nearest(images: Tensor, keep: Keep) -> Tensor:
    """Images [B, C, H, W], each erased pixel as the kept one nearest to it."""
    from scipy import ndimage

    filled = []
    for image, kept in zip(images, keep, strict=True):
        rows, columns = ndimage.distance_transform_edt(
            ~kept, return_distances=False, return_indices=True
        )
        filled.append(image[:, rows, columns])
    return torch.stack(filled)


def _seam(difference: Tensor, keep: Keep, soft: int) -> Tensor:
    """What to add to the erased pixels: the `difference` [B, C, H, W] of the kept ones nearby.

    Their mean with Gaussian weights of deviation soft/2, times 1 − d/(soft + 1) at the distance d.
    """
    from scipy import ndimage

    added = torch.zeros_like(difference)
    blur = partial(ndimage.gaussian_filter, sigma=soft / 2, mode="constant", truncate=6.0)
    for i, kept in enumerate(keep):
        weights = blur(kept.astype(np.float64))
        share = np.clip(1 - ndimage.distance_transform_edt(~kept) / (soft + 1), 0, 1)
        share = np.where(kept, 0, share) / np.maximum(weights, 1e-12)
        for c, plane in enumerate(difference[i].double().numpy()):
            found = share * blur(np.where(kept, plane, 0))
            added[i, c] = torch.from_numpy(found).to(added)
    return added


def _windows(known: NDArray[np.bool_], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners (row, column) of windows that fill what is not `known`; most known ones first.

    They overlap by half where the image is larger than a window.
    """
    known, order = known.copy(), []
    (H, W), (h, w) = known.shape, size
    rows = sorted({*range(0, H - h + 1, max(1, h // 2)), H - h})
    columns = sorted({*range(0, W - w + 1, max(1, w // 2)), W - w})

    def share(corner: tuple[int, int]) -> int:
        y, x = corner
        return int(known[y : y + h, x : x + w].sum())

    left = {(y, x) for y in rows for x in columns}
    while not known.all():
        left = {corner for corner in left if share(corner) < h * w}
        y, x = max(sorted(left), key=share)
        known[y : y + h, x : x + w] = True
        order.append((y, x))
    return order


def _steps(drawing: Drawing, resample: int) -> int:
    """Steps of a batch. Raises UserError for a sampler or a number of times that cannot be."""
    try:
        inpainting.check(drawing.sampling)
        return len(inpainting.steps(drawing.sigmas, resample))
    except ValueError as error:
        raise UserError(str(error)) from None


def _kept(keep: NDArray[np.bool_], n: int, space: spaces.Space) -> Keep:
    """`keep` as [n, H, W]: of pixels or patches, one for all or for each."""
    H, W = space.size
    keep = np.asarray(keep)
    patches = keep.shape[-2:] == space.grid
    fits = keep.ndim in (2, 3) and (patches or keep.shape[-2:] == (H, W))
    if keep.dtype != np.bool_ or not fits or (keep.ndim == 3 and len(keep) not in (1, n)):
        h, w = space.grid
        raise UserError(
            f"keep {keep.dtype} {list(keep.shape)} was given for {n} images; expected booleans, "
            f"True where an image stays, of pixels [{H}, {W}] or patches [{h}, {w}], or "
            f"{n} of them"
        )
    if patches:
        keep = keep.repeat(H // space.grid[0], -2).repeat(W // space.grid[1], -1)
    keep = np.broadcast_to(keep, (n, H, W))
    for i, kept in enumerate(keep):
        if kept.all() or not kept.any():
            said = "keeps everything" if kept.any() else "keeps nothing"
            advice = "erase a part" if kept.any() else "keep a part, or sample"
            raise UserError(f"the mask of image {i} {said}, so there is nothing to do; {advice}")
    return keep
