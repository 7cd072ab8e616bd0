"""An audit: every attack of this package on one model, its controls, and what they allow to say.

Members are images that the run recorded as trained on, non-members those it held out; both lists
can be given instead. A verdict is one of

    leak found       an attack, a count of copies, completion or the test of the whole set is beyond
                     chance at 5 % in all (Bonferroni over everything that was tried)
    no leak found    by these attacks, at the power that the number of images gives
    no verdict       a control failed: the sides differ, or the attacks cannot see a planted leak

It never says that a model is safe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config, model
from underpaint._version import __version__
from underpaint.core.masks import Mask, draw
from underpaint.core.spaces import from_uint8
from underpaint.data import Dataset, latents, prepare
from underpaint.errors import UserError
from underpaint.privacy import attacks, cdi, completion, controls, memorisation, statistics

__all__ = ["LEAST", "Audit", "Images", "audit"]

LEAST = 100  # non-members: 64 of them for the positive control
FEWEST = 32  # members
ERROR = 0.05  # chance of a false alarm, over all tests together

Progress = Callable[[str, int, int], None]


class Images(NamedTuple):
    """One side: rows of a data set."""

    dataset: Dataset
    ids: NDArray[np.int64]

    def patches(self, loaded: model.Model) -> Tensor:
        """[n, N, P], as the model's space gives them."""
        if self.dataset.latents is not None:
            return loaded.space.encode(torch.from_numpy(self.dataset.latents.means(self.ids)))
        return loaded.space.encode(from_uint8(self.dataset.batch(self.ids)))

    def labels(self, loaded: model.Model) -> Tensor | None:
        """[n], −1 where the model does not know the label's name; None for one without labels."""
        if not loaded.label_names:
            return None
        names = list(loaded.label_names)
        numbers = [names.index(n) if n in names else -1 for n in self.dataset.label_names]
        table = np.array([*numbers, -1], np.int64)  # the last: of unlabelled images
        return torch.from_numpy(table[self.dataset.labels[self.ids]])


class Audit(NamedTuple):
    """Numbers for the JSON, and the samples nearest to a training image with that image."""

    result: dict[str, Any]
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8], float]]


