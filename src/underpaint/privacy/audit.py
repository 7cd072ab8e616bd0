"""An audit: every attack of this package on one model, its controls, and what they allow to say.

`underpaint audit` writes the page of it (report/audit.py); docs/audit.md explains how to read that.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from underpaint import model, model_folder
from underpaint._version import __version__
from underpaint.errors import UserError
from underpaint.evaluation import features
from underpaint.hardware import Precision
from underpaint.privacy import (
    attacks,
    cdi,
    completion,
    controls,
    duration,
    membership,
    shadows,
    statistics,
    verdict,
)
from underpaint.privacy.calibration import (
    AttackSetup,
    calibrate_by_shadows,
    load_reference,
)
from underpaint.privacy.copies import ImagePair, find_copies
from underpaint.privacy.membership import FEWEST, Subset, subsample
from underpaint.progress import doing, note


class Effort(NamedTuple):
    """How much an audit takes: what it can see, and how long it lasts.

    QUICK is an audit of a model of 64×64 pixels in five minutes of one core. What fewer images
    cannot show is in the verdict, as the smallest AUC that would be seen; what fewer noises and
    masks cost the attacks is what `benchmarks/audit_effort.py` asks.
    """

    images: int  # of members, and of non-members
    samples: int  # searched for copies
    completed: int  # images of each kind that are completed
    noises: int  # an image, in the attacks that draw some
    masks: int  # an image, in the attack under many masks
    planted: int  # non-members that the positive control memorizes


QUICK = Effort(300, 128, 64, noises=2, masks=4, planted=32)
THOROUGH = Effort(1000, 512, 200, noises=4, masks=8, planted=64)


class Audit(NamedTuple):
    """Numbers for the JSON, and by space the most suspicious samples with their nearest image."""

    result: dict[str, Any]
    pairs: dict[str, list[ImagePair]]


class Clock:
    """How long each phase took, on the wall and on all cores."""

    def __init__(self) -> None:
        self.spent: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "cpu": 0.0})

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.spent[phase]["seconds"] += time.monotonic() - wall
        self.spent[phase]["cpu"] += time.process_time() - cpu


def audit(
    source: str | Path,
    *,
    names: Sequence[str] = tuple(attacks.ATTACKS),
    n: int = 0,
    samples: int = 0,
    thorough: bool = False,
    fpr: Sequence[float] = (),
    reference: str | Path | None = None,
    shadow_models: int = 0,
    shadow_images: int = 0,
    members: str | None = None,
    non_members: str | None = None,
    data: str | None = None,
    extractor: str | None = None,
    weights_file: str | Path | None = None,
    weights: model_folder.Weights = "ema",
    control: bool = True,
    seed: int = 0,
    batch: int = 64,
    device: str = "auto",
    vae: str | Path | None = None,
    precision: Precision = "auto",
) -> Audit:
    """Audit the model in `source`, with at most `n` members and non-members and `samples` samples.

    `n` 0: as many as QUICK has, or THOROUGH if `thorough`, or more if `fpr` needs it; more members
    than non-members are of no use. `samples` 0: theirs, too.
    `fpr`: rates of false positives that must be shown, as 0.001; empty: those for which there are
    enough images. `reference`: a model that saw none of the images, for the null and to take each
    image's difficulty from its scores; `shadow_models`: so many are trained, of `shadow_images`
    each (0: as the run), see `shadows`. `members`, `non_members`: data instead of what the run
    recorded; `data`: where the run's images are now, if they have moved. `extractor`: also look for
    copies in its features. `control` False leaves out the positive control, and the verdict says
    so. `vae`, `precision`: as in `model.load`.
    Raises UserError for wrong use.
    """
    clock, effort = Clock(), THOROUGH if thorough else QUICK
    samples = samples or effort.samples
    with clock("data"):
        names = attacks.check(names)
        network = features.load(extractor, weights_file) if extractor else None
        source = model_folder.pinned(source)
        folder = model_folder.find(source)
        loaded = model.load(source, weights=weights, device=device, vae=vae, precision=precision)
        images = membership.load(folder, loaded, members, non_members, data)
        subsets = _chosen(
            images.members, images.non_members, n or effort.images, fpr, seed, str(source)
        )
        masks, ensemble, seen = images.masks(loaded, *subsets, seed)
        setup = AttackSetup(
            loaded,
            subsets,
            [subset.patches() for subset in subsets],
            masks,
            names,
            attacks.levels(loaded.denoiser.process),
            ensemble._replace(masks=effort.masks),
            effort.noises,
            seed,
            batch,
        )
        whole = subsets[0].whole
        parts = effort.completed * whole, samples * whole, effort.planted * control
        if not shadow_models and (seconds := duration.estimate(setup, *parts)) > 60:
            note(f"this audit takes about {seconds / 60:.0f} min")
        other = None if reference is None else load_reference(reference, setup)
        one, two = (subset.pixels(loaded) for subset in subsets)
        blind = controls.blind(one, two, seed)
        null: dict[str, Any] = {"blind": blind, "reference": None}
    trained = []
    if shadow_models:
        with clock("shadow models"):
            trained = shadows.train_all(images, shadow_models, images=shadow_images, seed=seed)
    with clock("attacks"):
        scores = setup.scores(loaded, "attacks")
    tried = {name: [part[name] for part in scores] for name in names}
    if other is not None:
        with clock("reference"):
            base = setup.scores(other, "reference")
        null["reference"] = controls.reference(base, names)
        for name in names:
            tried[f"{name}, calibrated"] = [scores[i][name] - base[i][name] for i in (0, 1)]
    shadow = None
    if trained:
        with clock("shadow attacks"):
            calibrated, shadow = calibrate_by_shadows(scores, trained, setup)
        tried |= calibrated
    counts = len(subsets[0].ids), len(subsets[1].ids)
    tests = verdict.count_tests(len(tried), 1 + (network is not None) if whole else 0)
    with clock("statistics"), doing("statistics"):
        rates = tuple(fpr) or tuple(statistics.REQUIRED)
        by_attack = {
            name: statistics.evaluate(*both, seed=seed, fpr=rates) for name, both in tried.items()
        }
        all_scores = [np.concatenate([part[name] for name in names], 1) for part in scores]
        dataset = cdi.infer(*all_scores, seed=seed)
    sha256 = model_folder.read_card(folder)["sha256"]
    result: dict[str, Any] = {
        "source": str(source),
        "underpaint": __version__,
        "weights": weights,
        "precision": loaded.precision,
        "sha256": sha256,
        "made": time.strftime("%Y-%m-%d"),
        "asked": {
            "attacks": names,
            "n": n,
            "samples": samples,
            "thorough": thorough,
            "fpr": list(fpr),
            "against": None if reference is None else str(reference),
            "shadows": shadow_models,
            "shadow_images": shadow_images,
            "members": members,
            "non_members": non_members,
            "data": data,
            "features": extractor,
            "weights_file": None if weights_file is None else str(weights_file),
            "control": control,
        },
        "members": counts[0],
        "non_members": counts[1],
        "of": {"members": len(images.members.ids), "non_members": len(images.non_members.ids)},
        "seen": seen,
        "parts": None if masks[0].visible is None else masks[0].visible.shape[1],
        "patches": setup.patches[0].shape[1],
        "levels": setup.sigmas,
        "noises": effort.noises,
        "masks": effort.masks,
        "seed": seed,
        "tests": tests,
        "detectable": statistics.detectable(
            -(-counts[0] // 2), -(-counts[1] // 2), verdict.ERROR / tests
        ),
        "notes": images.notes + verdict.few(*counts),
        "membership": by_attack,
        "shadows": shadow,
        "dataset": dataset,
        "completion": None,
        "copies": None,
    }
    pairs: dict[str, list[ImagePair]] = {}
    if whole:
        with clock("completion"):
            result["completion"] = _completion(setup, effort.completed)
        result["copies"], pairs = find_copies(setup, images.members, samples, network, clock)
    positive = None
    if control:
        with clock("positive control"):
            positive = controls.positive(setup, effort.planted, [sha256, weights, loaded.precision])
    result["controls"] = {"null": null, "positive": positive}
    result |= verdict.judge(result, tests)
    result["phases"] = dict(clock.spent)
    return Audit(result, pairs)


def _chosen(
    members: Subset, non_members: Subset, n: int, fpr: Sequence[float], seed: int, source: str
) -> tuple[Subset, Subset]:
    """The images that are scored: as many members as non-members. UserError for too few."""
    if n < FEWEST:
        raise UserError(f"-n {n}: an audit needs at least {FEWEST} images of each kind")
    required = [statistics.required_non_members(rate) for rate in fpr if 0 < rate < 1]
    most = max([n, *required])
    non_members = subsample(non_members, most, seed)
    members = subsample(members, min(most, max(FEWEST, len(non_members.ids))), seed)
    for subset, name, advice in (
        (non_members, "non-members", "train with --audit-split 0.5, or give --non-members DATA"),
        (members, "members", "give more by --members DATA"),
    ):
        if len(subset.ids) < FEWEST:
            raise UserError(
                f"{source}: {len(subset.ids)} {name}, and an audit needs {FEWEST}; {advice}"
            )
    statistics.require(list(fpr), len(non_members.ids))
    return members, non_members


def _completion(setup: AttackSetup, most: int) -> dict[str, Any]:
    by_subset = []
    for subset, x in zip(setup.subsets, setup.patches, strict=True):
        labels = subset.labels(setup.loaded)
        errors = completion.errors(
            setup.loaded.denoiser,
            x[:most],
            labels=None if labels is None else labels[:most],
            seed=setup.seed,
            batch=setup.batch,
        )
        by_subset.append(errors.mean(0))
    return {**completion.advantage(*by_subset), "images": [len(part) for part in by_subset]}
