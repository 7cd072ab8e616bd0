"""A model's folder, and how it is found: run, checkpoint, export, `pretrained:NAME`, `org/name`.

It is self-contained: `config.json` (a `ModelSpec`, and the sha256 of each weight file) beside
`ema.safetensors` and `model.safetensors`. In checkpoints of a run whose processes shared them
(`training/sharding.py`) folders `ema` and `model` with a file of each process's rows (`shards`)
stand in place of the single files.
"""

import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from underpaint import config, factory
from underpaint._version import __version__
from underpaint.bounded import Is, checked, read_json
from underpaint.errors import UserError
from underpaint.hub import PREFIX, Repository
from underpaint.io import SHARD, numbered

FORMAT = 3  # of a model's folder
MODEL = ("config.json", "model.safetensors")  # files of a model that stands alone
SAVED = (*MODEL, "README.md", "samples.png")  # with its card

Weights = Literal["ema", "model", "narrow", "wide"]  # the last two: training/posthoc.py
FILES = ("config.json", *(f"{name}.safetensors" for name in get_args(Weights)))
SHARDS = rf"(model|ema|optimizer)/{SHARD}"
CARD = {  # config.json
    "format": Is(int, FORMAT, FORMAT),
    "underpaint": Is(str, optional=True),
    "model": Is(dict),
    "sha256": Is(dict, 1, of=Is(str, 64, 64)),  # by file, of `FILES` or `SHARDS`
}


class Origin(NamedTuple):
    """Where a model was loaded from: its folder, which weights there, and what was asked for."""

    folder: Path
    weights: Weights
    source: str  # as `pinned` has it


