"""The model card: what a model is, what it was trained on, how good it is, what was looked for.

It is written from the run beside the weights. Of the images it holds counts, the names of the
labels and one sha256 of all their sha256 sums, never a path, a file's name or an image: of the
recipe what names a place or a key is left out. Scores and audits count only where they are of these
very weights. A model that came with a card keeps it.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from underpaint import config, pictures
from underpaint._version import __version__
from underpaint.bounded import Is, checked, read_json, read_regular
from underpaint.core.alpha import CHANNELS as RGBA
from underpaint.data.digests import Sums
from underpaint.errors import UserError, plain
from underpaint.hub import PREFIX, Repository
from underpaint.model import Model
from underpaint.model_folder import digest_of, read_card, read_weights, run_of
from underpaint.training import identities, provenance
from underpaint.training.checkpointing import read_progress

ANY = "ORG/NAME"  # until it is known what the model is called
COLUMNS, ROWS = 8, 4  # of the grid of samples
SIDES = {"train": "training images", "held_out": "held-out images", "floor": "real images"}
PLACES = ("source", "only", "vae", "fixed_key")  # settings that name a file or a folder
LARGEST = 1 << 22  # bytes of a card
HEADER = "---\n"
STORED = ("The weights are in float32.", "The weights are in float16, and read as float32.")
UNCHOSEN = "license: other\nlicense_name: not-chosen-yet\n"  # until the owner has filled it in

SCORES = {  # of evaluation/scores-….json
    "scores": Is(dict, 1, 3, Is(dict), frozenset(("train", "held_out", "floor"))),
    "protocol": Is(dict),
}
PROTOCOL = {
    "scores": Is(list, 2, 2, Is(str)),
    "extractor": Is(str),
    "extractor_sha256": Is(str, 8, 64),
    "count": Is(int),
    "features": Is(int),
    "reference": Is(dict),
    "sampling": Is(dict),
    "seeds": Is(list, 2, 2, Is(int)),
    "weights": Is(str),
    "weights_sha256": Is(str),
}
AUDIT = {  # of audit/audit.json
    "sha256": Is(dict, of=Is(str)),
    "weights": Is(str),
    "verdict": Is(str),
    "reasons": Is(list, of=Is(str)),
    "findings": Is(list, of=Is(str)),
    "members": Is(int),
    "non_members": Is(int),
    "membership": Is(dict, 1, of=Is(dict)),
}


def write(model: Model, folder: Path, *, half: bool = False, name: str | None = None) -> None:
    """Write `README.md` and `samples.png` of a loaded model into `folder`.

    `name`: `org/name`, if it is known. Raises UserError where the run's files are damaged.
    """
    assert model.origin is not None
    same = _is_as_loaded(model)
    run = run_of(model.origin.folder) if same else None
    if run is None and same and (text := _brought(model.origin.folder)):
        text = text.replace(ANY, name or ANY).replace(STORED[not half], STORED[half])
        (folder / "README.md").write_text(text, encoding="utf-8")
        if (samples := model.origin.folder / "samples.png").is_file():
            shutil.copyfile(samples, folder / "samples.png")
        return
    facts = _facts(model, same) | (_run_facts(model, run) if run else {})
    facts["samples"] = _draw(model, folder / "samples.png")
    text = _template().render(
        facts, name=name or ANY, half=half, stored=STORED[half], unchosen=UNCHOSEN
    )
    (folder / "README.md").write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


def _is_as_loaded(model: Model) -> bool:
    """Whether the weights are still those of the folder that it was loaded from."""
    assert model.origin is not None
    try:
        before = read_weights(model.origin.folder, model.origin.weights)
    except (UserError, OSError):  # a run goes on, and has cleared the checkpoint
        return False
    now = model.backbone.state_dict()
    return all(torch.equal(before[key], value.float().cpu()) for key, value in now.items())


def _brought(folder: Path) -> str:
    """The card that is beside the weights; empty if there is none."""
    try:
        text = read_regular(folder / "README.md", LARGEST).decode("utf-8")
    except (OSError, ValueError):
        return ""
    return text if text.startswith(HEADER) else ""


def _draw(model: Model, path: Path) -> int:
    """Write the grid of samples, a label a column; returns how many, 0 if none can be drawn."""
    if model.spec.space.kind == "latents" and not model.spec.space.vae:
        return 0
    labels = model.label_names[:COLUMNS]
    captions = list(labels) * (COLUMNS // len(labels)) if labels else None
    columns = len(captions) if captions else COLUMNS
    images = model.sample(columns * ROWS, seed=0, labels=captions)
    pictures.save_grid(path, images, columns, captions, {"seed": 0, **_sampling(model)})
    return len(images)


def _sampling(model: Model) -> dict[str, Any]:
    chosen = model.sampling
    return {"sampler": chosen.sampler, "steps": chosen.steps, "guidance": chosen.guidance}


# --- what is known -----------------------------------------------------------------------------


def _facts(model: Model, same: bool) -> dict[str, Any]:
    """What the model itself says."""
    assert model.origin is not None
    spec, source = model.spec, model.origin.source
    named = source if source.startswith("pretrained:") else None
    return {
        "size": spec.size,
        "channels": {1: "grey", 3: "colour", RGBA: "colour with transparency"}[spec.channels],
        "shape": (*spec.size, spec.channels),
        "labels": list(model.label_names),
        "network": spec.network,
        "space": spec.space,
        "noise": spec.noise,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "sampling": _sampling(model),
        "vae": model.vae.digest if spec.space.vae and model.vae else None,
        "weights": model.origin.weights,
        "changed": not same,
        "parent": _named(source),
        "base": named,
        "about": _packaged(model.origin.folder) if named else "",
        "run": None,
        "version": __version__,
    }


def _packaged(folder: Path) -> str:
    """What the package says of its weights, without the title."""
    return (folder / "README.md").read_text(encoding="utf-8").partition("\n")[2].strip()


def _named(source: str | None) -> Repository | None:
    """The model on the Hub that `source` names."""
    return Repository.of(source) if source and source.startswith(PREFIX) else None


def _run_facts(model: Model, run: Path) -> dict[str, Any]:
    """What the run that the model came from says."""
    assert model.origin is not None
    recipe, start = config.load(run / "config.yaml"), provenance.start_of(run)
    card, weights = read_card(model.origin.folder), model.origin.weights
    progress = read_progress(model.origin.folder)
    private = any(stage.dp for stage in recipe.stages.values())
    images = identities.read(run)
    return {
        "run": recipe,
        "images": progress.images,
        "budgets": {
            name: record
            for name, record in progress.privacy.items()
            if isinstance(record, dict) and {"epsilon", "delta"} <= record.keys()
        },
        # a hash of private images would say whether they are these
        "identity": None if private or not len(images.trained) else _identity(images.trained),
        "trained": len(images.trained),
        "held_out": len(images.held_out),
        "start": start,
        "parent": _named(start),
        "base": start if start and start.startswith("pretrained:") else None,
        "recipe": config_text(recipe),
        "scores": _scores(run, recipe, digest_of(card, weights)),
        **_audit(run, card["sha256"], weights),
    }


def _identity(images: Sums) -> str:
    """One sha256 of the images' sorted sha256 sums, each in hex and ended by a line break."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.tobytes().hex()}\n".encode())
    return digest.hexdigest()


