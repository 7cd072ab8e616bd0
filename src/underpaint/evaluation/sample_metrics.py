"""Samples of a run: how near to training and to held-out images, and how many are near copies.

    frechet_train, frechet_held_out   Fréchet distance of samples to as many images of each
    copies                            share of the samples with d1 < d2/3

with d1 ≤ d2 a sample's distances, pixel by pixel, to the two nearest training images (the ratio of
Yoon et al. 2023; `audit` looks closer). A network that copies comes nearer to the training images
than to the held-out ones, and its share of copies rises.

Such records come from the checks of a run with `train.check_samples`, and from what `underpaint
evaluate` found of its checkpoints. Few samples bias a Fréchet distance upwards, so only records of
one `protocol` are comparable, with each other and not with anything else.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underpaint.bounded import read_json
from underpaint.core.alpha import CHANNELS
from underpaint.errors import UserError
from underpaint.evaluation import features, metrics
from underpaint.evaluation.nearest import distance_ratios
from underpaint.model import Model
from underpaint.training.training_set import TrainingSet

LEAST = 64  # images per side of a Fréchet distance, as in `evaluate`
SEARCHED = 20_000  # training images among which copies are looked for
EXTRACTOR = "mobilenetv2"


class Drawn:
    """Fixed training and held-out images; measures a model's samples from fixed noises."""

    def __init__(
        self, data: TrainingSet, count: int, seed: int, extractor: features.Extractor | None = None
    ) -> None:
        """`count`: samples a measurement. Raises UserError for sealed data or missing weights."""
        if data.images is None:
            raise UserError(
                "train.check_samples: samples are compared with whole images, and sealed data hold "
                "none; set it to 0"
            )
        self.data, self.images, self.count = data, data.images, count
        rng = np.random.default_rng(seed)
        train, held_out = (rng.permutation(i) for i in (data.train_ids, data.held_out_ids))
        self.searched = np.sort(train[:SEARCHED])
        self.labels = data.labels[train[np.arange(count) % len(train)]]
        side = min(count, len(train), len(held_out) or count)
        self.sides = {"train": train[:side], "held_out": held_out[:side]}
        self.extractor = extractor
        if side >= LEAST and extractor is None:
            self.extractor = features.load(EXTRACTOR)
        self._found: dict[str, torch.Tensor] = {}

    def measure(self, model: Model) -> dict[str, Any]:
        """One record; a distance is None where there are fewer than LEAST images."""
        labels = [int(label) for label in self.labels] if model.label_names else None
        samples = model.sample(self.count, seed=0, labels=labels)
        record: dict[str, Any] = {"samples": self.count, "protocol": None, "copies": None}
        if samples.shape[1:] == self.images.shape[1:] and len(self.searched) > 1:
            ratios = distance_ratios(samples, self.images, self.searched, background=1)
            record["copies"] = float(ratios.copies().mean())
        side = len(self.sides["train"])
        drawn = None
        for name, ids in self.sides.items():
            record[f"frechet_{name}"] = None
            if self.extractor is None or len(ids) < LEAST:
                continue
            if drawn is None:
                drawn = torch.from_numpy(self.extractor(samples[:side]))
                grounds = f" ({features.GROUNDS})" if samples.shape[3] == CHANNELS else ""
                record["protocol"] = (
                    f"{self.extractor.distance} of {side:,} images per side{grounds}"
                )
            if name not in self._found:
                extracted = self.extractor(self.data.pixels(ids))
                self._found[name] = torch.from_numpy(extracted)
            record[f"frechet_{name}"] = float(metrics.frechet_distance(self._found[name], drawn))
        return record


def recorded(run: Path) -> list[dict[str, Any]]:
    """Such records of what `underpaint evaluate` found of the checkpoints of `run`."""
    found = []
    for file in sorted((run / "evaluation").glob("scores-*.json")):
        try:
            scores = read_json(file)
            protocol, by_side = scores["protocol"], scores["scores"]
            if protocol["images"] is None or protocol["weights"] != "ema":
                continue
            sampling = ", ".join(str(v) for v in protocol["sampling"].values())
            found.append(
                {
                    "kind": "scores",
                    "images": protocol["images"],
                    "samples": protocol["count"],
                    "protocol": f"{protocol['scores'][0]} of {protocol['count']:,} images per side "
                    f"of {protocol['reference']['source']} ({sampling})",
                    "frechet_train": by_side["train"]["frechet"],
                    "frechet_held_out": by_side.get("held_out", {}).get("frechet"),
                    "copies": None,
                }
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of another version: no reason to make no report
    return found


def comparable(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with a Fréchet distance in the protocol that most of them have, by images."""
    known = [r for r in records if r["kind"] == "scores" and r["frechet_train"] is not None]
    if not known:
        return []
    most = Counter(r["protocol"] for r in known).most_common(1)[0][0]
    by_images = {r["images"]: r for r in known if r["protocol"] == most}
    return [by_images[images] for images in sorted(by_images)]
