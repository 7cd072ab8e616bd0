"""How near are a model's samples, or a folder of images, to a set of real images?

Draws samples, turns them and the real images into features, and scores these (`results`). The
result carries its protocol: what has to be equal before two numbers may be compared.

Features lie in RUN/evaluation (those of images that exist: in the cache, by content), block by
block, so that a stopped evaluation goes on, and a longer one adds to what is there.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underpaint import config, data, model, model_folder
from underpaint._version import __version__
from underpaint.core import alpha, samplers
from underpaint.data import Dataset, cache
from underpaint.data.source import is_there
from underpaint.errors import UserError
from underpaint.evaluation import feature_cache, features
from underpaint.evaluation.feature_cache import Store
from underpaint.evaluation.results import SAMPLING, digest, moved, score_all
from underpaint.hardware import Precision
from underpaint.hub import Repository
from underpaint.io import replace_text
from underpaint.progress import doing
from underpaint.training import distributed, identities, provenance
from underpaint.training.checkpointing import read_progress

LEAST = 64  # images per side
TWICE = 256  # samples that are drawn in twice the steps as well, and half of all at most
MOST = 10_000  # images per side, unless more are asked for
FILLED = {  # what is done for the features of each
    "samples": "samples",
    "twice": "samples in twice the steps",
    "train": "training images",
    "held_out": "held-out images",
}


@dataclass(frozen=True)
class Judged:
    """What is scored: samples of a model, or images that lie there."""

    size: tuple[int, int]
    channels: int
    most: int | None  # images there are; None: any number can be drawn
    store: Store
    about: dict[str, Any]  # its part of the protocol
    twice: Store | None = None  # the same seeds in twice the steps


def evaluate(
    source: str | Path,
    reference: str | None = None,
    *,
    data: str | None = None,
    n: int | None = None,
    extractor: str = "mobilenetv2",
    weights_file: str | Path | None = None,
    held_out: str | None = None,
    size: tuple[int, ...] = (),
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    weights: model_folder.Weights = "ema",
    batch: int = 64,
    device: str = "auto",
    vae: str | Path | None = None,
    precision: Precision = "fp32",
    channels: config.Channels | None = None,
    interval: bool = True,
) -> dict[str, Any] | None:
    """Score `source`, a model (as `model_folder.find`) or images, against the images `reference`.

    `reference` None: the run's own data, which lie in `data` if they have moved, split as the run
    recorded. `n` images per side; None: as many as are held out (at most
    MOST). `sampling`: what differs from the model's own settings, by the names in SAMPLING. `vae`
    and `precision`: as in `model.load`. `channels`: of images that are scored, None: 3; a model
    has its own.
    Returns `{source, scores, twice, warnings, protocol, file}`; under torchrun the first process
    does, the others return None. `twice` of a model (else None): `results.moved` for some of its
    samples, with `steps`, `count` and the `side` they are compared with. Raises UserError for wrong
    use.
    """
    if n is not None and n < LEAST:
        raise UserError(_too_few(f"-n {n}"))
    source = model_folder.pinned(source)
    world = distributed.start(device)
    try:
        network = features.load(extractor, weights_file, str(world.device))
        images = _images(source, size, channels or 3) if not _is_model(source) else None
        if data is not None and (images is not None or reference is not None):
            raise UserError("--data is where the images of a run are now; leave it out")
        wanted = _reference(source, reference, data, held_out, size, channels, images)
        real = _prepared(wanted, world)
        lacking: list[str] = []
        if images is None and reference is None and held_out is None:
            real, lacking = _as_recorded(source, real, wanted)
        if real.channels == alpha.CHANNELS and not real.report["transparent"]:
            raise UserError(
                f"{source} has transparency (rgba), and no image of {wanted.source} has a "
                "transparent pixel; give other images as --reference"
            )
        if images is not None:
            judged = _folder(str(source), images, network, world)
        else:
            chosen = {k: v for k, v in (sampling or {}).items() if v is not None}
            loaded = model.load(
                source, weights=weights, device=str(world.device), vae=vae, precision=precision
            )
            judged = _model(source, loaded, real, network, seed, chosen, weights, batch)
        one, two = (_shown((*v.size, v.channels)) for v in (judged, real))
        if one != two:
            raise UserError(
                f"sizes differ: {source} has images of {one}, {wanted.source} of {two}; scores "
                "need both in one size: add --size, which brings both to it"
            )
        train, held = (_shuffled(ids) for ids in (real.train_ids, real.held_out_ids))
        count, notes = _count(n, len(train), len(held), judged.most)
        notes += lacking
        if images is not None and real.channels < alpha.CHANNELS and real.report["transparent"]:
            notes.append(
                f"{wanted.source} has transparent pixels, which are scored over white; add "
                "--channels rgba to score transparency"
            )
        ids = {"train": train} | ({"held_out": held} if len(held) >= LEAST else {})
        stores = {"samples": judged.store}
        stores |= {name: Store.of(real, part, network) for name, part in ids.items()}
        lengths = {"samples": count, "train": min(2 * count, len(train)), "held_out": count}
        if judged.twice:
            stores["twice"], lengths["twice"] = judged.twice, min(TWICE, count // 2)
        for name, store in stores.items():
            with doing(f"{FILLED[name]} of {source}", lengths[name]) as at:
                store.fill(lengths[name], world, at)
    finally:
        world.close()
    if not world.first:
        return None
    place = world.device if world.device.type == "cuda" else torch.device("cpu")
    found = {
        name: torch.from_numpy(store.read(lengths[name])).to(place)
        for name, store in stores.items()
    }
    samples, twice = found.pop("samples"), found.pop("twice", None)
    content = [stores[name].folder.name for name in sorted(found)]
    result = score_all(samples, found, count, content, network, notes, interval)
    result["twice"] = None
    if twice is not None:
        m, side = len(twice), "held_out" if "held_out" in found else "train"
        result["twice"] = {"steps": 2 * judged.about["sampling"]["steps"], "count": m, "side": side}
        result["twice"] |= moved(samples[:m], twice, found[side][:m], interval)
    result["protocol"] = {
        **network.identity(real.channels),
        "scores": [network.distance, network.kernel_distance],
        "features": samples.shape[1],
        "count": count,
        "reference": {
            "source": wanted.source,
            "key": real.key,
            **{name: digest(part.tobytes()) for name, part in ids.items()},
        },
        **judged.about,
        "seeds": None if judged.most else [seed, seed + count - 1],
        "underpaint": __version__,
    }
    folder = judged.store.folder.parent
    file = folder / f"scores-{digest(json.dumps(result['protocol']))}.json"
    result = {"source": str(source), **result, "file": str(file)}
    with cache.writing(folder):
        replace_text(file, json.dumps(result, indent=1) + "\n")
    return result


# --- what is compared -------------------------------------------------------------------------


def _is_model(source: str | Path) -> bool:
    """Whether `model_folder.find` is to open it; else it is images."""
    if str(source).startswith("pretrained:") or Repository.of(source):
        return True
    path = Path(source).expanduser()
    return (path / "config.json").is_file() or (path / "config.yaml").is_file()


def _images(source: str | Path, size: tuple[int, ...], channels: config.Channels) -> config.Data:
    """Images to score, in the size that both sides shall have if one is given."""
    if not is_there(str(source)):
        raise UserError(f"{source}: there is no such run or folder of images")
    return config.Data(source=str(source), size=size, held_out="none", channels=channels)


def _reference(
    source: str | Path,
    reference: str | None,
    moved: str | None,
    held_out: str | None,
    size: tuple[int, ...],
    channels: config.Channels | None,
    images: config.Data | None,
) -> config.Data:
    """The real images: decoded as the run decoded its own."""
    if images is not None:
        if reference is None:
            raise UserError(f"{source}: to score images, add --reference DATA, the real ones")
        real = config.Data(source=reference, size=size, held_out=held_out or "auto")
        return replace(real, channels=images.channels)
    folder = model_folder.find(source)
    spec, place = model_folder.read_spec(folder), model_folder.run_of(folder)
    real = config.Data()
    if place:
        run = config.load(place / "config.yaml")
        real = run.data_of(run.last)
        if reference is None:
            real = provenance.data_of(run, moved, place)
    elif moved is not None:
        raise UserError(f"{source}: is no run, which --data is for; give --reference DATA")
    if not real.source and reference is None:
        raise UserError(f"{source}: does not say what it was trained on; add --reference DATA")
    if size and config.image_size(size) != spec.size:
        given, right = (_shown(s) for s in (config.image_size(size) or (0, 0), spec.size))
        raise UserError(f"--size {given}: this model draws {right}; leave --size out")
    kind = config.named(spec.channels)
    if channels not in (None, kind):
        raise UserError(f"--channels {channels}: this model draws {kind}; leave --channels out")
    real = replace(real, size=spec.size, channels=kind, held_out=held_out or real.held_out)
    if reference is not None and reference != real.source:
        real = replace(real, source=reference, limit=0, held_out=held_out or "auto")
    return real


def _prepared(wanted: config.Data, world: distributed.World) -> Dataset:
    config.check_data(wanted)
    if world.first:
        data.prepare(wanted)
    world.barrier()  # the first process fills the cache, the others read it
    return data.prepare(wanted)


def _as_recorded(
    source: str | Path, real: Dataset, wanted: config.Data
) -> tuple[Dataset, list[str]]:
    """The run's images, split as it recorded; and what it lacks for that, in a sentence."""
    place = model_folder.run_of(model_folder.find(source))
    if place is None or not (place / "images.json").is_file():
        why = "images are held out anew, and it may have been trained on some of them"
        return real, [f"{source}: holds no images.json of a run, so {why}"]
    split = identities.split_of(place, real.file_digests, wanted.source)
    real = replace(real, train_ids=split.train_ids, held_out_ids=split.held_out_ids)
    return real, [split.lacking] if split.lacking else []


