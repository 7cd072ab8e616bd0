"""A recipe for these images, this machine and this budget, with what it is expected to take.

Each measured network that fits, and cannot hold the images, is timed or computed by a data sheet:
so many images it sees in the budget. `evidence.json` knows its error after so many; the least wins.

    seen = min(budget / seconds an image, most) · (batch / measured)^-b / (ratio · slowdown)

`most` images have been seen with success; b is what a larger batch costs, on a GPU; `ratio` the
compute of masks that pay over that without, and `slowdown` the time of a FLOP over that without.
"""

import math
import re
from dataclasses import dataclass, replace

from underpaint import config
from underpaint.errors import UserError
from underpaint.evaluation.validation import BINS
from underpaint.planning import candidates, evidence
from underpaint.planning.candidates import FEW, Images, changed
from underpaint.planning.evidence import Values
from underpaint.planning.machine import Machine
from underpaint.progress import doing
from underpaint.training import cost

VALUES = 10  # numbers of the training images for each parameter
ALIKE = 1.25  # times the parameters of the smallest network: as good as the smallest
BATCHES = (1, 4, 16, 64)  # times the measured batch; on a GPU alone
EVALUATIONS, EVALUATING = 8, 0.1  # grids and overfit checks of a run; share of the budget at most
LONG, LONG_AVERAGE = 100_000, 0.9999  # steps from which the average is MaskDM's on LSUN
MOST = 2500  # epochs: MaskDM's on CelebA-HQ, 75.2 M images of 30,000
Parts = dict[str, tuple[float, float]]  # of each stage seconds an image, and share of the time
BUDGET = "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in ("d", "h", "m(?:in)?", "s(?:ec)?"))


@dataclass(frozen=True)
class Plan:
    """The recipe, what it is expected to take, and why it is as it is."""

    run: config.Run
    images: Images
    machine: Machine
    budget: float  # seconds
    counted: Values  # as `cost.describe` has it; seconds and images_per_s of each stage
    evaluating: float  # seconds for grids and checks
    name: str  # of the network, for a person
    seen: float  # images, by the formula above
    error: float  # to expect, as on images of 64×64; 0 where nothing was measured
    evidence: Values  # the cell that decided on masks
    reasons: list[str]

    @property
    def start(self) -> str:
        """Weights to begin with, as `train` takes them."""
        return "" if self.error else f" --from {candidates.PRETRAINED}"

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.evaluating + sum(stage["seconds"] for stage in self.counted["stages"])


def propose(
    images: Images,
    machine: Machine,
    budget: float,
    seconds: float = 20.0,
    compile: bool = False,
) -> Plan:
    """The plan for `budget` seconds of training on `machine`.

    A machine that is here is timed for about `seconds`. `compile`: with torch.compile. Raises
    UserError where no patch divides the images, or budget or memory do not suffice.
    """
    networks, found = candidates.packaged(images) + evidence.load()["networks"], list[Plan]()
    refusals = list[UserError]()
    most = math.prod(images.size) * images.channels * images.count / VALUES
    with doing("measuring networks", len(networks)) as at:
        for i, network in enumerate(networks):
            at(i, left=seconds * (1 - i / len(networks)))
            try:
                run = _in_memory(candidates.recipe(images, network), images, machine)
                size = machine.counted(run, images)["parameters"]
                if not found or size <= max(most, ALIKE * found[0].counted["parameters"]):
                    given = images, machine, budget, seconds / len(networks)
                    found.append(_plan(network, run, *given))
            except UserError as error:
                refusals.append(error)
            if found and not network["measured"]:
                break
    if not found:
        raise refusals[0]
    best, *others = sorted(found, key=lambda plan: plan.error)
    reasons = [f"network {p.name}, next best: {p.error:.4f}, seeing {p.seen:,.0f}" for p in others]
    if compile:
        reasons.append("torch.compile: steps were timed without it, so the run may be shorter")
    run = changed(best.run, train={"compile": compile})
    return replace(best, run=run, reasons=best.reasons + reasons)