def audit(
    source: str | Path,
    *,
    names: Sequence[str] = tuple(attacks.ATTACKS),
    n: int = 1000,
    samples: int = 512,
    fpr: Sequence[float] = (),
    reference: str | Path | None = None,
    members: str | None = None,
    non_members: str | None = None,
    weights: model.Weights = "ema",
    control: bool = True,
    seed: int = 0,
    batch: int = 64,
    device: str = "auto",
    vae: str | Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit the model in `source`, with at most `n` images a side and `samples` samples.

    `fpr`: rates of false positives that must be shown, as 0.001; empty: those for which there are
    enough images. `reference`: a model that saw neither side, for the null and for scores less the
    difficulty of each image. `members`, `non_members`: data instead of what the run recorded.
    `control` False leaves out the positive control, and with it any verdict of no leak. `vae`: as
    in `model.load`.
    Raises UserError for wrong use.
    """
    began = time.monotonic()
    names = attacks.check(names)
    folder = model.find(source)
    loaded = model.load(source, weights=weights, device=device, vae=vae)
    run, one, two = _sides(folder, loaded, members, non_members)
    others = _some(two, n, seed)
    if len(others.ids) < LEAST:
        raise UserError(
            f"{source}: {len(others.ids)} non-members, and an audit needs {LEAST}; train with "
            "--audit-split 0.5, or give --non-members DATA"
        )
    own = _some(one, n, seed)
    if len(own.ids) < FEWEST:
        raise UserError(
            f"{source}: {len(own.ids)} members, and an audit needs {FEWEST}; give more by --members"
        )
    statistics.require(list(fpr), len(others.ids))
    sigmas = attacks.levels(loaded.denoiser.process)
    mask, ensemble = _mask(run, loaded, seed)
    patches = [side.patches(loaded) for side in (own, others)]
    labels = [side.labels(loaded) for side in (own, others)]

    def score(asked: model.Model, what: str) -> list[dict[str, NDArray[np.float64]]]:
        return [
            attacks.scores(
                asked.denoiser,
                x,
                names,
                sigmas,
                labels=y,
                mask=None if mask is None else controls.spread(mask, len(x)),
                seed=seed,
                ensemble=ensemble,
                batch=batch,
                progress=_named(progress, f"{what}, {side}"),
            )
            for side, x, y in zip(("members", "non-members"), patches, labels, strict=True)
        ]

    found = score(loaded, "attacks")
    tried: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {
        name: (found[0][name], found[1][name]) for name in names
    }
    null: dict[str, Any] = {"blind": _blind(own, others, seed), "reference": None}
    if reference is not None:
        other = _reference(reference, loaded, own, others, device)
        base = score(other, "reference")
        null["reference"] = _null(base, names)
        for name in names:
            tried[f"{name}, calibrated"] = (
                found[0][name] - base[0][name],
                found[1][name] - base[1][name],
            )
    tests = len(tried) + 6  # four counts of copies, completion, the data set as a whole
    asked = tuple(fpr) or tuple(statistics.NEEDED)
    membership = {
        name: {
            **statistics.evaluate(a, b, seed=seed, fpr=asked),
            "corrected": statistics.evaluate(a, b, seed=seed, fpr=(), confidence=1 - ERROR / tests)[
                "auc"
            ],
        }
        for name, (a, b) in tried.items()
    }
    features = [np.concatenate([side[name] for name in names], 1) for side in found]
    result: dict[str, Any] = {
        "source": str(source),
        "underpaint": __version__,
        "weights": weights,
        "members": len(own.ids),
        "non_members": len(others.ids),
        "of": {"members": len(one.ids), "non_members": len(two.ids)},
        "parts": None if mask is None or mask.visible is None else mask.visible.shape[1],
        "patches": patches[0].shape[1],
        "levels": sigmas,
        "seed": seed,
        "tests": tests,
        "detectable": statistics.detectable(
            -(-len(own.ids) // 2), -(-len(others.ids) // 2), 1 - ERROR / tests
        ),
        "membership": membership,
        "dataset": cdi.infer(features[0], features[1], seed=seed),
        "completion": _completion(loaded, patches, labels, seed, batch, progress),
    }
    copies, pairs = _copies(loaded, one, others, samples, seed, batch, progress)
    result["copies"] = copies
    positive = None
    if control:
        positive = _positive(
            folder, loaded, patches[1], labels[1], names, sigmas, mask, weights, seed, progress
        )
    result["controls"] = {"null": null, "positive": positive}
    result |= _verdict(result, tests)
    result["seconds"] = time.monotonic() - began
    return Audit(result, pairs)


# --- who is who --------------------------------------------------------------------------------


def _sides(
    folder: Path, loaded: model.Model, members: str | None, non_members: str | None
) -> tuple[config.Run | None, Images, Images]:
    """The run's recipe, if there is one; members and non-members, which do not overlap."""
    place = next((p for p in (folder, *folder.parents) if (p / "config.yaml").is_file()), None)
    run = config.load(place / "config.yaml") if place else None
    recorded = place / "images.json" if place else None
    if (members is None or non_members is None) and not (recorded and recorded.is_file()):
        raise UserError(
            f"{folder}: records no members (no images.json of a run); give --members DATA and "
            "--non-members DATA"
        )
    known: dict[str, list[str]] = {}
    data = config.Data(size=loaded.spec.size, channels=loaded.spec.channels)
    dataset: Dataset | None = None
    if recorded and recorded.is_file() and run:
        try:
            known = json.loads(recorded.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{recorded}: is damaged; give --members and --non-members") from None
        last = list(run.stages.values())[-1]
        data = last.data or run.data
        data = dataclasses.replace(data, size=last.size) if last.size else data
        if members is None or non_members is None:
            dataset = _ready(prepare(data), loaded)
    sides = []
    for source, name in ((members, "trained"), (non_members, "held_out")):
        if source is not None:
            wish = dataclasses.replace(
                data,
                source=source,
                held_out="none",
                audit_split=0.0,
                limit=0,
                size=loaded.spec.size,
            )
            given = _ready(prepare(wish), loaded)
            sides.append(Images(given, given.train_ids))
        else:
            if dataset is None:
                raise ValueError("the run's own data were not read")
            listed = set(known.get(name, []))
            there = [i for i, sha in enumerate(dataset.file_sha256) if sha in listed]
            sides.append(Images(dataset, np.array(there, np.int64)))
    _apart(sides[0], sides[1])
    return run, sides[0], sides[1]


def _ready(dataset: Dataset, loaded: model.Model) -> Dataset:
    return dataset if loaded.vae is None else latents.prepare(dataset, loaded.vae)


def _apart(one: Images, two: Images) -> None:
    """Raise UserError if an image is on both sides, by its pixels."""
    sha = [{side.dataset.pixel_sha256[i] for i in side.ids.tolist()} for side in (one, two)]
    if both := sha[0] & sha[1]:
        raise UserError(
            f"{len(both)} images are members and non-members at once (their pixels are equal); "
            "remove them from one of the lists"
        )


def _some(side: Images, n: int, seed: int) -> Images:
    """At most `n` different images of a side, a function of `seed`, ascending."""
    ids = memorisation.distinct(side.dataset, side.ids) if len(side.ids) else side.ids
    if len(ids) > n:
        ids = np.sort(np.random.default_rng(seed).choice(ids, n, replace=False))
    return Images(side.dataset, ids)


def _mask(
    run: config.Run | None, loaded: model.Model, seed: int
) -> tuple[Mask | None, attacks.Ensemble]:
    """The mask [1, V] of an attack on a model of parts alone, and the run's kind of masks."""
    masked = [s for s in run.stages.values() if s.mask != "none"] if run else []
    # a network of convolutions with strides takes crops alone
    kind, rate, block = ("crop" if loaded.denoiser.stride > 1 else "patch"), 0.5, 2
    if masked:
        kind, rate, block = masked[-1].mask, masked[-1].rate, masked[-1].block
        kind = "patch" if kind == "salient" else kind
    ensemble = attacks.Ensemble(kind, rate, block)
    if not run or list(run.stages.values())[-1].mask == "none":
        return None, ensemble
    generator = torch.Generator().manual_seed(seed)
    mask = draw(
        kind,
        loaded.space.grid,
        1,
        rate,
        block=block,
        multiple=loaded.denoiser.stride,
        generator=generator,
    )
    return (None if mask.visible is None else mask), ensemble


# --- what is tried -----------------------------------------------------------------------------


def _blind(own: Images, others: Images, seed: int) -> dict[str, Any]:
    return controls.blind(own.dataset.batch(own.ids), others.dataset.batch(others.ids), seed)


def _reference(
    source: str | Path, loaded: model.Model, own: Images, others: Images, device: str
) -> model.Model:
    """The reference model. Raises UserError if it is of another space, or has seen a side."""
    other = model.load(source, device=device)
    if (other.space.grid, other.space.patch_dim) != (loaded.space.grid, loaded.space.patch_dim):
        raise UserError(f"reference {source}: its images or patches have another size")
    folder = model.find(source)
    place = next((p for p in folder.parents if (p / "images.json").is_file()), None)
    if place:
        seen = set(json.loads((place / "images.json").read_text(encoding="utf-8"))["trained"])
        for side in (own, others):
            if any(side.dataset.file_sha256[i] in seen for i in side.ids.tolist()):
                raise UserError(
                    f"reference {source}: was trained on images of this audit; give one that saw "
                    "neither members nor non-members"
                )
    return other


def _null(base: list[dict[str, NDArray[np.float64]]], names: Sequence[str]) -> dict[str, Any]:
    """The attacks on the reference model, which saw neither side."""
    confidence = 1 - (1 - controls.CONFIDENCE) / len(names)
    found = {
        name: statistics.evaluate(base[0][name], base[1][name], fpr=(), confidence=confidence)
        for name in names
    }
    passed = all(own["auc"]["low"] <= 0.5 <= own["auc"]["high"] for own in found.values())
    return {"auc": {name: own["auc"] for name, own in found.items()}, "passed": passed}


def _completion(
    loaded: model.Model,
    patches: list[Tensor],
    labels: list[Tensor | None],
    seed: int,
    batch: int,
    progress: Progress | None,
) -> dict[str, Any]:
    found = [
        completion.errors(
            loaded.denoiser,
            x[:200],
            labels=None if y is None else y[:200],
            seed=seed,
            batch=batch,
            progress=_named(progress, "completion"),
        )
        for x, y in zip(patches, labels, strict=True)
    ]
    return {**completion.advantage(found[0], found[1]), "images": [len(part) for part in found]}


def _copies(
    loaded: model.Model,
    one: Images,
    others: Images,
    samples: int,
    seed: int,
    batch: int,
    progress: Progress | None,
) -> tuple[dict[str, Any], list[tuple[NDArray[np.uint8], NDArray[np.uint8], float]]]:
    """Samples, with the labels of training images, against all of those."""
    labels = one.labels(loaded)
    rng = np.random.default_rng(seed)
    chosen: list[str | int] | None = None
    if labels is not None:
        chosen = [int(labels[i]) for i in rng.integers(0, len(labels), samples)]
    drawn = loaded.sample(
        samples, seed=seed, labels=chosen, batch=batch, progress=_named(progress, "samples")
    )
    ids = memorisation.distinct(one.dataset, one.ids)
    images = one.dataset.images
    found = memorisation.search(drawn, others.dataset.batch(others.ids), images, ids)
    twins = memorisation.near_duplicates(images, ids)
    result = {
        **found.result,
        "removed_duplicates": len(one.ids) - len(ids),
        "near_duplicates": [
            [one.dataset.names[i], one.dataset.names[j], ratio]
            for i, j, ratio in zip(
                twins.which[:16].tolist(),
                twins.ids[:16].tolist(),
                twins.ratios[:16].tolist(),
                strict=True,
            )
        ],
        "near_duplicate_pairs": len(twins.ids),
    }
    worst = found.worst
    pairs = [
        (drawn[i], images[j], float(ratio))
        for i, j, ratio in zip(worst.which, worst.ids, worst.ratios, strict=True)
    ]
    return result, pairs


def _positive(
    folder: Path,
    loaded: model.Model,
    patches: Tensor,
    labels: Tensor | None,
    names: Sequence[str],
    sigmas: Sequence[float],
    mask: Mask | None,
    weights: str,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """The positive control, kept by what it depends on: the weights, the images, the attacks."""
    few, rest = slice(None, controls.COPIED), slice(controls.COPIED, controls.COPIED + 500)
    # the images lie in the order of the data set, which may be one of classes
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(patches)))
    patches, labels = patches[order], None if labels is None else labels[order]
    shown = b"" if mask is None or mask.visible is None else mask.visible.numpy().tobytes()
    digests = json.dumps([model.read_card(folder)["sha256"], weights, list(names), list(sigmas)])
    name = _digest(digests.encode(), patches.numpy().tobytes(), shown, str(seed).encode())
    return controls.cached(
        name,
        lambda: controls.overfit(
            loaded.denoiser,
            patches[few],
            patches[rest],
            names,
            sigmas,
            labels=None if labels is None else (labels[few], labels[rest]),
            mask=mask,
            seed=seed,
            progress=_named(progress, "positive control"),
        ),
    )


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:32]


