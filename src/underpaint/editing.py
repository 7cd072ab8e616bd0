"""Editing images with a trained model: repaint a part, widen, vary, go from one to another.

    inpaint      what is erased is drawn anew, given what is kept     RePaint, arXiv 2201.09865
    outpaint     what lies beyond the edges                           the same, window by window
    restore      what sealed data do not hold                         the same
    vary         the image noised to a level, and drawn from there  SDEdit, arXiv 2108.01073
    interpolate  from one seed's noise to another's, along the sphere

Images are uint8 [n, H, W, C]. What is kept comes back as it was given, bit for bit, and nothing
of what is erased is read. Image i is drawn with its own seed, whatever the batch.

The space decides where the known part is put in: pixels as they are; wavelets through their inverse
(white noise of coefficients is white noise of pixels, 2^levels as large); latents where none of a
latent's pixels are erased, with the erased pixels filled by the nearest kept ones before encoding.
There the model's image of the kept part is not quite the truth, so a seam shows. `soft` pixels of
the erased part hide it: the difference, averaged over the kept pixels nearby, is added to what was
drawn, less and less with the distance to the edge.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core import alpha, inpainting, samplers, spaces
from underpaint.core.samplers import Denoise, Draw, Sampling, SeededNoise
from underpaint.errors import UserError
from underpaint.progress import At
from underpaint.vae import VAE

RESAMPLE = 5  # times that each step is taken
SOFT = 2  # pixels in which a seam is hidden

Pictures = NDArray[np.uint8]  # [n, H, W, C]
Keep = NDArray[np.bool_]  # [n, H, W]: True where an image stays


@dataclass(frozen=True)
class Drawing:
    """All that a model needs to draw n images; `Model` makes it."""

    seeds: Sequence[int]  # [n]
    space: spaces.Space
    vae: VAE | None
    sampling: Sampling
    sigmas: Tensor  # [steps + 1]
    denoise: Callable[[range], Denoise]  # of some of the images, with their labels
    images: Callable[[Tensor], Tensor]  # patches → [B, C, H, W], through the autoencoder
    device: torch.device
    batch: int
    at: At  # how far it is

    def parts(self) -> Iterator[tuple[range, SeededNoise, Tensor]]:
        """Batches: which images, their noise, and its first draw [B, N, P]."""
        n, shape = len(self.seeds), (math.prod(self.space.grid), self.space.patch_dim)
        for start in range(0, n, self.batch):
            part = range(start, min(start + self.batch, n))
            source = SeededNoise([self.seeds[i] for i in part])
            yield part, source, source.initial(shape).to(self.device)

    def counter(self, steps: int) -> Callable[[], None]:
        """To be called after each step; `steps`: of one batch. `at` hears of all of them."""
        total, done = steps * -(-len(self.seeds) // self.batch), 0

        def step() -> None:
            nonlocal done
            done += 1
            self.at(done, total)

        return step


# --- a part drawn anew -----------------------------------------------------------------------


def inpaint(
    drawing: Drawing, images: Pictures, keep: NDArray[np.bool_], resample: int, soft: int
) -> Pictures:
    """Draw what `keep` leaves out: see `Model.inpaint`."""
    images = _checked(drawing, images)
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
    images = _checked(drawing, images, any_size=True)
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


# --- whole images --------------------------------------------------------------------------


def vary(drawing: Drawing, images: Pictures, strength: float) -> Pictures:
    """Noise images to a level, and draw them from there: see `Model.vary`."""
    images = _checked(drawing, images)
    if not 0 < strength <= 1:
        raise UserError(
            f"strength {strength:g}: give a number above 0 (the image as it is), up to 1 "
            "(nothing of it is left)"
        )
    levels = _from(drawing.sigmas, strength)
    step = drawing.counter(len(levels) - 1)
    found = np.empty_like(images)
    for part, source, first in drawing.parts():
        chosen, x = slice(part.start, part.stop), first * float(levels[0])
        if strength < 1:
            x = x + _encoded(drawing, spaces.from_uint8(images[chosen]).to(drawing.device))
        found[chosen] = _sampled(drawing, part, x, levels, source.step, step)
    return found


def interpolate(drawing: Drawing, seed_a: int, seed_b: int) -> Pictures:
    """Images between those of two seeds, whatever `drawing.seeds`: see `Model.interpolate`."""
    if drawing.sampling.sampler in samplers.NOISY:
        raise UserError(
            f"sampler {drawing.sampling.sampler} adds noise of its own at every step, between "
            "which nothing can be interpolated; use euler, heun or dpm++"
        )
    for seed in (seed_a, seed_b):
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: give a whole number from 0 to 2^63 - 1")
    n = len(drawing.seeds)
    if n < 2:
        raise UserError(f"{n} images to interpolate two seeds: both ends alone are 2; give more")
    shape = (math.prod(drawing.space.grid), drawing.space.patch_dim)
    a, b = (SeededNoise([seed]).initial(shape)[0] for seed in (seed_a, seed_b))
    noise = torch.stack([slerp(a, b, i / (n - 1)) for i in range(n)])
    step = drawing.counter(len(drawing.sigmas) - 1)
    found = np.empty((n, *drawing.space.size, drawing.space.channels), np.uint8)
    for part, source, _ in drawing.parts():
        chosen = slice(part.start, part.stop)
        x = noise[chosen].to(drawing.device) * float(drawing.sigmas[0])
        found[chosen] = _sampled(drawing, part, x, drawing.sigmas, source.step, step)
    return found


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a (t = 0) to b (t = 1) along the sphere; the norm goes evenly from a's to b's.

    Where the noise of a straight line would be too small: by √½ in its middle.
    """
    if t in (0, 1):
        return b if t else a
    norms = a.norm(), b.norm()
    u, v = a / norms[0], b / norms[1]
    angle = torch.acos((u * v).sum().clamp(-1, 1))
    if angle < 1e-4:  # the line and the sphere are the same there
        found = (1 - t) * u + t * v
    else:
        found = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return found / found.norm() * ((1 - t) * norms[0] + t * norms[1])