def _in_memory(run: config.Run, images: Images, machine: Machine) -> config.Run:
    """`run` in microbatches that fit. Raises UserError where not even one image does."""
    batch = run.stages["whole"].batch
    for micro in (0, *(m for m in range(batch, 0, -1) if batch % m == 0)):
        run = changed(run, train={"microbatch": micro})
        needed = machine.counted(run, images)["memory"]
        if needed <= machine.memory:
            return run
    raise UserError(
        f"{machine.name} has {machine.memory / 2**30:.1f} GiB to train in, and one image needs "
        f"{needed / 2**30:.1f} GiB; give a smaller --size"
    )


def _plan(
    network: Values,
    run: config.Run,
    images: Images,
    machine: Machine,
    budget: float,
    seconds: float,
) -> Plan:
    """The plan with this network. Raises UserError where it would see less than a batch."""
    known, measured = evidence.load(), network["measured"]
    most = candidates.length(images.count) if images.count < FEW else MOST * images.count
    tried = []
    for times in BATCHES if machine.gpu and not run.train.microbatch else (1,):
        grown = {k: times * getattr(run.stages["whole"], k) for k in ("batch", "images", "warmup")}
        larger = changed(run, stages={"whole": grown})
        if times == 1 or machine.counted(larger, images)["memory"] <= machine.memory:
            whole = machine.an_image(larger, images, "whole", seconds / 2 if times == 1 else 0.0)
            worth = min(budget / whole, most) / times ** known["batch"]
            tried.append((worth, -times, whole, larger))
    seen, times, whole, run = max(tried)
    run, parts, ratio, cell, why = _masks(run, whole, images, machine, seconds / 2)
    seen, error, reasons = seen / ratio, 0.0, [why]
    run, evaluating = _lengths(run, parts, images, budget, reasons)
    if run.noise.prediction != network["settings"]["noise"]["prediction"]:
        reasons.append("prediction x0: the network has too few features to predict noise through")
    if times < -1:
        reasons.append(f"batch: {-times} times the measured one, which is worth its cost on a GPU")
    if run.train.microbatch:
        reasons.append(f"microbatch {run.train.microbatch}: a whole batch does not fit at once")
    counted, shape, patch = machine.counted(run, images), run.network, run.space.patch
    for row in counted["stages"]:
        taken = parts[row["name"]][0]
        row |= {"seconds": taken * row["images"], "images_per_s": 1 / taken}
    why = f"few images: {candidates.PRETRAINED} is a start, whose network this is"
    name = f"{shape.kind}, width {shape.width}, depth {shape.depth}, patch {patch}"
    if measured:
        error = evidence.expected(measured, seen, known["slope"])
        points = ", ".join(f"{p['error']:.4f} after {p['images']:,}" for p in measured)
        why = (
            f"network {name}: it would see as much as {seen:,.0f} whole images, for which an error "
            f"of {error:.4f} is expected (studies/ladder, at 64×64: {points} images; beyond what "
            f"was measured no gain is counted, below it images^-{known['slope']:.2g})"
        )
    reasons.insert(0, why)
    return Plan(run, images, machine, budget, counted, evaluating, name, seen, error, cell, reasons)


def _masks(
    run: config.Run, whole: float, images: Images, machine: Machine, seconds: float
) -> tuple[config.Run, Parts, float, Values, str]:
    """`run`, masked first where that pays; its parts, ratio · slowdown, cell, and why."""
    backbone = cost.network(run, images.size, images.channels, images.classes)
    tokens = math.prod(backbone.grid) // backbone.unit**2
    cell = evidence.nearest(evidence.load()["masks"], tokens)
    unit = f"squares of {backbone.unit}×{backbone.unit} " if backbone.unit > 1 else ""
    what = f"for {tokens} {unit}patches per image"
    studied = f"in our studies {evidence.sentence(cell)}"
    if cell["verdict"] == "pays":
        tried = _in_memory(candidates.masked(run, cell, backbone.unit), images, machine)
        flops = [stage["flops_per_image"] for stage in machine.counted(tried, images)["stages"]]
        first = machine.an_image(tried, images, "masked", seconds)
        times = [cell["share"] * first / flops[0], (1 - cell["share"]) * whole / flops[1]]
        low, high = (sum(times) * flops[1] / whole * cell[end] for end in ("low", "high"))
        studied += f"; in time {low:.2f} to {high:.2f} on {machine.name}"
        verdict = "pays" if high < 1 else "does not pay" if low > 1 else "undecided"
        cell = cell | {"verdict": verdict}
        if low * high < 1:  # likelier to pay than not
            share = times[0] / sum(times)
            parts = {"masked": (first, share), "whole": (whole, 1 - share)}
            return tried, parts, math.sqrt(low * high), cell, f"masked stage, {what}: {studied}"
    why = f"no masked stage: {what} masking brings {evidence.FOUND[cell['verdict']]}; {studied}"
    return run, {"whole": (whole, 1.0)}, 1.0, cell, why


