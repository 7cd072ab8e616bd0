"""Ending a stage early: what `train.stop: auto` does with the finding of a check.

    stop      the weights go back to those of the best check, then the stage ends
    copying   the same

A stage with a cool-down that has not begun does it first, from the best weights: with S images of
the stage behind these and a cool-down of share c, it takes c/(1 − c) S images, as in a stage that
had been planned to end there. Within a cool-down a check without gain is no reason to end it;
copying is. Where a stage reaches its end and that is believed to be worse than the best check, the
weights of the best check come back, too. So a stage always ends with the weights to go on with:
they are in its last checkpoint, from which the next stage begins and which `sample` reads.

The images, FLOPs and seconds that were spent on weights given up stay counted.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from underpaint import config
from underpaint.errors import UserError
from underpaint.training.distributed import World
from underpaint.training.monitor import Finding
from underpaint.training.stages import Plan
from underpaint.training.state import Progress

__all__ = ["Decision", "check_stop", "decide", "said", "shortened"]

ANSWERS = ("unknown", "improving", "stop", "copying", "waiting")


class Decision(NamedTuple):
    """What follows from a check; nothing, by default."""

    gain: bool = False  # the best check of the stage so far
    back: int = 0  # images of the run at the checkpoint whose weights come back; 0: none
    cooldown: int = 0  # images of a cool-down that begins now; 0: none
    ends: bool = False  # the stage


def decide(found: Finding | None, plan: Plan, progress: Progress, world: World) -> Decision:
    """The same decision in all processes, of which the first alone has `found` something."""
    told = [0.0, 0.0, 0.0]
    if found is not None:
        told = [found.best or 0, ANSWERS.index(found.answer), found.worse]
    told = world.from_first([float(value) for value in told])
    best, answer, worse = int(told[0]), ANSWERS[int(told[1])], bool(told[2])
    gain = best == progress.images
    stage, seen = plan.stage, progress.stage_images
    if seen >= plan.images:
        return Decision(gain, back=best if worse else 0)
    cooling = stage.schedule == "cooldown" and seen > plan.images * (1 - stage.cooldown)
    waits = seen <= stage.warmup or (cooling and answer == "stop")
    if answer not in ("stop", "copying") or waits:
        return Decision(gain)
    if cooling or stage.schedule != "cooldown":
        return Decision(gain, back=best, ends=True)
    behind = seen - (progress.images - best)
    share = stage.cooldown / (1 - stage.cooldown)
    return Decision(
        gain, back=best, cooldown=max(1, round(share * behind / stage.batch)) * stage.batch
    )


def shortened(plan: Plan, begin: int, length: int) -> Plan:
    """`plan` with a cool-down of `length` images that begins after `begin` images of the stage."""
    images = begin + length
    stage = dataclasses.replace(plan.stage, cooldown=length / images)
    return dataclasses.replace(plan, stage=stage, images=images)


def said(decision: Decision, plan: Plan, progress: Progress) -> str:
    """The decision in a sentence."""
    name, seen = plan.name, progress.stage_images
    if decision.cooldown:
        return (
            f"stage {name}: cools down over {decision.cooldown:,} images, from the weights after "
            f"{decision.back:,} images of the run"
        )
    ends = f"ends after {seen:,} of {plan.images:,} images" if decision.ends else "has ended"
    return f"stage {name}: {ends}, with the weights after {decision.back:,} images of the run"


def check_stop(run: config.Run, plans: list[Plan], checked: bool) -> None:
    """Raise UserError where `train.stop auto` has nothing to go by."""
    if run.train.stop == "none":
        return
    if not checked:
        raise UserError("train.stop auto needs checks; train with underpaint.train, or give none")
    for plan in plans:
        if not plan.guarantee and not len(plan.dataset.held_out_ids):
            raise UserError(
                f"train.stop auto goes by held-out images, and stage {plan.name} has none; "
                "hold some out (data.held_out), or give train.stop none"
            )
