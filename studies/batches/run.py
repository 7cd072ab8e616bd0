"""How many images a step suit the quick start? Five ways of spending its compute, one seed.

    python -m studies.batches.run               as many processes as there are cores

The network and the images of `underpaint quickstart`, in 1.3e13 training FLOPs, what its main run
spends in three minutes of two cores. Scores: error of x0 on held-out images, and the Fréchet
distance (MobileNetV2 features, no FID) of 400 samples to 400 held-out images. Its preset has the
batches that came out of this; one seed tells no small difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from studies.lib import units
from underpaint.compare import study
from underpaint.evaluation import features, metrics

HERE = Path(__file__).parent
FLOPS, COUNT = 1.3e13, 400


class Way(NamedTuple):
    """Images a step of masked and of whole images, learning rate, share of masked FLOPs."""

    masked: int
    whole: int
    rate: float
    share: float


WAYS = {
    "batch-32": Way(32, 32, 1e-3, 0.32),
    "batch-8": Way(8, 8, 4e-3, 0.32),
    "batch-32-then-8": Way(32, 8, 3e-3, 0.32),
    "batch-16-then-8": Way(16, 8, 2e-3, 0.32),
    "batch-8-whole-alone": Way(0, 8, 4e-3, 0.0),
}


def recipe(way: Way, scale: float) -> Any:
    """The run of a unit."""
    from underpaint import config

    own = {"minutes": 0, "learning_rate": way.rate}
    masked = own | {"images": way.masked, "batch": way.masked, "warmup": 1000}
    whole = own | {"images": way.whole, "batch": way.whole, "warmup": 0 if way.share else 1000}
    stages = {"masked": masked if way.share else None, "whole": whole}
    alone = {"threads": 1, "sample_every": -1, "check_every": -1}
    run = config.from_dict(
        config.Run,
        {"noise": units.INDEPENDENT, "stages": stages, "train": alone, "sampling": units.EULER},
        "batches: ",
        units.base("quickstart"),
    )
    shares = {"masked": way.share, "whole": 1 - way.share} if way.share else {"whole": 1.0}
    return study.scaled(run, shares, FLOPS, scale, (32, 32), 3, 8)


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it."""
    import torch

    from underpaint import config, data, model
    from underpaint.compare.split_scoring import measure

    folder = work / unit
    spent = units.trained(recipe(WAYS[unit], scale), folder)
    network = features.load("mobilenetv2")
    dataset = data.prepare(config.load(folder / "config.yaml").data)
    loaded = model.load(folder, device="cpu")
    labels = [i % len(loaded.label_names) for i in range(COUNT)]
    drawn = torch.from_numpy(network(loaded.sample(COUNT, seed=0, labels=labels)))
    real = torch.from_numpy(network(dataset.batch(dataset.held_out_ids[:COUNT])))
    return {
        "held_out": measure(folder, "held-out loss", "B", most=256, extractor=""),
        "frechet": metrics.frechet_distance(real, drawn),
        **spent,
    }


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(WAYS, work, lambda name: WAYS[name]._asdict())
    units.write_json(out, {**units.made(), "scale": scale, "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", WAYS, HERE / "results.json", do, write))