def _lengths(
    run: config.Run, parts: Parts, images: Images, budget: float, reasons: list[str]
) -> tuple[config.Run, float]:
    """`run` with its lengths, seconds of grids and checks. Raises UserError for under a batch."""
    forward = parts["whole"][0] / 3  # of a training step
    grid = run.sampling.count * run.sampling.steps * forward
    checked = len(parts) * (2 if images.held_out else 1)  # under the stage's mask, too
    both = grid + checked * min(run.train.check_images, images.count) * BINS * forward
    times = min(EVALUATIONS, int(EVALUATING * budget / both))
    evaluating = times * both or grid
    length, most, source = max(0.0, budget - evaluating), float(MOST * images.count), "MaskDM's"
    if images.count < FEW:
        most, source = candidates.length(images.count), "the presets for so few"
    factor = min(
        1.0, round(most) / max(1.0, sum(share * length / s for s, share in parts.values()))
    )
    for name, (an_image, share) in parts.items():
        batch, warmup = run.stages[name].batch, run.stages[name].warmup
        seen = int(factor * share * length / an_image / batch + 1e-9) * batch
        if not seen:
            least = shown(1.1 * (evaluating + batch * an_image / share))
            raise UserError(
                f"a budget of {shown(budget)} is too small for one checkpoint: stage {name} would "
                f"not see one batch of {batch} images; give at least {least}"
            )
        warmup = min(warmup, seen // 5) if name == next(iter(parts)) else 0
        run = changed(run, stages={name: {"images": seen, "warmup": warmup}})
    seen = sum(stage.images for stage in run.stages.values())
    every = 0 if times == EVALUATIONS else -(-seen // max(1, times))
    train: Values = {"sample_every": every, "check_every": every if times else -1}
    if sum(stage.images // stage.batch for stage in run.stages.values()) >= LONG:
        train["ema"] = LONG_AVERAGE
    dropout, label_drop = candidates.drops(seen / images.count)
    run = changed(run, network={"dropout": dropout, "label_drop": label_drop})
    if factor < 1:
        epochs = f"{seen / images.count:,.0f} epochs, as {source}"
        reasons.append(f"length: {epochs}; the rest of the budget would go into copying the images")
    return changed(run, train=train), evaluating


def seconds_of(text: str) -> float:
    """Seconds of a budget like `24h`, `90m`, `45min`, `2d` or `1h30m`. Raises UserError."""
    found = re.fullmatch(BUDGET, re.sub(r"\s", "", text.lower()))
    parts = zip(found.groups("0"), (86400, 3600, 60, 1), strict=True) if found else ()
    seconds = sum(float(number) * unit for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"--budget '{text}': give a time like 45min, 90m, 24h, 2d or 1h30m")
    return seconds


def shown(seconds: float) -> str:
    """Two units, as `--budget` takes them: 45s, 12min, 3h20min, 2d4h."""
    if seconds < 60:
        return f"{max(1, math.ceil(seconds))}s"
    days, (hours, minutes) = 0, divmod(math.ceil(seconds / 60), 60)
    if hours >= 48:
        days, hours, minutes = *divmod(round(hours + minutes / 60), 24), 0
    return "".join(f"{v}{u}" for v, u in ((days, "d"), (hours, "h"), (minutes, "min")) if v)
