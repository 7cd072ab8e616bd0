"""Draw docs/architecture.svg: how an image travels from a file to a gradient and to an image.

Three lanes of boxes, read from left to right: data, training, sampling. A box says what it does and
which file does it. The colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["picture"]

PATH = Path(__file__).parent.parent / "docs" / "architecture.svg"
WIDTH, HEIGHT = 1180, 682
BOX_W, BOX_H, STEP = 164, 92, 192
LEFT = 28
LANES = {"data": 76, "training": 296, "sampling": 548}  # top of the boxes
VISIBLE = (1, 6, 11, 12)  # of the 4×4 patches in the small images

STYLE = """
:root { color-scheme: light dark }
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.lane { font-size: 15px; font-weight: 600 }
.title { font-size: 14px; font-weight: 600 }
.line, .note { font-size: 12px }
.note, .file { fill: #57606a }
.file { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 11px }
.paper { fill: #ffffff }
.box { fill: #f4f6f8; stroke: #afb8c1 }
.arrow { stroke: #57606a; stroke-width: 1.6; fill: none }
.head { fill: #57606a }
.seed { stroke: #9a6700; stroke-dasharray: 4 3; stroke-width: 1.4; fill: none }
.seedhead, .seedtext { fill: #9a6700 }
.back { stroke: #1a7f37; stroke-width: 1.6; fill: none }
.backhead, .backtext { fill: #1a7f37 }
.on { fill: #4a90d9 } .off { fill: none; stroke: #afb8c1 } .noisy { fill: #b58bd6 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note, .file { fill: #9aa4af }
  .paper { fill: #0d1117 } .box { fill: #161b22; stroke: #444c56 }
  .arrow { stroke: #9aa4af } .head { fill: #9aa4af }
  .seed { stroke: #d9a53a } .seedhead, .seedtext { fill: #d9a53a }
  .back { stroke: #4cc36a } .backhead, .backtext { fill: #4cc36a }
  .off { stroke: #444c56 }
}
"""


class Box(NamedTuple):
    """A step: its name, two lines on it, and the file that does it."""

    title: str
    lines: tuple[str, str]
    file: str


DATA = [
    Box("files", ("folder, zip, tar, csv,", "arrays, IDX, parquet"), "data/source.py"),
    Box("decode", ("upright, resampled,", "uint8 [H, W, C]"), "data/decode.py"),
    Box("cache", ("mapped into memory;", "with sha256 and label"), "data/cache.py"),
    Box("batch", ("ids by their position;", "mirrored, shifted"), "data/order.py"),
    Box("patches", ("[B, N, P] in [−1, 1]", "at grid positions"), "core/spaces.py"),
]
TRAINING = [
    Box("mask, gather", ("V of N patches stay:", "[B, V, P]"), "core/masks.py"),
    Box("noise", ("x = x0 + σ n", "at the visible patches"), "core/loss.py"),
    Box("backbone", ("positions, c_noise,", "labels → F"), "backbones/"),
    Box("loss", ("F against its target,", "mean an image"), "core/loss.py"),
    Box("gradient", ("over microbatches and", "processes, clipped"), "training/step.py"),
    Box("AdamW, EMA", ("weights, and their", "running average"), "training/optim.py"),
]
SAMPLING = [
    Box("seeds", ("one a sample: its noise", "x = σ_max n [B, N, P]"), "core/samplers.py"),
    Box("σ grid", ("from σ_max to 0", "in a few steps"), "core/samplers.py"),
    Box("sampler", ("Euler, Heun, DPM++,", "ancestral, Langevin"), "core/samplers.py"),
    Box("denoiser", ("x, σ, labels → x0", "from F in closed form"), "core/denoiser.py"),
    Box("pixels", ("patches → images", "→ uint8"), "core/spaces.py"),
    Box("image", ("grid, PNGs or array,", "seeds inside"), "pictures.py"),
]


def picture() -> str:
    """The whole SVG."""
    x = [LEFT + i * STEP for i in range(6)]
    data, training, sampling = LANES.values()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="From a file to a gradient, and from noise to an image">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(LEFT, 34, "Data", "lane"),
        _text(LEFT + 56, 34, "decoded once, found again by the hash of bytes and options", "note"),
        *_lane(DATA, data),
        _grid(x[5] + 48, data + 4, "whole"),
        _text(x[5] + 82, data + 90, "here N = 16", "note", "middle"),
        # from the patches down to the first box of training
        _path(
            f"M{x[4] + BOX_W / 2} {data + BOX_H} V{training - 58} H{x[0] + BOX_W / 2} "
            f"V{training - 8}",
            "arrow",
        ),
        _head(x[0] + BOX_W / 2, training, "head", "down"),
        _text(LEFT, training - 76, "Training", "lane"),
        _text(LEFT + 84, training - 76, "masked stages first, then whole images: V = N", "note"),
        *_lane(TRAINING, training),
        _grid(x[0] + 48, training + 102, "visible"),
        _text(x[0] + 82, training + 186, "hidden patches go no further", "note", "middle"),
        _grid(x[1] + 48, training + 102, "noisy"),
        *_draws(x, data, training),
        # the gradient goes back to the backbone
        _path(
            f"M{x[4] + BOX_W / 2} {training + BOX_H} V{training + BOX_H + 22} "
            f"H{x[2] + BOX_W / 2} V{training + BOX_H + 8}",
            "arrow",
        ),
        _head(x[2] + BOX_W / 2, training + BOX_H, "head", "up"),
        _text(x[3] + BOX_W / 2, training + BOX_H + 40, "backward", "note", "middle"),
        # the averaged weights go to the denoiser
        _path(
            f"M{x[5] + BOX_W / 2} {training + BOX_H} V{sampling - 74} H{x[3] + BOX_W / 2} "
            f"V{sampling - 8}",
            "back",
        ),
        _head(x[3] + BOX_W / 2, sampling, "backhead", "down"),
        _text(
            x[5] + BOX_W / 2 - 10,
            sampling - 84,
            "averaged weights, in checkpoints",
            "note backtext",
            "end",
        ),
        _text(LEFT, sampling - 24, "Sampling", "lane"),
        _text(LEFT + 88, sampling - 24, "also for the grids that a run draws of itself", "note"),
        *_lane(SAMPLING, sampling, skip=(2, 3)),
        *_both_ways(x[2] + BOX_W, x[3], sampling + BOX_H / 2),
        _path(
            f"M{x[2] + BOX_W / 2} {sampling + BOX_H} V{sampling + BOX_H + 22} "
            f"H{x[4] + BOX_W / 2} V{sampling + BOX_H + 8}",
            "arrow",
        ),
        _head(x[4] + BOX_W / 2, sampling + BOX_H, "head", "up"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _lane(boxes: list[Box], top: float, skip: tuple[int, ...] = ()) -> list[str]:
    """Boxes side by side with arrows between them, but none after those of `skip`."""
    parts = []
    for i, box in enumerate(boxes):
        left = LEFT + i * STEP
        parts += [
            f'<rect class="box" x="{left}" y="{top}" width="{BOX_W}" height="{BOX_H}" rx="7"/>',
            _text(left + 12, top + 23, box.title, "title"),
            _text(left + 12, top + 43, box.lines[0], "line"),
            _text(left + 12, top + 59, box.lines[1], "line"),
            _text(left + 12, top + 81, box.file, "file"),
        ]
        if i + 1 < len(boxes) and i not in skip:
            middle = top + BOX_H / 2
            parts += [
                _path(f"M{left + BOX_W} {middle} H{left + STEP - 8}", "arrow"),
                _head(left + STEP, middle, "head", "right"),
            ]
    return parts


def _draws(x: list[int], data: float, training: float) -> list[str]:
    """The seed of everything random, and what it reaches."""
    y = training - 28
    left, right = x[0] + BOX_W - 18, x[1] + BOX_W / 2
    batch = x[3] + BOX_W / 2
    return [
        _path(f"M{right + 40} {y} H{left} V{training - 8}", "seed"),
        _head(left, training, "seedhead", "down"),
        _path(f"M{right} {y} V{training - 8}", "seed"),
        _head(right, training, "seedhead", "down"),
        _path(f"M{right + 352} {y} H{batch} V{data + BOX_H + 8}", "seed"),
        _head(batch, data + BOX_H, "seedhead", "up"),
        _text(right + 48, y + 4, "a key of seed, stage, position", "note seedtext"),
        _text(right + 240, y + 4, "training/seeding.py", "file"),
    ]


def _both_ways(left: float, right: float, y: float) -> list[str]:
    """Two arrows between the sampler and the denoiser."""
    return [
        _path(f"M{left} {y - 9} H{right - 8}", "arrow"),
        _head(right, y - 9, "head", "right"),
        _path(f"M{right} {y + 9} H{left + 8}", "arrow"),
        _head(left, y + 9, "head", "left"),
    ]


def _grid(left: float, top: float, state: str) -> str:
    """4×4 patches: all of them, the visible ones, or the visible ones with noise."""
    side, gap = 14, 3
    cells = []
    for i in range(16):
        shown = state == "whole" or i in VISIBLE
        kind = "off" if not shown else "noisy" if state == "noisy" else "on"
        row, column = divmod(i, 4)
        x, y = left + column * (side + gap), top + row * (side + gap)
        cells.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}"/>')
    return "".join(cells)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{text}</text>'


def _path(d: str, kind: str) -> str:
    return f'<path class="{kind}" d="{d}"/>'


def _head(x: float, y: float, kind: str, towards: str) -> str:
    """An arrowhead whose point is at (x, y)."""
    dx, dy = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}[towards]
    points = [(x, y)]
    points += [(x - 9 * dx + s * 5 * dy, y - 9 * dy + s * 5 * dx) for s in (-1, 1)]
    shown = " ".join(f"{px:g},{py:g}" for px, py in points)
    return f'<polygon class="{kind}" points="{shown}"/>'


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(picture(), encoding="utf-8")
    print(PATH)
