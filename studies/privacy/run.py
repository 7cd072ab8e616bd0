"""Does training on parts protect the pictures it was trained on? Leak against quality.

    python -m studies.lib.draw --size 32 --count 40000         the pictures, once
    python -m studies.privacy.run                              as many processes as there are cores;
                                                           arm g needs the extra `dp`
    python -m studies.privacy.run --page                       the page alone

500 drawn heads that have what public ones lack (privacy_arms.py) are trained on in eight ways at
equal training FLOPs, with three seeds that draw the 500 anew. Each checkpoint is scored by quality
(Fréchet distance of 500 samples to 1,000 further private heads, MobileNetV2 features, no FID) and
by the Loss attack on 500 members and 500 non-members; the last one by all attacks on 500 members
and 3,000 non-members, copies, and completion of hidden halves. The best of all attacks and noise
levels is chosen on one half of the images and scored on the other.

Units: `data`; pilot-LENGTH, arm a with seed 0 at each of `LENGTHS`; ARM_SEED. The runs take the
first length at which the pilot's Loss attack has an AUC of 0.7, or the longest if none has: then
the page says so first, for nothing can be shown of a leak that is not there.

Cost on one thread with AMX, at 5e13 FLOPs: about nine minutes of training a unit (g: two or three
times that), and as many of scoring: four checkpoints of 500 samples and 1,000 images, attacks by 31
forwards an image. To stay there the attacks use three levels, two noises and four masks, and
completion one mask and 12 steps: fewer than `underpaint audit`.

Network and rates are those of a few that learned such images by heart soonest: DiT, batches of 16.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from studies.lib import units
from studies.privacy import arms as design
from studies.privacy import page as privacy_page
from underpaint.evaluation import features, metrics

HERE = Path(__file__).parent
PICTURES = Path("runs/data/lorelei-32.zip")
SEEDS = (1, 2, 3)
LENGTHS = (2e13, 4e13, 5e13)  # training FLOPs
LEAKS = 0.7  # AUC of the Loss attack on an ordinary model that is worth protecting from
ATTACKS = ("loss", "secmi", "pia", "sima", "masks")
SIGMAS = (0.25, 0.6, 1.4)  # lower, the image is given away; higher, all images look alike
NOISES, MASKS, STEPS = 2, 4, 12
SAMPLES = CHEAP = 500  # samples of a checkpoint; non-members of its Loss attack

PILOTS = [f"pilot-{length:.0e}" for length in LENGTHS]
RUNS = [f"{arm}_{seed}" for seed in SEEDS for arm in design.ARMS]
UNITS = ["data", *PILOTS[:2], *RUNS, *PILOTS[2:]]  # the longest pilot may not be needed


def do(unit: str, work: Path, scale: float, pictures: Path) -> dict[str, Any]:
    """One unit, begun or gone on with."""
    if unit == "data":
        return design.write(pictures, work / "data", (0, *SEEDS), scale)
    if not units.gather(["data"], work):
        raise units.NotYet
    if unit in PILOTS:
        length = LENGTHS[PILOTS.index(unit)]
        run = train(work / unit, "ordinary", 0, length, scale, work)
        told = {"length": length, "epochs": _seen("ordinary", run, scale)["exposures"]}
        return told | leak(work / unit, 0, work)
    arm, seed = unit.split("_")
    found = chosen(units.gather(PILOTS, work))
    if found is None:
        raise units.NotYet
    run = train(work / unit, arm, int(seed), found["length"], scale, work)
    return measure(work / unit, arm, int(seed), run, scale, work)


def chosen(pilots: dict[str, Any]) -> dict[str, Any] | None:
    """The first length whose pilot leaks, or the longest; None where its pilot is not done yet."""
    for name, length in zip(PILOTS, LENGTHS, strict=True):
        if name not in pilots:
            return None
        reached = bool(pilots[name]["auc"]["value"] >= LEAKS)
        if reached or length == LENGTHS[-1]:
            return {"length": length, "reached": reached}
    return None


def train(folder: Path, arm: str, seed: int, length: float, scale: float, work: Path) -> Any:
    """The finished run of an arm; returns its recipe."""
    run = design.recipe(arm, seed, length, scale, work / "data")
    units.trained(run, folder)
    return run


# --- what is measured ----------------------------------------------------------------------------


def leak(folder: Path, seed: int, work: Path) -> dict[str, Any]:
    """The Loss attack on the end of a run, on 500 a side."""
    from underpaint import model
    from underpaint.privacy import statistics

    loaded = model.load(folder, device="cpu", precision="auto")
    members, others = sides(loaded, seed, work, CHEAP)
    a, b = (_scores(loaded, side, ("loss",))["loss"] for side in (members, others))
    shutil.rmtree(folder / "checkpoints")
    return {"auc": statistics.evaluate(a, b)["auc"], "members": len(a), "non_members": len(b)}


def measure(
    folder: Path, arm: str, seed: int, run: Any, scale: float, work: Path
) -> dict[str, Any]:
    """Curve of leak against quality, and all attacks on the last checkpoint."""
    from underpaint import model
    from underpaint.privacy import copies, statistics

    checkpoints = folder / "checkpoints"
    there = [int(path.name) for path in checkpoints.iterdir() if path.is_dir()]
    curve: list[dict[str, Any]] = []
    for images, share in design.points(design.described(run), there):
        loaded = model.load(checkpoints / f"{images:012d}", device="cpu", precision="auto")
        members, others = sides(loaded, seed, work, CHEAP)
        loss = [_scores(loaded, side, ("loss",))["loss"] for side in (members, others)]
        samples = loaded.sample(_samples(scale), seed=0)
        auc = statistics.evaluate(*loss)["auc"]
        point = {"images": images, "share": share, "auc": auc}
        curve.append(point | {"frechet": quality(samples, seed, work)})
    members, others = sides(loaded, seed, work)  # the last of the loop is the end of the run
    pixels = {name: _load(work, seed, name) for name in ("members", "others")}
    copied = copies.search(
        samples, pixels["others"], pixels["members"], np.arange(len(pixels["members"]))
    )
    result = {
        "title": design.ARMS[arm].title,
        "precision": loaded.precision,  # of samples and attacks
        "sampling": {key: getattr(loaded.spec.sampling, key) for key in ("sampler", "steps")},
        **{key: _ends(folder)[-1][key] for key in ("flops", "seconds")},
        **_seen(arm, run, scale),
        "curve": curve,
        "frechet": curve[-1]["frechet"],
        "floor": quality(pixels["others"][: len(samples)], seed, work),
        "attacks": attacked(loaded, members, others, ATTACKS),
        "copies": copied.result,
        "completion": completed(loaded, members, others),
    }
    if arm == "fixed-public":
        result["knows_masks"] = knowing(loaded, run, seed, work)
    if arm == "public-dp":
        result["privacy"] = _spent(folder)
    for images in sorted(there)[:-1]:  # two hundred megabytes a run
        shutil.rmtree(checkpoints / f"{images:012d}")
    return result


def sides(loaded: Any, seed: int, work: Path, most: int | None = None) -> tuple[Any, Any]:
    """Patches [n, N, P] of the members and of at most `most` non-members."""
    from underpaint.core.spaces import from_uint8

    members, others = _load(work, seed, "members"), _load(work, seed, "others")[:most]
    return loaded.space.encode(from_uint8(members)), loaded.space.encode(from_uint8(others))


def attacked(
    loaded: Any, members: Any, others: Any, names: tuple[str, ...], masks: Any = (None, None)
) -> dict[str, Any]:
    """Each attack with its intervals; `best` of all attacks and levels, chosen on one half."""
    from underpaint.privacy import statistics

    a, b = (
        _scores(loaded, side, names, mask)
        for side, mask in zip((members, others), masks, strict=True)
    )
    found = {name: statistics.evaluate(a[name], b[name]) for name in names}
    both = [np.concatenate([side[name] for name in names], 1) for side in (a, b)]
    best = statistics.evaluate(*both)
    return found | {"best": best | {"attack": names[best["level"] // len(SIGMAS)]}}


def knowing(loaded: Any, run: Any, seed: int, work: Path) -> dict[str, Any]:
    """Attacks by who knows the fixed mask of each image: what was shown, and what was hidden."""
    from underpaint.core.masks import Mask

    members, others = sides(loaded, seed, work)
    masks = [own_masks(run, work / "data" / str(seed) / f"{s}.npy") for s in ("members", "others")]
    turned = [Mask(mask.grid, mask.hidden, mask.visible) for mask in masks]
    names = ("loss", "pia")
    return {
        "visible": attacked(loaded, members, others, names, masks),
        "hidden": attacked(loaded, members, others, names, turned),
    }


def own_masks(run: Any, source: Path) -> Any:
    """The fixed mask of each image, as the run's first stage gives it or would have given it."""
    import torch

    from underpaint import config, data
    from underpaint.core.masks import MaskSpec, draw
    from underpaint.data import fixed_masks

    stage = next(iter(run.stages.values()))
    dataset = data.prepare(config.Data(source=str(source), size=(32,), held_out="none"))
    n, side = len(dataset.images), 32 // run.space.patch
    digests = dataset.pixel_digests
    seeds = [fixed_masks.seed_of(None, digests[i].tobytes()) for i in range(n)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    spec = MaskSpec(stage.mask, stage.rate, block=stage.block)
    return draw(spec, (side, side), n, generators)


def completed(loaded: Any, members: Any, others: Any) -> dict[str, Any]:
    """How much closer to the truth hidden halves of members come."""
    from underpaint.privacy import completion

    a, b = (
        completion.errors(loaded.denoiser, side[:CHEAP], draws=1, steps=STEPS).mean(0)
        for side in (members, others)
    )
    return completion.advantage(a, b)


def quality(images: Any, seed: int, work: Path) -> float:
    """Fréchet distance to the private reference, whose features are kept."""
    import torch

    network = _features()
    kept = work / "data" / str(seed) / f"features-{network.sha256[:12]}.npy"
    if not kept.is_file():
        part = kept.with_name(f"{kept.stem}.{os.getpid()}.part.npy")
        np.save(part, network(_load(work, seed, "reference")))
        part.replace(kept)
    real = torch.from_numpy(np.load(kept))
    return float(metrics.frechet_distance(real, torch.from_numpy(network(images))))


@functools.cache
def _features() -> Any:

    return features.load("mobilenetv2")


def _scores(loaded: Any, side: Any, names: tuple[str, ...], mask: Any = None) -> dict[str, Any]:
    from underpaint.privacy import attacks

    return attacks.scores(
        loaded.denoiser,
        side,
        names,
        SIGMAS,
        mask=mask,
        noises=NOISES,
        ensemble=attacks.Ensemble(masks=MASKS),
    )


def _load(work: Path, seed: int, name: str) -> Any:
    return np.load(work / "data" / str(seed) / f"{name}.npy")


def _members(scale: float) -> int:
    return design.counts(scale)["members"]


def _seen(arm: str, run: Any, scale: float) -> dict[str, float]:
    return design.exposures(arm, design.described(run), _members(scale))


def _samples(scale: float) -> int:
    return min(SAMPLES, _members(scale))


def _ends(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [m for m in found if m["kind"] == "stage" and m["event"] == "end"]


def _spent(folder: Path) -> dict[str, Any]:
    return dict(_ends(folder)[-1]["privacy"])


# --- what is written -----------------------------------------------------------------------------


def settings(unit: str) -> dict[str, Any]:
    """What the name of a unit stands for; its arm is described in arms.py."""
    arm, seed = unit.split("_")
    return {"arm": arm, "seed": int(seed)}


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the page."""
    pilots = units.gather(PILOTS, work)
    told = {
        **units.made(),
        "scale": scale,
        "data": units.gather(["data"], work).get("data"),
        "pilot": {"wanted": LEAKS, "chosen": chosen(pilots), "runs": list(pilots.values())},
        "units": units.gather(RUNS, work, settings),
    }
    told["claims"] = privacy_page.claims(told["units"])
    units.write_json(out, told)
    privacy_page.page(told).write(out.with_suffix(".html"))


def main() -> int:
    """All units that are not done yet."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=UNITS, choices=UNITS, metavar="UNIT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lengths")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="the zip of draw.py")
    parser.add_argument("--work", type=Path, default=Path("runs/privacy"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results")
    parser.add_argument("--page", action="store_true", help="write the page of --out and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.page:
        told = json.loads(given.out.read_text(encoding="utf-8"))
        print(privacy_page.page(told).write(given.out.with_suffix(".html")))
        return 0
    if not given.pictures.is_file():
        parser.error(f"{given.pictures} is not there; draw it with studies/lib/draw.py, see --help")
    if told := units.committed(given.out, given.scale):
        pilots = {f"pilot-{run['length']:.0e}": run for run in told["pilot"]["runs"]}
        units.restore(pilots | told["units"], given.work)
    return units.conduct(
        given.only,
        given.work,
        lambda unit: do(unit, given.work, given.scale, given.pictures),
        lambda: write(given.work, given.out, given.scale),
    )


if __name__ == "__main__":
    raise SystemExit(main())
