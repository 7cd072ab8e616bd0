"""How fast training is on this machine, and `precision: auto` as bf16 or fp32, measured once.

`step_seconds` times one step for everything that asks.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from underpaint import config
from underpaint.hardware import Precision, bf16_speedup, use_bf16
from underpaint.training import distributed
from underpaint.training.checkpointing import Progress
from underpaint.training.stages import PreparedStage
from underpaint.training.step import step
from underpaint.training.train_state import TrainState, prepare_state

STEPS = 5  # timed at least, unless they take LONG times the seconds
LONG = 8
BUSY = 4  # times the median of all steps: the machine did something else


def settle_precision(run: config.Run, world: distributed.World) -> tuple[config.Run, list[str]]:
    """`run` with the precision that `auto` is on this machine, and a sentence about it."""
    if run.train.precision != "auto":
        return run, []
    width, device = run.network.width, world.device
    bf16 = use_bf16("auto", device, width) if world.first else False
    precision: Precision = "bf16" if world.from_first([float(bf16)])[0] else "fp32"
    note = f"precision {precision}"
    if world.first and device.type == "cpu":
        note += f": training in bf16 is {bf16_speedup(width):.2g} times as fast as in fp32 here"
    train = dataclasses.replace(run.train, precision=precision)
    return dataclasses.replace(run, train=train), [note]


def speed(
    stage: PreparedStage, run: config.Run, world: distributed.World, seconds: float = 1.5
) -> float:
    """Images a second of this stage, measured on throw-away weights for so many `seconds`.

    By the mean of STEPS steps or more, without those in which the machine did something else; of
    fewer where these take far too long.
    """
    state = prepare_state(stage.spec, run.train, world)
    times = []
    for level in stage.levels:
        alone = dataclasses.replace(stage, levels=(dataclasses.replace(level, start=0),))
        progress = Progress()
        for _ in range(3):  # first steps allocate and compile
            step(alone, run, state, progress)
        taken: list[float] = []
        while True:
            taken.append(step_seconds(alone, run, state, progress))
            spent, enough = sum(taken), len(taken) >= STEPS
            if world.from_first([float(spent > seconds and (enough or spent > LONG * seconds))])[0]:
                break
        usual = [one for one in taken if one <= BUSY * statistics.median(taken)]
        times.append(statistics.mean(usual) / stage.batch)
    return len(times) / sum(times)


def step_seconds(
    stage: PreparedStage,
    run: config.Run,
    state: TrainState,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one step of the loop, until the device has done it."""
    cuda = state.world.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = clock()
    step(stage, run, state, progress)
    if cuda:
        torch.cuda.synchronize()
    return clock() - began
