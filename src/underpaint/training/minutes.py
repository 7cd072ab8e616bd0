"""Stages whose length is given in minutes: measured once, then frozen as images."""

from __future__ import annotations

import dataclasses
import time

import torch

from underpaint import config
from underpaint.training import distributed, stages
from underpaint.training.learner import Learner
from underpaint.training.stages import Plan
from underpaint.training.state import Progress
from underpaint.training.step import step

__all__ = ["freeze", "speed"]


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
        _finish(world.device)
        began, steps = time.perf_counter(), 0
        while True:
            step(alone, run, learner, progress)
            steps += 1
            _finish(world.device)
            spent = time.perf_counter() - began
            if world.from_first([float(spent > seconds and steps >= 3)])[0]:
                break
        times.append(spent / (steps * plan.stage.batch))
    return len(times) / sum(times)


def _finish(device: torch.device) -> None:
    """Wait for what a GPU has been given; its time would else be that of the next step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
