"""How long an image takes in each stage of each arm of a study, nothing beside it."""

import math
import statistics

import torch

from underpaint import config
from underpaint.training import distributed
from underpaint.training.stages import PreparedStage, prepare_stages
from underpaint.training.throughput import speed

WARM, PASSES = 4, 8  # over all stages; the warm ones do not count
SECONDS = 0.4  # of a stage in a pass, at least

Key = tuple[str, str]  # arm, stage


def measured(runs: dict[str, config.Run]) -> dict[str, dict[str, float]]:
    """Seconds an image by arm and stage, one thread.

    All stages take turns, so that a machine that slows down slows all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # ready before the first pass: what has just been prepared slows the next steps
        stages = {name: prepare_stages(run, lambda _: None) for name, run in runs.items()}
        passes = [_pass(runs, stages) for _ in range(WARM + PASSES)]
    finally:
        torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for (name, stage), seconds in paired(passes[WARM:]).items():
        found[name][stage] = seconds
    return found


def _pass(runs: dict[str, config.Run], stages: dict[str, list[PreparedStage]]) -> dict[Key, float]:
    """Seconds an image of every stage, once."""
    found = {}
    for name, run in runs.items():
        world = distributed.start(run.train.device)  # where the arm's runs are
        try:
            for stage in stages[name]:
                found[name, stage.name] = 1 / speed(stage, run, world, SECONDS)
        finally:
            world.close()
    return found


def paired(passes: list[dict[Key, float]]) -> dict[Key, float]:
    """Seconds of each stage from several passes over all of them, as in the fastest pass.

    Each is the median over the passes of its share in the pass's geometric mean: a pass that is
    slower as a whole changes none, nor does one disturbed stage in few of the passes.
    """
    means = [math.exp(statistics.fmean(map(math.log, one.values()))) for one in passes]
    return {
        key: min(means)
        * statistics.median(one[key] / mean for one, mean in zip(passes, means, strict=True))
        for key in passes[0]
    }
