"""Draw the kinds of mask on an avatar: what the network sees of it while it is pre-trained."""

from pathlib import Path

import torch

import underpaint as up
from underpaint import config, pictures
from underpaint.core import masks, spaces

KINDS = ("none", "patch", "block", "crop")
RATE, ROWS = 0.75, 2
OUT = Path("masks.png")

heads = up.prepare(config.Data(source="avatars:lorelei"))
space = spaces.build("pixels", heads.size, heads.channels, patch=4)  # 8×8 patches of 4×4
patches = space.encode(spaces.from_uint8(heads.images[:ROWS]))  # [B, N, P]
generator = torch.Generator().manual_seed(0)

shown = []
for kind in KINDS:
    spec = masks.MaskSpec(kind, RATE if kind != "none" else 0.0)
    mask = masks.draw(spec, space.grid, len(patches), generator)
    canvas = patches.clone()
    if mask.hidden is not None:  # None: nothing is hidden
        canvas.scatter_(1, mask.hidden[:, :, None].expand(-1, -1, space.patch_dim), 0.0)  # grey
    shown.append(spaces.to_uint8(space.decode(canvas)))
    N = patches.shape[1]
    rate = 1 - masks.visible_count(spec, space.grid) / N  # after rounding
    print(f"{kind}: {rate:.1%} of {N} patches hidden")

images = torch.stack(shown, dim=1).flatten(0, 1).numpy()  # a row an avatar, a column a kind
pictures.save_grid(OUT, images, len(KINDS), KINDS)
print(OUT)