def find(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a run's, a checkpoint's, an exported model, `pretrained:NAME` or `org/name`.

    Of a run as `newest`, whose note is said on stderr; `org/name`, at a `revision`, is downloaded
    from the Hugging Face Hub (see `hub`), unless it is a folder here. Raises UserError if there is
    none.
    """
    text = str(source)
    if repository := _repository(source, revision):
        folder, _ = repository.download(FILES)
        if not (folder / "config.json").is_file():
            raise UserError(f"{repository}: is no model of underpaint (it has no config.json)")
        return folder
    if text.startswith("pretrained:"):
        packaged = Path(str(resources.files("underpaint"))) / "pretrained"
        name = text.removeprefix("pretrained:")
        if not (packaged / name / "config.json").is_file():
            known = ", ".join(f"pretrained:{p.name}" for p in sorted(packaged.glob("*/"))) or "none"
            raise UserError(f"{text}: there are no such weights in the package; known: {known}")
        return packaged / name
    folder = Path(source).expanduser()
    if not folder.exists():
        raise UserError(
            f"{text}: no such folder; give a run, a checkpoint, an exported model, or hub:ORG/NAME"
        )
    if (folder / "config.json").is_file():
        return folder
    if numbered(folder / "checkpoints"):
        found = newest(folder)
        if found.note:
            warn_once(found.note)
        return found.folder
    raise UserError(
        f"{text}: holds no model (no config.json and no checkpoints); "
        "give a run, a checkpoint or an exported model"
    )


def pinned(source: str | Path, revision: str | None = None) -> str | Path:
    """What names the same model for ever, where it is on the Hub: `hub:org/name@COMMIT`.

    Any other source is returned as it is. Raises UserError as `find`.
    """
    repository = _repository(source, revision)
    if repository is None:
        return source
    _, commit = repository.download(FILES)
    return f"{PREFIX}{repository.name}@{commit}"


def _repository(source: str | Path, revision: str | None) -> Repository | None:
    found = Repository.of(source)
    if revision is None:
        return found
    if found is None:
        raise UserError(
            f"{source}: is no model on the Hugging Face Hub, so it has no revision {revision}; "
            "leave the revision out, or give hub:ORG/NAME"
        )
    if found.revision not in (None, revision):
        raise UserError(f"{source}: names another revision than {revision}; give one of the two")
    return found._replace(revision=revision)


def run_of(folder: Path) -> Path | None:
    """The run whose checkpoint `folder` is; None for a model that stands alone."""
    run = folder.parent.parent
    inside = folder.parent.name == "checkpoints" and (run / "config.yaml").is_file()
    return run if inside else None


class Found(NamedTuple):
    """A checkpoint, and in `note` why it is not the one that LATEST names; empty if it is."""

    folder: Path
    note: str


def newest(run: Path, damage: Callable[[Path], str] | None = None) -> Found:
    """The checkpoint that LATEST names or, if that is none or damaged, the newest whole one.

    By `damage` (default: `damage_of`). Raises UserError if none is whole.
    """
    pointer = run / "checkpoints" / "LATEST"
    there = {folder.name: folder for folder in reversed(numbered(pointer.parent))}
    problems = []
    name = ""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
        if name not in there:
            said = "names no checkpoint of this run" if name else "is empty"
            problems.append(f"{pointer} {said}")
    except FileNotFoundError:
        problems.append(f"{pointer} is missing")
    except (OSError, ValueError):
        problems.append(f"{pointer} cannot be read")
    for folder in sorted(there.values(), key=lambda folder: folder.name != name):
        reason = (damage or damage_of)(folder)
        if not reason:
            whole = f"using {folder.name}, the newest whole checkpoint"
            return Found(folder, f"{'; '.join(problems)}; {whole}" if problems else "")
        problems.append(f"{folder} is damaged ({reason})")
    if not all(folder.is_dir() for folder in there.values()):  # the run goes on, and clears
        return newest(run, damage)
    raise UserError(
        f"{run}: none of its checkpoints can be used: {'; '.join(problems[:2])}; "
        "give another model, or train again into another folder"
    )


@cache
def warn_once(note: str) -> None:
    """Say it on stderr, once a process; a program may hear it as a record of logging."""
    logging.getLogger("underpaint").warning(note)


class OtherFormat(UserError):
    """A model's folder that another version wrote."""


def damage_of(folder: Path) -> str:
    """What is wrong with the files of a model's folder; empty if all of them are whole.

    Raises OtherFormat.
    """
    try:
        digests = read_card(folder)["sha256"]
        missing = [name for name in digests if not (folder / name).is_file()]
        if not digests or missing:
            return f"{missing[0]} is missing" if missing else "config.json names no weights"
        changed = [name for name, digest in digests.items() if sha256(folder / name) != digest]
    except OtherFormat:  # whole, and so are the others of its run
        raise
    except (UserError, KeyError, AttributeError, TypeError):
        return "config.json is missing or damaged"
    except OSError as error:  # as of a file that is deleted meanwhile
        return f"a file cannot be read ({error.strerror})"
    return f"{changed[0]} was cut short or changed, its checksum differs" if changed else ""


def read_card(folder: Path) -> dict[str, Any]:
    """The whole `config.json` of a model's folder."""
    path = folder / "config.json"
    try:
        card = read_json(path)
        if isinstance(card, dict) and type(card.get("format")) is int and card["format"] != FORMAT:
            raise OtherFormat(
                f"{path}: has format {card['format']}, and this underpaint reads format {FORMAT}; "
                "train again, or use the version that wrote it"
            )
        found = checked(card, CARD, more=True)
        for name in found["sha256"]:
            if name not in FILES[1:] and not re.fullmatch(SHARDS, name):
                raise ValueError(f"'sha256' names {name[:100]!r}, which is no file of weights")
        return found
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: is damaged or not a model of underpaint ({error})") from None


def read_spec(folder: Path) -> config.ModelSpec:
    """What the weights in `folder` belong to."""
    values = read_card(folder)["model"]
    spec = config.from_dict(config.ModelSpec, values, f"{folder / 'config.json'}: ")
    config.check_model(spec, f"{folder / 'config.json'}: ")
    return spec


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(card: Mapping[str, Any], weights: Weights) -> str:
    """The sha256 of these weights' file by a `config.json`; of shards that of their sums."""
    digests = card["sha256"]
    parts = [digests[name] for name in sorted(digests) if name.startswith(f"{weights}/")]
    if parts:
        return hashlib.sha256("".join(f"{part}\n" for part in parts).encode()).hexdigest()
    return str(digests.get(f"{weights}.safetensors") or digests.get("model.safetensors"))


def _whole(folder: Path, weights: Weights | Literal["optimizer"]) -> Path:
    """The file of these weights, or the folder of their shards, whose checksums were compared."""
    digests = read_card(folder)["sha256"]
    alone = list(digests) == ["model.safetensors"]
    path = folder / ("model.safetensors" if alone else f"{weights}.safetensors")
    files = [path.name]
    if shards := [name for name in digests if name.startswith(f"{weights}/")]:
        path, files = folder / weights, shards
    extra = {f"{weights}/{file.name}" for file in path.iterdir()} - {*files} if shards else ()
    if extra or not all(
        name in digests and (folder / name).is_file() and sha256(folder / name) == digests[name]
        for name in files
    ):
        raise UserError(
            f"{path}: is missing, cut short or changed (its checksum differs from config.json); "
            "use another checkpoint"
        )
    return path


def read_weights(folder: Path, weights: Weights = "ema") -> dict[str, Tensor]:
    """The tensors of a model's folder in float32, after their checksum was compared.

    Where it has one weight file (an exported model, packaged weights), that is `model`.
    Raises UserError for a file that is damaged, or has values that are not finite.
    """
    path = _whole(folder, weights)
    try:
        found = _shards().read(path) if path.is_dir() else load_file(path)
        tensors = {name: tensor.float() for name, tensor in found.items()}
    except SafetensorError:
        raise UserError(f"{path}: is not a safetensors file") from None
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: '{broken[0]}' holds values that are not finite; use another checkpoint"
        )
    return tensors


