"""What settings cannot work together: one sentence each, before anything is done.

Ranges of single settings stand in `schema` and `model_spec`; `check_ranges` holds them to those.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from underpaint.config.fields import HIDDEN_SHARE, Range
from underpaint.config.model_spec import ModelSpec, Space
from underpaint.config.schema import CHANNELS, DP, Data, Run, Stage, image_size
from underpaint.errors import UserError


def check(run: Run) -> None:
    """Raise UserError for settings that cannot work together, as far as no data is needed."""
    if not run.stages:
        raise UserError("the recipe has no stages; give at least one under 'stages:'")
    for name, stage in run.stages.items():
        _check_stage(f"stages.{name}", name, stage, run)
    check_data(run.data)
    _check_size("data.size", run.data.size, run.space)
    network, train, sampling = run.network, run.train, run.sampling
    for section in ("space", "network", "noise", "train", "sampling"):
        check_ranges(section, getattr(run, section))
    if network.heads < 1 or network.width < 1 or network.width % network.heads:
        raise UserError(
            f"network.width {network.width} is not divisible by network.heads {network.heads}; "
            "give a width that is a multiple of heads"
        )
    if train.compile and train.recompute:
        raise UserError(
            "train.recompute computes blocks anew, which train.compile cannot; give one of them"
        )
    if train.parallel == "fsdp" and train.snapshots:
        raise UserError(
            f"train.snapshots {train.snapshots}: their averages are not shared among processes as "
            "train.parallel fsdp asks; leave one of the two out"
        )
    if train.stop == "auto" and train.check_every < 0:
        raise UserError("train.stop auto goes by the checks; leave train.check_every -1 out")
    if sampling.grid == "uniform" and 0 < run.noise.steps < sampling.steps:
        raise UserError(
            f"sampling.steps {sampling.steps}: the noise has a grid of {run.noise.steps} levels "
            "(noise.steps); give fewer steps or sampling.grid karras or log-snr"
        )
    if sampling.sampler in ("langevin", "pc") and sampling.snr > 0.5:  # samplers.LARGEST_SNR
        raise UserError(
            f"sampling.snr {sampling.snr:g}: give at most 0.5, beyond which Langevin steps "
            "overshoot"
        )
    if sampling.sampler == "langevin" and sampling.corrections == 0:
        raise UserError("sampling.corrections 0: sampler langevin needs at least 1")
    if run.space.kind == "latents" and sampling.clip != "none":
        raise UserError(
            f"sampling.clip {sampling.clip}: latents are not bounded as pixels are; give clip none"
        )
    if not network.labels and sampling.guidance != 1:
        raise UserError(
            f"sampling.guidance {sampling.guidance:g} guides towards labels, and network.labels is "
            "false; give guidance 1, or learn the labels"
        )


def check_labels(run: Run, source: str, label_names: tuple[str, ...]) -> None:
    """Raise UserError if the recipe guides towards labels that the images have not."""
    if run.sampling.guidance != 1 and not label_names:
        raise UserError(
            f"sampling.guidance {run.sampling.guidance:g} guides towards labels, and '{source}' "
            "has none; give them in a table 'path,label', where one class for all is enough, or "
            "set --sampling.guidance 1 to train without"
        )


def _check_stage(place: str, name: str, stage: Stage, run: Run) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"stage '{name}': name it with letters, digits, - and _ alone")
    if stage.images < 0 or not 0 <= stage.minutes < math.inf:
        raise UserError(f"{place}: images and minutes cannot be negative")
    if bool(stage.images) == bool(stage.minutes):
        given = "both images and minutes are" if stage.images else "neither images nor minutes is"
        raise UserError(f"{place}: {given} given; give its length in one of them")
    check_ranges(place, stage)
    if 0 < stage.images < stage.batch:
        raise UserError(
            f"{place}.images {stage.images} is less than one batch of {stage.batch}; give more "
            "images or a smaller batch"
        )
    if run.train.microbatch > 0 and stage.batch % run.train.microbatch:
        raise UserError(
            f"{place}.batch {stage.batch} is not divisible by train.microbatch "
            f"{run.train.microbatch}; give a microbatch that divides it"
        )
    rates = {"rate": stage.rate}
    if stage.rate_schedule != "constant":
        rates["rate_end"] = stage.rate_end
        if refusal := HIDDEN_SHARE.refusal(stage.rate_end):
            raise UserError(f"{place}.rate_end {refusal}")
    for key, rate in rates.items():
        if rate and stage.mask == "none":
            raise UserError(
                f"{place}: {key} {rate:g} hides nothing with mask none; "
                "give mask patch, block, crop or salient"
            )
    if stage.shift and run.space.kind == "latents":
        raise UserError(
            f"{place}.shift {stage.shift}: latents are computed once, so they can be mirrored but "
            "not shifted; leave shift out"
        )
    if stage.reweight and stage.mask != "salient":
        raise UserError(
            f"{place}.reweight: mask {stage.mask} has no chances to weight by; use mask salient"
        )
    if stage.augment and run.space.kind == "latents":
        raise UserError(
            f"{place}.augment {stage.augment:g}: latents are computed once, so they can be "
            "mirrored but not augmented; leave augment out"
        )
    if stage.fixed and stage.mask != "none" and (stage.flip or stage.shift or stage.augment):
        raise UserError(
            f"{place}.fixed: a mirrored or shifted image shows under the same mask what was hidden "
            "before; leave flip, shift and augment out"
        )
    if stage.fixed_key and not (stage.fixed and stage.mask in ("patch", "block", "crop")):
        raise UserError(
            f"{place}.fixed_key is the key of fixed masks; add fixed: true and mask patch, block "
            "or crop, or leave the key out"
        )
    if stage.fixed and stage.mask == "salient" and run.space.kind == "latents":
        raise UserError(
            f"{place}.fixed: latents are drawn anew at each step, and their contrast with them; "
            "give mask patch, block or crop"
        )
    _check_size(f"{place}.size", stage.size, run.space)
    if stage.data is not None:
        check_data(stage.data, f"{place}.data")
        _check_size(f"{place}.data.size", stage.data.size, run.space)
    if stage.dp is not None:
        _check_dp(place, stage, stage.dp, run)


def _check_dp(place: str, stage: Stage, dp: DP, run: Run) -> None:
    """Raise UserError for what would publish, or let the noise depend on, single images."""
    check_ranges(f"{place}.dp", dp)
    if stage.minutes:
        raise UserError(
            f"{place}.dp: the noise is found from the number of steps, so the stage's length must "
            "be given in images, not in minutes"
        )
    if stage.clip_percentile:
        raise UserError(
            f"{place}.clip_percentile {stage.clip_percentile:g}: a percentile of the gradients' "
            f"norms depends on the private images; leave it out, {place}.dp.clip is the limit"
        )
    if run.noise.learned_weights:
        raise UserError(
            f"noise.learned_weights: a scale learned from the losses is not covered by {place}.dp; "
            "set it to false"
        )
    if run.network.dropout:
        raise UserError(
            f"network.dropout {run.network.dropout:g}: with {place}.dp one image's draws may not "
            "depend on which others are in the batch, as dropout's do; set it to 0"
        )
    if run.train.optimizer != "adamw":
        raise UserError(
            f"train.optimizer {run.train.optimizer}: {place}.dp is made for AdamW alone; leave it "
            "out"
        )
    if run.train.check_every > 0:
        raise UserError(
            f"train.check_every {run.train.check_every}: checks publish errors on the private "
            f"images of {place}.dp; give 0 (checks in other stages alone) or -1 (none)"
        )
    for name in ("compile", "recompute"):
        if getattr(run.train, name):
            raise UserError(
                f"train.{name}: does not work with the gradients of single images, which "
                f"{place}.dp needs; leave it out"
            )


LARGEST = 1 << 16  # pixels a side of a model's images, features of a token, blocks, labels' names


def check_model(spec: ModelSpec, where: str) -> None:
    """Raise UserError for a model that nobody can have trained: by ranges, before it is built."""
    network, labels = spec.network, spec.label_names
    bounds = {
        "size": max(spec.size),
        "network.width": network.width,
        "network.depth": network.depth,
        "network.heads": network.heads,
        "space.patch": spec.space.patch,
        "space.levels": 1 << min(spec.space.levels, 64),
        "space.factor": spec.space.factor,
        "space.latent_channels": spec.space.latent_channels,
        "number of labels": len(labels),
    }
    for name, value in bounds.items():
        if value > LARGEST:
            raise UserError(f"{where}{name} {value:,}: no model is so large")
    positive = {"size": min(spec.size), "width": network.width, "heads": network.heads}
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{where}{name} {value}: give a number from 1 up")
    if spec.size[0] * spec.size[1] > 1 << 26:
        raise UserError(f"{where}size {spec.size[0]}×{spec.size[1]}: no model is so large")
    if spec.channels not in CHANNELS.values():
        kinds = "3 (colour), 1 (grey) or 4 (with transparency)"
        raise UserError(f"{where}channels {spec.channels}: give {kinds}")
    if len(set(labels)) < len(labels):
        raise UserError(f"{where}label_names: a name is there twice")
    for section in ("space", "network", "noise", "sampling"):
        check_ranges(f"{where}{section}", getattr(spec, section))
    for name, option in _numbers("network.options", network.options):
        if abs(option) > LARGEST:
            raise UserError(f"{where}{name} {option:g}: no model is so large")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """All numbers in nested options, and the lengths of their lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        yield f"the length of {name}", len(value) * (LARGEST if len(value) > 16 else 1)
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, (int, float)):
        yield name, float(min(max(value, -(2.0**62)), 2.0**62))


