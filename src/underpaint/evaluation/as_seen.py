"""A run's recipe as long as the run became, for others that are to see as many images."""

import dataclasses
from pathlib import Path

from underpaint import config
from underpaint.evaluation import records


def as_seen(recipe: config.Run, run: Path) -> config.Run:
    """`recipe`, of the folder `run`, with the images and the cool-down of each stage that is over.

    Stages end early (`stop: auto`), and minutes become fewer or more images on the way. Raises
    UserError for damaged metrics.
    """
    found = records.read(run / "metrics.jsonl")
    turns = {(r["stage"], r.get("event")): r for r in records.of_kind(found, "stage")}
    stages = dict(recipe.stages)
    for name, stage in recipe.stages.items():
        start, end = turns.get((name, "start")), turns.get((name, "end"))
        if start is None or end is None:
            continue
        images = end["images"] - start["images"]
        stops = [r for r in records.of_kind(found, "stop") if r.get("stage") == name]
        lengths = [r["cooldown"] for r in stops if r.get("cooldown")]
        share = min(1.0, lengths[-1] / images) if lengths and images else stage.cooldown
        stages[name] = dataclasses.replace(stage, images=images, minutes=0.0, cooldown=share)
    return dataclasses.replace(recipe, stages=stages)
