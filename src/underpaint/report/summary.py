"""What a run's records say: its stages, and what the masks saved.

Saved FLOPs follow from the visible patches: images · (FLOPs of a whole image − FLOPs of its visible
part). Saved seconds are stated only where the run itself has an unmasked stage to compare with:
images / (images/s of that stage) − seconds. Both count training steps alone, without checks, sample
grids and checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from underpaint import config
from underpaint.evaluation.records import Record, of_kind


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