def check_data(data: Data, place: str = "data") -> None:
    """Raise UserError for settings of the images that cannot work."""
    if data.channels not in CHANNELS:
        raise UserError(
            f"{place}.channels {data.channels}: give 3 (colour), 1 (grey) or rgba (transparency)"
        )
    if data.channels == "rgba" and data.background != "white":
        raise UserError(
            f"{place}.background {data.background}: with channels rgba pixels stay transparent; "
            "leave background out"
        )
    check_ranges(place, data)
    if data.audit_split and data.held_out != "auto":
        raise UserError(
            f"{place}: held_out {data.held_out} and audit_split both say what is not trained on; "
            "leave one of them out"
        )
    image_size(data.size)


def _check_size(place: str, size: tuple[int, ...], space: Space) -> None:
    found = image_size(size)
    check_ranges("space", space)
    unit, named = space.patch, f"space.patch {space.patch}"
    if space.kind == "wavelets":
        unit, named = unit * 2**space.levels, f"{named} · 2^{space.levels} of the wavelets"
    if space.kind == "latents":
        unit, named = unit * space.factor, f"{named} · space.factor {space.factor}"
    if (
        space.kind in ("pixels", "wavelets", "latents")
        and found
        and (found[0] % unit or found[1] % unit)
    ):
        nearest = [str(max(1, round(side / unit)) * unit) for side in found]
        shown = nearest[0] if found[0] == found[1] else " ".join(nearest)
        raise UserError(
            f"{place} {found[0]}×{found[1]} is not divisible by {named}; "
            f"give size {shown} or another patch"
        )


def check_ranges(place: str, section: Any) -> None:
    """Raise UserError for the first setting of a section that is out of its range."""
    for field in dataclasses.fields(section):
        allowed: Range | None = field.metadata.get("allowed")
        value = getattr(section, field.name)
        if allowed is None:
            continue
        for i, number in enumerate(value if isinstance(value, tuple) else (value,)):
            if refusal := allowed.refusal(number):
                index = f"[{i}]" if isinstance(value, tuple) else ""
                raise UserError(f"{place}.{field.name}{index} {refusal}")
