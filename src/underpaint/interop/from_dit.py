"""DiT by its authors' names (Peebles and Xie 2023), as diffusers' conversion script knows them.

It computes what diffusers does with these weights: time frequencies over 127 (`dit_weights`). The
noise is not in the weights: DDPM's 1000 linear steps and eps are what was published.
"""

from pathlib import Path

import torch
from torch import Tensor

from underpaint import config
from underpaint.backbones.layers import SinCosPositions
from underpaint.errors import UserError
from underpaint.interop import dit_weights
from underpaint.interop.importing import (
    Asked,
    Imported,
    State,
    check_names,
    count,
    heads_of,
    names_of,
    noise_of,
    read_state,
    sampling_of,
    space_of,
    without_prefix,
)

PUBLISHED = {384: 6, 768: 12, 1024: 16, 1152: 16}  # width: heads


def read(file: Path, asked: Asked) -> Imported:
    """See `importing`."""
    notes: list[str] = []
    state = without_prefix(read_state(file, asked.weights), "x_embedder.proj.weight", notes)
    positions = state.pop("pos_embed", None)
    depth = count(state, r"blocks\.(\d+)\.")
    check_names(file, state, dit_weights.authors_names(depth))
    noise = noise_of(asked, "vp-linear", 1000)
    found = convert(
        state, depth, asked, noise, notes, patches=_patches(file, positions, asked, state)
    )
    if positions is not None:
        _check_positions(file, positions[0], found)
    return found


def convert(
    state: State,
    depth: int,
    asked: Asked,
    noise: config.Noise,
    notes: list[str],
    *,
    patches: int,
    known: tuple[str, ...] = (),
) -> Imported:
    """A DiT by its authors' names, on so many patches, with null as the last of its labels.

    `known`: names of the labels, perhaps fewer than the table has rows.
    """
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    rows = len(state["y_embedder.embedding_table.weight"]) - 1
    classes = len(known) or len(asked.labels) or rows
    if classes > rows:
        raise UserError(f"--labels: {classes} names for {rows} classes; give one for each")
    outputs = len(state["final_layer.linear.bias"]) // patch**2
    if outputs == 2 * channels:
        notes.append("its head's variances are left out: our samplers have no use for them")
    space, size, colours = space_of(channels, patch, patches, asked)
    spec = config.ModelSpec(
        size=size,
        channels=colours,
        label_names=names_of(classes, asked, known),
        space=space,
        network=config.Network(
            kind="dit",
            width=width,
            depth=depth,
            heads=heads_of(width, asked, PUBLISHED),
            mlp_ratio=len(state["blocks.0.mlp.fc1.bias"]) / width,
        ),
        noise=noise,
        sampling=sampling_of(space),
    )
    unit = patch * (space.factor if space.kind == "latents" else 1)
    found = dit_weights.from_authors(state, depth, classes)
    for name, side in (("rows", size[0]), ("columns", size[1])):
        found[f"positions.{name}"] = torch.arange(side // unit, dtype=torch.float32)
    return Imported(spec, found, notes)


def _patches(file: Path, positions: Tensor | None, asked: Asked, state: State) -> int:
    if positions is not None:
        return positions.shape[1]
    if not asked.size:
        raise UserError(f"{file}: its size is not in the weights; give --size")
    patch = state["x_embedder.proj.weight"].shape[2]
    unit = patch
    if asked.vae:
        from underpaint import vae

        unit *= vae.read(asked.vae, 3).factor
    return (asked.size[0] // unit) * (asked.size[-1] // unit)


def _check_positions(file: Path, positions: Tensor, found: Imported) -> None:
    """Raise UserError unless the file's fixed positions [N, width] are ours."""
    rows, columns = (len(found.state[f"positions.{name}"]) for name in ("rows", "columns"))
    ids = torch.arange(rows * columns)[None]
    ours = SinCosPositions((rows, columns), positions.shape[1])(ids)[0]
    if not torch.allclose(ours, positions, atol=1e-3):
        raise UserError(f"{file}: its pos_embed is not the fixed one of a DiT; it cannot be read")