# --- what may be said --------------------------------------------------------------------------


def _verdict(result: dict[str, Any], tests: int) -> dict[str, Any]:
    """`verdict`, the `reasons` if there is none, and the `findings`."""
    reasons, findings = [], []
    blind, reference = (result["controls"]["null"][k] for k in ("blind", "reference"))
    positive = result["controls"]["positive"]
    if not blind["passed"]:
        reasons.append("members and non-members can be told apart without asking the model")
    if reference and not reference["passed"]:
        reasons.append("the attacks succeed on a reference model that saw neither side")
    if positive is None:
        reasons.append("the positive control was left out")
    elif not positive["passed"]:
        reasons.append(
            f"the attacks do not see a planted leak (AUC {positive['best']:.2f}, and "
            f"{controls.ENOUGH} is needed)"
        )
    for name, own in result["membership"].items():
        if own["corrected"]["low"] > 0.5:
            findings.append(f"membership by {name}: AUC {own['auc']['value']:.3f}")
    for name, own in result["copies"]["ratios"].items():
        third, quantile = own["third"], own["quantile"]
        if third.get("p_value", 1.0) < ERROR / tests or (quantile and quantile["beyond_chance"]):
            count = third["count"] if third["count"] else quantile["count"]
            findings.append(f"copies by the ratio {name}: {count} of {result['copies']['samples']}")
    if result["completion"]["p_value"] < ERROR / tests:
        findings.append(f"completion: advantage {result['completion']['advantage']:.4f}")
    if result["dataset"]["p_value"] < ERROR / tests:
        findings.append(f"data set as a whole: p = {result['dataset']['p_value']:.2g}")
    verdict = "no verdict" if reasons else "leak found" if findings else "no leak found"
    return {"verdict": verdict, "reasons": reasons, "findings": findings}


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