def _folder(
    source: str, images: config.Data, network: features.Extractor, world: distributed.World
) -> Judged:
    dataset = _prepared(images, world)
    ids = _shuffled(dataset.train_ids)
    if len(ids) < LEAST:
        raise UserError(_too_few(f"{source} has {len(ids)} images"))
    about = {"images": dataset.key, "sampling": None, "weights": None, "ema": None}
    store = Store.of(dataset, ids, network)
    return Judged(dataset.size, dataset.channels, len(ids), store, about)


def _model(
    source: str | Path,
    loaded: model.Model,
    real: Dataset,
    network: features.Extractor,
    seed: int,
    sampling: dict[str, Any],
    weights: model_folder.Weights,
    batch: int,
) -> Judged:
    folder = model_folder.find(source)
    card = model_folder.read_card(folder)
    defaults = {name: getattr(loaded.spec.sampling, name) for name in SAMPLING}
    labels, rule = _labels(loaded, real, seed)
    run = model_folder.run_of(folder)
    trained = config.load(run / "config.yaml") if run else None
    state = folder / "state.json"
    about: dict[str, Any] = {
        "images": read_progress(folder).images if state.is_file() else None,
        "sampling": {**defaults, **sampling, "labels": rule, "precision": loaded.precision},
        "weights": weights,
        "ema": trained.train.ema if trained and weights == "ema" else None,
        "weights_sha256": model_folder.digest_of(card, weights),
    }
    if loaded.vae is not None:
        about["vae_sha256"] = loaded.vae.digest

    writable = run is not None and os.access(run, os.W_OK)
    place = run / "evaluation" if run and writable else cache.root() / "evaluation"

    def drawn(steps: int) -> Store:
        """Samples in so many steps, and where their features are kept."""
        how = sampling | {"steps": steps}

        def draw(start: int, count: int) -> np.ndarray:
            chosen = None if labels is None else labels(start, count)
            return loaded.sample(count, seed=seed + start, labels=chosen, batch=batch, **how)

        known = about | {"sampling": about["sampling"] | {"steps": steps}}
        name = digest(json.dumps([network.identity(real.channels), known, seed], sort_keys=True))
        return Store(place / name, draw, network)

    steps, grid = (about["sampling"][name] for name in ("steps", "grid"))
    twice: Store | None = drawn(2 * steps)
    try:
        samplers.sigmas(loaded.denoiser.process, 2 * steps, grid)
    except ValueError:  # more than there are levels
        twice = None
    return Judged(loaded.spec.size, loaded.spec.channels, None, drawn(steps), about, twice)