def _from(sigmas: Tensor, strength: float) -> Tensor:
    """The levels from the one at which the last `strength` of the steps begin.

    A level between two of the grid is found between their logarithms, below the last one linearly.
    """
    place = (1 - strength) * (len(sigmas) - 1)
    i = min(int(place), len(sigmas) - 2)
    rest, (high, low) = place - i, sigmas[i : i + 2].tolist()
    start = high ** (1 - rest) * low**rest if low > 0 else high * (1 - rest)
    return torch.cat([sigmas.new_tensor([start]), sigmas[i + 1 :]])


def _sampled(
    drawing: Drawing, part: range, x: Tensor, levels: Tensor, draw: Draw, step: Callable[[], None]
) -> Pictures:
    """x [B, N, P] at the first level, drawn to the end."""
    x0 = samplers.sample(
        drawing.denoise(part),
        x,
        levels,
        drawing.sampling,
        noise=draw,
        callback=lambda i, x, x0: step(),
    )
    return spaces.to_uint8(drawing.images(x0)).numpy()


def _encoded(drawing: Drawing, planes: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] → patches [B, N, P], through the autoencoder if any."""
    return drawing.space.encode(planes if drawing.vae is None else drawing.vae.latents(planes))


# --- what was given --------------------------------------------------------------------------


def _steps(drawing: Drawing, resample: int) -> int:
    """Steps of a batch. Raises UserError for a sampler or a number of times that cannot be."""
    try:
        inpainting.check(drawing.sampling)
        return len(inpainting.steps(drawing.sigmas, resample))
    except ValueError as error:
        raise UserError(str(error)) from None


def _checked(drawing: Drawing, images: Pictures, any_size: bool = False) -> Pictures:
    """The images, if they are the model's."""
    (H, W), C = drawing.space.size, drawing.space.channels
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != C:
        size = "H, W" if any_size else f"{H}, {W}"
        raise UserError(
            f"images {images.dtype} {list(images.shape)} were given; this model takes uint8 "
            f"[n, {size}, {C}]"
        )
    if not any_size and images.shape[1:3] != (H, W):
        raise UserError(
            f"images of {images.shape[1]}×{images.shape[2]} pixels were given; this model takes "
            f"{H}×{W}"
        )
    return images


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