def config_text(recipe: config.Run) -> str:
    """The recipe as YAML, without what names a file, a folder or a key of this machine."""

    def public(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {name: public(value) for name, value in values.items() if name not in PLACES}
        held_out = str(kept.get("held_out", "auto"))
        if held_out not in ("auto", "none") and not held_out.isdecimal():
            del kept["held_out"]
        return kept

    values = public(config.to_dict(recipe))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _scores(run: Path, recipe: config.Run, sha256: str) -> list[dict[str, Any]]:
    """The evaluations of these weights that the run keeps, oldest first."""
    sources, found = {recipe.data.source, (recipe.last.data or recipe.data).source}, []
    files = sorted(
        (run / "evaluation").glob("scores-*.json"), key=lambda path: path.stat().st_mtime
    )
    for path in files:
        result = _read(path, SCORES)
        protocol = result["protocol"]
        if protocol.get("weights_sha256") != sha256:
            continue
        with _damaged(path):
            checked(protocol, PROTOCOL, more=True)
            names = dict(zip(("frechet", "kernel"), protocol["scores"], strict=True))
            names |= {name: name for name in ("precision", "recall", "density", "coverage")}
            sides = [side for side in SIDES if side in result["scores"]]
            rows = [
                [name, *(_cell(key, result["scores"][side]) for side in sides)]
                for key, name in names.items()
            ]
            how = {name: protocol["sampling"][name] for name in ("sampler", "steps", "guidance")}
            ours = protocol["reference"].get("source") in sources
        heads = [SIDES[side] for side in sides]
        score = {"protocol": protocol, "sampling": how, "ours": ours, "rows": rows}
        found.append(score | {"sides": heads})
    return found


def _cell(key: str, scores: dict[str, Any]) -> str:
    text = f"{float(scores[key]):{'.4f' if key == 'kernel' else '.4g'}}"
    interval = scores.get(f"{key}_interval")
    return text + (" ({:.4g} to {:.4g})".format(*map(float, interval)) if interval else "")


def _audit(run: Path, digests: dict[str, str], weights: str) -> dict[str, Any]:
    """The audit that the run keeps, if it is of these weights; `other_audit`: one of others."""
    path = run / "audit" / "audit.json"
    if not path.is_file():
        return {"audit": None, "other_audit": False}
    result = _read(path, AUDIT)
    if result["sha256"] != digests or result["weights"] != weights:
        return {"audit": None, "other_audit": True}
    with _damaged(path):
        found = [
            (float(attack["p_value"]), name, {k: float(v) for k, v in attack["auc"].items()})
            for name, attack in result["membership"].items()
        ]
        _, name, auc = min(found, key=lambda attack: attack[:2])
        auc = {key: auc[key] for key in ("value", "low", "high")}
    return {"audit": result | {"best": name, "auc": auc}, "other_audit": False}


def _read(path: Path, table: dict[str, Is]) -> dict[str, Any]:
    with _damaged(path):
        return checked(read_json(path), table, more=True)


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error}); make it again, or remove it") from None


# --- Markdown ----------------------------------------------------------------------------------


@cache
def _template() -> Any:
    templates = Environment(
        loader=PackageLoader("underpaint.interop", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"code": code, "fenced": fenced}
    return templates.get_template("card.md.jinja")


def code(text: object) -> str:
    """A text that somebody gave, such as a label, as code within a line of Markdown."""
    shown = plain(str(text))
    fence = "`" * (_longest(shown) + 1)
    pad = " " if "`" in shown or shown != shown.strip() or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def fenced(text: str, language: str) -> str:
    """A text as a block of code."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def licence(text: str) -> str:
    """The lines of a card's header that name its licence; empty while none is chosen."""
    header = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    lines = header[1].splitlines() if header else []
    found = [line for line in lines if re.match(r"license(_name|_link)?:", line)]
    return "" if found == UNCHOSEN.splitlines() else "".join(f"{line}\n" for line in found)
