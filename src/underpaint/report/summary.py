"""What a run's records say: its stages, what the masks saved, and the sentences about them.

Saved FLOPs follow from the visible patches: images · (FLOPs of a whole image − FLOPs of its visible
part). Saved seconds are stated only where the run itself has an unmasked stage to compare with:
images / (images/s of that stage) − seconds. Both count training steps alone, without checks, sample
grids and checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from underpaint import config
from underpaint.evaluation.records import Record, of_kind

MASKS = {
    "patch": "single patches at random",
    "block": "blocks of {0}×{0} patches at random",
    "crop": "all outside a random crop",
    "salient": "patches at random, those of little contrast more often",
}
NETWORKS = {
    "uvit": "U-ViT",
    "dit": "DiT",
    "hourglass": "transformer in the shape of an hourglass (local blocks on fine tokens, attention "
    "on coarse ones)",
    "maskdit": "MaskDiT (an encoder of visible patches, then a light decoder of all)",
    "unet": "U-Net",
}
PROCESSES = {
    "vp-linear": "takes the place of the image at constant variance (VP, linear)",
    "vp-cosine": "takes the place of the image at constant variance (VP, cosine)",
    "flow": "is mixed with the image along straight lines (flow matching)",
    "edm": "is added to the image (EDM)",
    "ve": "is added to the image, in levels evenly spaced in its logarithm (VE)",
}
PREDICTIONS = {
    "eps": "the noise",
    "x0": "the clean image",
    "v": "the velocity v, a mixture of noise and image",
    "flow": "the velocity from image to noise",
    "score": "the score, the direction in which images become likelier",
    "edm": "a mixture of noise and image whose scale is the same at all levels",
}


@dataclass
class StageFacts:
    """One stage as it was trained, so far."""

    name: str
    mask: str
    block: int
    rates: tuple[float, float]  # share of hidden patches, first and last
    visible: tuple[int, int]  # patches, first and last
    patches: int
    unit: int  # patches are hidden in squares of this many a side
    images: int
    seconds: float
    flops: float
    whole_flops: float  # the same images, unmasked
    begin: float  # seconds of training before it
    finished: bool
    saved_seconds: float | None = None

    @property
    def masked(self) -> bool:
        return min(self.visible) < self.patches

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def saved_flops(self) -> float:
        return max(0.0, self.whole_flops - self.flops)

    @property
    def hidden(self) -> str:
        first, last = (percent(rate) for rate in self.rates)
        return first if first == last else f"{first} to {last}"

    @property
    def seen(self) -> str:
        first, last = self.visible
        return f"{first}" if first == last else f"{first} to {last}"


def stages(records: list[Record], run: config.Run) -> list[StageFacts]:
    """The stages that have begun, in their order."""
    starts = {r["stage"]: r for r in of_kind(records, "stage") if r.get("event") == "start"}
    ends = {r["stage"]: r for r in of_kind(records, "stage") if r.get("event") == "end"}
    found = []
    for name, start in starts.items():
        steps = [r for r in of_kind(records, "step") if r["stage"] == name]
        # all counts are those of the run so far: a stage's own are differences
        last = ends.get(name) or (steps[-1] if steps else start)
        images = last["images"] - start["images"]
        if "seconds" not in last:  # steps of a private stage do not tell their time
            last = {"seconds": start["seconds"], **last}
        seen = [r["visible"] for r in steps] or [start["visible"]]
        hidden = [r["rate"] for r in steps] or [start["rate"]]
        recipe = run.stages.get(name)
        found.append(
            StageFacts(
                name=name,
                mask=start["mask"],
                block=recipe.block if recipe else 2,
                rates=(hidden[0], hidden[-1]),
                visible=(seen[0], seen[-1]),
                patches=start["patches"],
                unit=start.get("unit", 1),
                images=images,
                seconds=last["seconds"] - start["seconds"],
                flops=last["flops"] - start["flops"],
                whole_flops=images
                * (steps[-1].get("whole_flops_per_image", 0.0) if steps else 0.0),
                begin=start["seconds"],
                finished=name in ends,
            )
        )
    for stage in found:
        whole = [s for s in found if not s.masked and s.patches == stage.patches and s.images_per_s]
        if stage.masked and whole:
            stage.saved_seconds = stage.images / whole[-1].images_per_s - stage.seconds
    return found


def seconds_at(records: list[Record], images: Sequence[int]) -> list[float]:
    """Training seconds after `images` of the run (records without a time of their own)."""
    timed = [r for r in records if r["kind"] in ("stage", "step") and "seconds" in r]
    if not timed:
        return [0.0] * len(images)
    points = sorted({(0, 0.0)} | {(r["images"], r["seconds"]) for r in timed})
    known, seconds = zip(*points, strict=True)
    return [float(s) for s in np.interp(images, known, seconds)]


# --- sentences ---------------------------------------------------------------------------------


def about_network(run: config.Run, parameters: int | None, patches: int | None) -> str:
    """One sentence about the network and how it sees an image."""
    kind = NETWORKS.get(run.network.kind, run.network.kind)
    size = f" with {count(parameters)} parameters" if parameters else ""
    many = f"{patches} patches" if patches else "patches"
    return f"The network is a {kind}{size} that sees an image as {many} of {_patch(run.space)}."


def _patch(space: config.Space) -> str:
    """What a patch holds."""
    side = f"{space.patch}×{space.patch}"
    match space.kind:
        case "wavelets":
            wide = 2**space.levels
            return f"{side} Haar wavelet coefficients, each of which covers {wide}×{wide} pixels"
        case "latents":
            whose = f"the autoencoder {Path(space.vae).name}" if space.vae else "an autoencoder"
            return (
                f"{side} latents of {whose}, each of which covers {space.factor}×{space.factor} "
                "pixels"
            )
    return f"{side} {space.kind}"


def about_noise(noise: config.Noise) -> str:
    """One or two sentences about the noise process and what is learnt of it."""
    text = (
        f"Noise {PROCESSES.get(noise.process, noise.process)}, and the network predicts "
        f"{PREDICTIONS.get(noise.prediction, noise.prediction)}."
    )
    if noise.hidden_weight:
        text += (
            " Beside the visible patches it also predicts, at "
            f"{percent(noise.hidden_weight)} of their weight, the noisy hidden ones."
        )
    return text


def about_stage(stage: StageFacts) -> str:
    """One sentence about what a stage did."""
    so_far = "" if stage.finished else ", not finished"
    length = f"{stage.images:,} images in {clock(stage.seconds)} of training{so_far}"
    if not stage.masked:
        return f"{length}, with nothing hidden: all {stage.patches} patches were seen."
    how = MASKS.get(stage.mask, stage.mask).format(stage.block)
    if stage.unit > 1:
        how += f", rounded to squares of {stage.unit}×{stage.unit} patches"
    return (
        f"{length}, with {stage.hidden} of the patches hidden ({how}): the network saw "
        f"{stage.seen} of {stage.patches}."
    )


def about_stages(all_stages: list[StageFacts]) -> str:
    """One sentence about the whole course of training."""
    parts = [
        f"“{s.name}” with {s.hidden + ' of the patches' if s.masked else 'nothing'} hidden"
        for s in all_stages
    ]
    many = f"{len(parts)} stages" if len(parts) > 1 else "one stage"
    seconds = clock(sum(stage.seconds for stage in all_stages))
    return f"Training took {seconds} in {many}: {', then '.join(parts)}."


def about_masks(all_stages: list[StageFacts]) -> str:
    """One or two sentences about what hiding patches saved."""
    masked = [stage for stage in all_stages if stage.masked and stage.images]
    if not masked:
        return "No stage hid patches, so nothing was saved by masks."
    saved = sum(stage.saved_flops for stage in masked)
    whole = sum(stage.whole_flops for stage in all_stages)
    if not saved:
        return (
            "Hiding patches saved nothing: this network computes on hidden patches as on visible "
            "ones, except under crop masks."
        )
    text = (
        f"Hiding patches saved {flops(saved)}, {percent(saved / whole)} of what the same images "
        "would have cost whole."
    )
    timed = [s for s in masked if s.saved_seconds is not None]
    if timed and len(timed) == len(masked):
        seconds = sum(s.saved_seconds or 0.0 for s in timed)
        if seconds <= 0:
            return (
                f"{text} It saved no time: the masked stage was not faster than the unmasked one."
            )
        text += (
            " At the measured speed of the unmasked stage these images would have taken "
            f"{clock(seconds)} longer."
        )
    return text


def clock(seconds: float) -> str:
    """`3 h 20 min`, `3 min 20 s`, `42 s`, `4.2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{rest} s"


def count(number: float) -> str:
    """`1.08 million`, `35,700`."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"


def flops(number: float) -> str:
    """`1.25 TFLOP` (10¹² floating-point operations)."""
    for unit, name in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= 0.9995 * unit:
            value = number / unit
            return f"{value:,.0f} {name}FLOP" if value >= 100 else f"{value:.3g} {name}FLOP"
    return f"{number:,.0f} FLOP"


def percent(share: float) -> str:
    """`75 %`, `87.5 %`; the space does not break."""
    return f"{100 * share:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"
