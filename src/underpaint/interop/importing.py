"""`underpaint import`: another software's checkpoint as a model's folder of ours.

A kind is a module of this package with

    read(file, asked) → Imported(spec, state, notes)

which names the settings of our network that computes the same, and gives its weights. Every tensor
of the file is used or the import is refused: `check_names`. Files are read as tensors alone.
"""

import importlib
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from underpaint import config, factory, vae
from underpaint import model as models
from underpaint.bounded import open_regular
from underpaint.errors import UserError

State = dict[str, Tensor]

KINDS = {  # --as: module of this package
    "maskdm": "from_uvit",
    "uvit": "from_uvit",
    "dit": "from_dit",
    "diffusers": "from_diffusers",
}
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Asked:
    """What the user says of a checkpoint, beside the file."""

    kind: str
    size: tuple[int, ...] = ()  # pixels; empty: a square, as the weights say
    heads: int = 0  # 0: as published for this width
    process: str = ""  # the noise schedule; empty: as published, or as the file says
    prediction: str = ""
    noise_steps: int | None = None
    vae: str = ""  # folder of the autoencoder of a model of latents
    labels: tuple[str, ...] = ()  # names of the classes; empty: as the file says, or numbers
    weights: str = "ema"  # of a checkpoint with both: ema or model


class Imported(NamedTuple):
    """What a checkpoint is for us."""

    spec: config.ModelSpec
    state: State
    notes: list[str]  # what is not as it was there