def _labels(
    loaded: model.Model, real: Dataset, seed: int
) -> tuple[Callable[[int, int], list[int]] | None, str]:
    """Labels of the samples from a position on, and the rule in words.

    As frequent as in the real images: samples with all labels equally often would be another
    distribution, and score worse for it.
    """
    names = loaded.label_names
    if not names:
        return None, "none"
    if names == real.label_names:
        known = real.labels[real.train_ids]

        def drawn(start: int, count: int) -> list[int]:
            rng = np.random.default_rng([seed, start])
            return [int(v) for v in known[rng.integers(0, len(known), feature_cache.BLOCK)[:count]]]

        return drawn, f"as frequent as in {real.key[:12]}"
    return lambda start, count: [i % len(names) for i in range(start, start + count)], "in turn"


def _count(asked: int | None, train: int, held: int, samples: int | None) -> tuple[int, list[str]]:
    """Images a side, and what to tell the reader about it."""
    notes = []
    limits = {"training images": train}
    if held >= LEAST:
        limits["held-out images"] = held
    else:
        notes.append(
            f"{held or 'no'} held-out images: fewer than {LEAST} are not scored, so copying cannot "
            "be separated from quality here"
        )
    if samples is not None:
        limits["images to score"] = samples
    smallest = min(limits, key=lambda name: limits[name])
    count = min(limits[smallest], asked or MOST)
    if asked is None and train // 2 >= LEAST:
        count = min(count, train // 2)  # two halves of that count make the floor
    if count < LEAST:
        raise UserError(_too_few(f"there are {count} {smallest}"))
    if asked is not None and count < asked:
        hint = "; --held-out none compares with more" if smallest == "held-out images" else ""
        notes.append(
            f"{count:,} of {asked:,}: there are no more {smallest}, and counts are equal{hint}"
        )
    return count, notes


def _too_few(what: str) -> str:
    return (
        f"{what}: a score needs at least {LEAST} images per side; with fewer it depends more on "
        "their number than on their quality; use more images"
    )


def _shuffled(ids: np.ndarray) -> np.ndarray:
    """An order in which every beginning is a fair sample: a function of the ids."""
    return np.random.default_rng(0).permutation(np.sort(ids))


def _shown(size: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in size)
