"""Ending a stage early: what `train.stop: auto` does where a check says stop or copying.

The weights go back to those of the best check, then the stage ends. A stage with a cool-down that
has not begun does it first: with S images of the stage behind the best weights and a cool-down of
share c, it takes c/(1 − c) S images, as in a stage that had been planned to end there. Within a
cool-down only copying ends it. Where a stage reaches its end and is believed to be worse than the
best check, the best weights come back, too: a stage always ends with the weights to go on with, in
its last checkpoint. Images, FLOPs and seconds that were spent on weights given up stay counted.
"""

import dataclasses
from typing import NamedTuple

from underpaint import config
from underpaint.errors import UserError
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.monitor import Finding
from underpaint.training.stages import PreparedStage

ANSWERS = ("unknown", "improving", "stop", "copying", "waiting")


class Decision(NamedTuple):
    """What follows from a check; nothing, by default."""

    gain: bool = False  # the best check of the stage so far
    back: int = 0  # images of the run at the checkpoint whose weights come back; 0: none
    cooldown: int = 0  # images of a cool-down that begins now, or after `begins`; 0: none
    begins: int = 0  # images of the stage, maybe of its past; 0: those that it has seen
    ends: bool = False  # the stage


def decide(
    found: Finding | None, stage: PreparedStage, progress: Progress, world: World
) -> Decision:
    """The same decision in all processes, of which the first alone has `found` something."""
    sent = [0.0, 0.0, 0.0]
    if found is not None:
        sent = [found.best or 0, ANSWERS.index(found.answer), found.worse]
    sent = world.from_first([float(value) for value in sent])
    best, answer, worse = int(sent[0]), ANSWERS[int(sent[1])], bool(sent[2])
    gain = best == progress.images
    settings, seen = stage.settings, progress.stage_images
    if seen >= stage.images:
        return Decision(gain, back=best if worse else 0)
    cooling = settings.schedule == "cooldown" and seen > stage.images * (1 - settings.cooldown)
    waits = seen <= settings.warmup or (cooling and answer == "stop")
    if answer not in ("stop", "copying") or waits:
        return Decision(gain)
    if cooling or settings.schedule != "cooldown":
        return Decision(gain, back=best, ends=True)
    behind = seen - (progress.images - best)
    share = settings.cooldown / (1 - settings.cooldown)
    return Decision(
        gain, back=best, cooldown=max(1, round(share * behind / stage.batch)) * stage.batch
    )


def with_cooldown(stage: PreparedStage, begin: int, length: int) -> PreparedStage:
    """`stage` with a cool-down of `length` images that begins after `begin` images of the stage."""
    images = begin + length
    settings = dataclasses.replace(stage.settings, cooldown=length / images)
    return dataclasses.replace(stage, settings=settings, images=images)


def said(decision: Decision, stage: PreparedStage, progress: Progress) -> str:
    """The decision in a sentence."""
    name, seen = stage.name, progress.stage_images
    if decision.begins > seen:
        return (
            f"stage {name}: this machine has become faster; the stage has "
            f"{decision.begins + decision.cooldown:,} images instead of {stage.images:,}, to use "
            "the time"
        )
    if 0 < decision.begins < seen:
        return (
            f"stage {name}: this machine has become slower; the cool-down ends after "
            f"{decision.begins + decision.cooldown:,} images instead of {stage.images:,}, in time"
        )
    if decision.cooldown and not decision.back:
        return (
            f"stage {name}: this machine has become slower; the cool-down begins now, over "
            f"{decision.cooldown:,} images, to end in time"
        )
    if decision.cooldown:
        return (
            f"stage {name}: cools down over {decision.cooldown:,} images, from the weights after "
            f"{decision.back:,} images of the run"
        )
    ends = f"ends after {seen:,} of {stage.images:,} images" if decision.ends else "has ended"
    return f"stage {name}: {ends}, with the weights after {decision.back:,} images of the run"


def check_stop(run: config.Run, stages: list[PreparedStage], checked: bool) -> None:
    """Raise UserError where `train.stop auto` has nothing to go by."""
    if run.train.stop == "none":
        return
    if not checked:
        raise UserError("train.stop auto needs checks; train with underpaint.train, or give none")
    for stage in stages:
        if not stage.guarantee and not len(stage.training_set.held_out_ids):
            raise UserError(
                f"train.stop auto goes by held-out images, and stage {stage.name} has none; "
                "hold some out (data.held_out), or give train.stop none"
            )