def import_model(
    file: str | Path, kind: str, out: str | Path, *, overwrite: bool = False, **asked: Any
) -> dict[str, Any]:
    """Write the checkpoint `file`, which is of `kind`, as a model's folder `out`.

    `asked`: fields of `Asked`. Returns what the model is. Raises UserError for a file that cannot
    be read, whose network is not one of ours, or of which something has to be said.
    """
    if kind not in KINDS:
        raise UserError(f"--as {kind}: is not one of {', '.join(KINDS)}")
    given = Asked(kind, **asked)
    path = Path(file).expanduser()
    if not path.exists():
        raise UserError(f"{file}: no such file; give a checkpoint")
    folder = Path(out).expanduser()
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: exists already; add --overwrite or choose another --out")
    found = importlib.import_module(f"underpaint.interop.{KINDS[kind]}").read(path, given)
    config.check_model(found.spec, f"{file}: ")
    factory.check_noise(found.spec.noise)
    model = models.build(found.spec)
    try:
        model.backbone.load_state_dict(found.state)
    except RuntimeError as error:  # a tensor of another shape than the others make it
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{file}: its weights do not fit together ({reason})") from None
    broken = [name for name, tensor in found.state.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{file}: '{broken[0]}' holds values that are not finite")
    model.save(folder, overwrite=overwrite)
    return {
        "out": str(folder),
        "as": kind,
        "model": repr(model),
        "noise": f"{found.spec.noise.process}, predicts {found.spec.noise.prediction}",
        "notes": found.notes,
    }


# --- files ---------------------------------------------------------------------------------------


def read_state(path: Path, weights: str = "ema") -> State:
    """The tensors in a file of safetensors or of torch, in float32.

    Of a checkpoint the average (`weights` ema) or the trained weights (model), each if there are
    any, without the names that wrappers put before. Raises UserError.
    """
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if head[8:9] == b"{":
            found: Any = load_file(path)
        elif not head.startswith((b"PK", b"\x80")):  # zips and pickles, which torch writes
            raise ValueError
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects besides tensors, and loading those could run code; save "
            "the state_dict alone, best as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise UserError(
            f"{path}: is not a checkpoint of torch or safetensors, or not all of one"
        ) from None
    found = _unwrapped(found, weights)
    tensors = {}
    if isinstance(found, dict):
        tensors = {str(k): v.float() for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; give a state_dict")
    return tensors


def _unwrapped(found: Any, weights: str) -> Any:
    """The dict of tensors inside a checkpoint's dicts."""
    names = ("ema", "model_ema", "ema_model") if weights == "ema" else ()
    for name in (*names, "model", "state_dict"):
        inside = found.get(name) if isinstance(found, dict) else None
        if isinstance(inside, dict) and any(isinstance(v, (Tensor, dict)) for v in inside.values()):
            return _unwrapped(inside, weights)
    return found


def without_prefix(state: State, marker: str, notes: list[str]) -> State:
    """The tensors under the prefix that the name `marker` has, without it; of the others a note.

    Of several prefixes the one with `ema` in it counts, else the shortest.
    """
    prefixes = [name.removesuffix(marker) for name in state if name.endswith(marker)]
    chosen = min(prefixes, key=lambda p: ("ema" not in p, len(p)), default="")
    left = [name for name in state if not name.startswith(chosen)]
    if left:
        notes.append(f"left out, as no part of the network: {_listed(left)}")
    return {n.removeprefix(chosen): x for n, x in state.items() if n.startswith(chosen)}


def check_names(file: Path, state: Iterable[str], expected: Iterable[str]) -> None:
    """Raise UserError unless the file has these tensors and no others; names the first three."""
    there, wanted = set(state), list(expected)
    missing = [name for name in wanted if name not in there]
    unknown = sorted(there - set(wanted))
    for names, what in ((missing, "lacks"), (unknown, "holds, and nothing knows of,")):
        if names:
            raise UserError(
                f"{file}: it {what} {_listed(names)}; give another --as, or a whole checkpoint"
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def refuse(file: Path, state: Iterable[str], reasons: dict[str, str]) -> None:
    """Raise UserError for the first tensor that is named by one of these patterns, with why."""
    for name in state:
        for pattern, reason in reasons.items():
            if re.match(pattern, name):
                raise UserError(f"{file}: has {name}, but {reason}")


# --- what weights say ------------------------------------------------------------------------


def count(state: Iterable[str], pattern: str) -> int:
    """How many layers there are, by the number that `pattern` has in its group."""
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def heads_of(width: int, asked: Asked, published: dict[int, int]) -> int:
    """Attention heads: what is asked for, or what networks of this width are published with."""
    if asked.heads:
        return asked.heads
    if width in published or width % 64 == 0:
        return published.get(width, width // 64)
    raise UserError(
        f"the number of heads is not in the weights; give --heads, a number that divides {width}"
    )


def grid_of(patches: int, patch: int, asked: Asked, factor: int = 1) -> tuple[int, int]:
    """Height and width in pixels of images of this many patches: a square, or what is asked for."""
    unit = patch * factor
    if asked.size:
        height, width = asked.size[0], asked.size[-1]
        if height % unit == 0 and width % unit == 0 and height * width == patches * unit**2:
            return height, width
        raise UserError(
            f"--size {height} {width}: the weights have positions for {patches} patches of {unit} "
            "pixels; give another size, or leave it out"
        )
    side = round(patches**0.5)
    if side**2 != patches:
        raise UserError(f"{patches} patches are no square; give --size, height and width")
    return side * unit, side * unit


def space_of(
    channels: int, patch: int, patches: int, asked: Asked
) -> tuple[config.Space, tuple[int, int], int]:
    """Space, size and channels of the images, for a network of `channels` planes."""
    if asked.vae:
        autoencoder = vae.read(asked.vae, 3)
        factor = autoencoder.factor
        if autoencoder.latent_channels != channels:
            raise UserError(
                f"--vae {asked.vae}: has latents of {autoencoder.latent_channels} channels, the "
                f"network {channels}; give another autoencoder"
            )
        space = config.Space(
            kind="latents",
            patch=patch,
            vae=str(Path(asked.vae).expanduser().resolve()),
            factor=factor,
            latent_channels=channels,
        )
        return space, grid_of(patches, patch, asked, factor), 3
    if channels not in (1, 3):
        raise UserError(
            f"the network has {channels} channels, as one of latents; give --vae and the folder of "
            "its autoencoder"
        )
    return config.Space(patch=patch), grid_of(patches, patch, asked), channels


def names_of(classes: int, asked: Asked, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the classes: those asked for, or known, or numbers."""
    names = tuple(asked.labels) or tuple(known) or tuple(map(str, range(classes)))
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(
            f"--labels: {len(set(names))} names for {classes} classes; give one for each"
        )
    return names


def noise_of(asked: Asked, process: str, steps: int, prediction: str = "eps") -> config.Noise:
    """The noise: what is asked for, else this."""
    chosen: Any = asked.process or process
    grid = steps if not asked.process else (1000 if chosen.startswith("vp") else 0)
    if asked.noise_steps is not None:
        grid = asked.noise_steps
    default = {"flow": "flow", "edm": "edm", "ve": "score"}.get(chosen, prediction)
    predicted: Any = asked.prediction or default
    laws: Any = {"flow": "mixed", "edm": "log-normal", "ve": "log-uniform"}.get(chosen, "uniform")
    return config.Noise(process=chosen, prediction=predicted, steps=grid, time=laws)


def sampling_of(space: config.Space) -> config.Sampling:
    """Ours; latents are not clipped."""
    return config.Sampling(clip="none" if space.kind == "latents" else "static")
