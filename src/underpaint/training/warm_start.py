"""Weights for a run that another run began: `--from RUN|CHECKPOINT|pretrained:NAME`.

The network, the space and the prediction must be the same. Another number of patches is met by
interpolating the positions, images of another size in as many patches by resampling the layers that
read and write these, other labels by matching their names.
"""

import dataclasses
from typing import Any

from torch import Tensor

from underpaint import backbones, config, factory
from underpaint.errors import UserError
from underpaint.model import Model
from underpaint.model_folder import find, read_spec

# Of space and network, what may differ between a checkpoint and the recipe that goes on from it;
# of the noise, what may not.
FREE = ("network.labels", "network.label_drop", "network.dropout", "network.augment", "space.vae")
TRAINED_IN = ("process", "prediction", "sigma_data")


def adopt(run: config.Run, source: str) -> config.Run:
    """The recipe with the space, network, noise and sampling settings of the model in `source`."""
    spec = read_spec(find(source))
    network = dataclasses.replace(spec.network, labels=run.network.labels)
    data = run.data if run.data.size else dataclasses.replace(run.data, size=spec.size)
    data = dataclasses.replace(data, channels=config.named(spec.channels))
    return dataclasses.replace(
        run, data=data, space=spec.space, network=network, noise=spec.noise, sampling=spec.sampling
    )


def adapt(
    state: dict[str, Tensor], old: config.ModelSpec, model: Model, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of `old` made to fit `model`, and a sentence on each change that was needed.

    Raises UserError naming the first setting in which the two differ for good.
    """
    ours, grid = _fixed(model.spec), model.space.grid
    old_grid = factory.space(old.space, old.size, old.channels).grid
    scaled = old_grid == grid and backbones.reads_patches(state)
    for place, theirs in _fixed(old).items():
        if place == "space.patch" and scaled:
            continue
        if theirs != ours[place]:
            raise UserError(
                f"{source}: its {place} is {theirs}, the recipe's is {ours[place]}; "
                f"set --{place} {theirs} or start from another model"
            )
    notes, patches = [], (old.space.patch, model.spec.space.patch)
    if patches[0] != patches[1]:
        state = backbones.resample_patches(state, *patches)
        notes.append("patches resampled from {0}×{0} to {1}×{1} pixels".format(*patches))
    if old_grid != grid:
        state = backbones.interpolate_positions(state, old_grid, grid)
        notes.append(
            f"positions interpolated from {old_grid[0]}×{old_grid[1]} "
            f"to {grid[0]}×{grid[1]} patches"
        )
    fresh_state = model.denoiser.backbone.state_dict()
    old_names = old.label_names if old.network.labels else ()
    if old_names != model.label_names:
        kept = [name for name in model.label_names if name in old_names]
        notes.append(
            f"{len(kept)} of {len(model.label_names)} labels carried over; the rest are new"
        )
    adapted = {}
    for name, tensor in fresh_state.items():
        given = state.get(name)
        if backbones.is_label_table(name):
            adapted[name] = _relabel(tensor, given, old_names, model.label_names)
        elif given is not None and given.shape == tensor.shape:
            adapted[name] = given
        elif backbones.is_augment_embedding(name) and given is None:  # fresh: it starts at zero
            adapted[name] = tensor.detach().clone()
        else:
            raise UserError(f"{source}: its tensor '{name}' does not fit the recipe's network")
    return adapted, notes


def _relabel(
    fresh: Tensor, old: Tensor | None, old_names: tuple[str, ...], names: tuple[str, ...]
) -> Tensor:
    """Rows by the labels' names; a row beyond them is the null label's."""
    table = fresh.detach().clone()
    if old is None:
        return table
    for row, name in enumerate(names):
        if name in old_names:
            table[row] = old[old_names.index(name)]
    table[len(names) :] = old[len(old_names) :]
    return table


def _fixed(spec: config.ModelSpec) -> dict[str, Any]:
    """The settings that a checkpoint and what goes on from it must share, by name."""
    settings = {
        f"{section}.{name}": value
        for section in ("space", "network")
        for name, value in dataclasses.asdict(getattr(spec, section)).items()
    }
    settings |= {f"noise.{k}": getattr(spec.noise, k) for k in TRAINED_IN}
    settings["data.channels"] = config.named(spec.channels)
    return {place: value for place, value in settings.items() if place not in FREE}