def whole_shards(folder: Path, part: Weights | Literal["optimizer"]) -> Path | None:
    """The folder of a checkpoint's shards of `part`, if it has any; their checksums are right.

    Raises UserError if they are not.
    """
    return _whole(folder, part) if (folder / part).is_dir() else None


def _shards() -> Any:
    """The module that reads shards: torch's needs seconds to be imported."""
    return importlib.import_module("underpaint.shards")


def read_fitting_spec(folder: Path, weights: Weights = "ema") -> config.ModelSpec:
    """What the weights in `folder` belong to, if they fit it.

    Their header is compared with a network that has no memory yet, so that a config.json cannot ask
    for more than there is. Raises UserError where they do not fit, or the file is damaged.
    """
    spec, path = read_spec(folder), _whole(folder, weights)
    try:
        if path.is_dir():
            found = _shards().shapes(path)
        else:
            with safe_open(path, "pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise UserError(f"{path}: is not a safetensors file") from None
    options = spec.network.options
    deep = {k: v for k, v in options.items() if "depth" in k or k == "levels"}
    deep["depth"] = spec.network.depth
    try:
        if too_deep := [k for k, v in deep.items() if not v <= len(found)]:
            name = f"network.{too_deep[0]}"
        else:
            expected = factory.unallocated_network(spec).state_dict()
            shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
            names = sorted(shapes.keys() | found.keys())
            name = next((n for n in names if shapes.get(n) != found.get(n)), "")
    except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder}: its config.json describes no network ({reason})") from None
    if name:
        raise UserError(f"{folder}: '{name}' does not fit the network that config.json names")
    return spec


def write_model(
    folder: Path,
    spec: config.ModelSpec,
    weights: Mapping[Weights, dict[str, Tensor]],
    half: bool = False,
) -> None:
    """Write `NAME.safetensors` for each set of weights, and `config.json`.

    `half`: in float16, to the nearest. Raises UserError for a weight that float16 cannot hold.
    """
    digests = {}
    for name, tensors in weights.items():
        path = folder / f"{name}.safetensors"
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        if half:
            kept = {k: v.half() for k, v in kept.items()}
            if beyond := [k for k, v in kept.items() if not v.isfinite().all()]:
                raise UserError(f"'{beyond[0]}' has weights beyond float16's 65504; leave half out")
        save_file(kept, path)
        with safe_open(path, "pt"):  # whole: it compares the header with the length of the file
            path.chmod(0o666 & ~umask())  # safetensors writes files that only their owner can read
        digests[path.name] = sha256(path)
    write_card(folder, spec, digests)


def write_card(folder: Path, spec: config.ModelSpec, digests: Mapping[str, str]) -> None:
    """Write `config.json`, with the sha256 of each file of weights by its name."""
    card = {
        "format": FORMAT,
        "underpaint": __version__,
        "model": config.to_dict(spec),
        "sha256": dict(digests),
    }
    (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
