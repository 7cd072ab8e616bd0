"""Stages whose length is given in minutes: measured once, then frozen as images.

`step_seconds` times one step for everything that asks how fast training is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from underpaint import config
from underpaint.training import distributed, stages
from underpaint.training.stages import Plan
from underpaint.training.state import Progress
from underpaint.training.step import step
from underpaint.training.train_state import Learner

__all__ = ["freeze", "speed", "step_seconds"]


def freeze(
    run: config.Run, plans: list[Plan], world: distributed.World
) -> tuple[config.Run, list[Plan]]:
    """Stages given in minutes, now in images, by the speed of this machine."""
    if not any(plan.stage.minutes for plan in plans):
        return run, plans
    frozen = {}
    for plan in plans:
        stage = plan.stage
        if stage.minutes:
            images = stage.minutes * 60.0 * speed(plan, run, world)
            batches = max(1, round(world.from_first([images])[0] / stage.batch))
            images = batches * stage.batch
            warmup = min(stage.warmup, images // 5)  # a short stage must leave its warm-up
            stage = dataclasses.replace(stage, images=images, minutes=0.0, warmup=warmup)
        frozen[plan.name] = stage
    run = dataclasses.replace(run, stages=frozen)
    return run, stages.plans(run, lambda _: None, None)


def speed(plan: Plan, run: config.Run, world: distributed.World, seconds: float = 1.5) -> float:
    """Images a second of this stage, measured on throw-away weights."""
    learner = Learner(plan.spec, run.train, world)
    times = []
    for level in plan.levels:
        alone = dataclasses.replace(plan, levels=(dataclasses.replace(level, start=0),))
        progress = Progress()
        for _ in range(3):  # first steps allocate and compile
            step(alone, run, learner, progress)
        spent, steps = 0.0, 0
        while True:
            spent += step_seconds(alone, run, learner, progress)
            steps += 1
            if world.from_first([float(spent > seconds and steps >= 3)])[0]:
                break
        times.append(spent / (steps * plan.stage.batch))
    return len(times) / sum(times)


def step_seconds(
    plan: Plan,
    run: config.Run,
    learner: Learner,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one step of the loop, until the device has done it."""
    cuda = learner.world.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = clock()
    step(plan, run, learner, progress)
    if cuda:
        torch.cuda.synchronize()
    return clock() - began
