"""What settings cannot work, alone or together: one sentence each, before anything is done."""

from __future__ import annotations

import math
import re

from underpaint.config.schema import DP, Data, Run, Space, Stage, image_size
from underpaint.errors import UserError

__all__ = ["check", "check_data", "check_labels"]


def check(run: Run) -> None:
    """Raise UserError for settings that cannot work together, as far as no data is needed."""
    if not run.stages:
        raise UserError("the recipe has no stages; give at least one under 'stages:'")
    for name, stage in run.stages.items():
        _check_stage(f"stages.{name}", name, stage, run)
    check_data(run.data)
    _check_size("data.size", run.data.size, run.space)
    network, train, sampling = run.network, run.train, run.sampling
    if network.heads < 1 or network.width < 1 or network.width % network.heads:
        raise UserError(
            f"network.width {network.width} is not divisible by network.heads {network.heads}; "
            "give a width that is a multiple of heads"
        )
    small = {
        "space.patch": (run.space.patch, 1),
        "noise.hidden_weight": (run.noise.hidden_weight, 0),
        "network.depth": (network.depth, 1),
        "train.microbatch": (train.microbatch, 0),
        "train.weight_decay": (train.weight_decay, 0),
        "train.threads": (train.threads, 0),
        "train.log_every": (train.log_every, 0),
        "train.check_every": (train.check_every, -1),
        "train.check_images": (train.check_images, 1),
        "train.check_samples": (train.check_samples, 0),
        "train.sample_every": (train.sample_every, -1),
        "train.checkpoint_every": (train.checkpoint_every, 0),
        "train.snapshots": (train.snapshots, 0),
        "train.keep": (train.keep, 1),
        "sampling.count": (sampling.count, 1),
        "sampling.steps": (sampling.steps, 1),
        "sampling.guidance": (sampling.guidance, 0),
        "sampling.eta": (sampling.eta, 0),
        "sampling.corrections": (sampling.corrections, 0),
    }
    for place, (value, least) in small.items():
        _at_least(place, value, least)
    if train.stop == "auto" and train.check_every < 0:
        raise UserError("train.stop auto goes by the checks; leave train.check_every -1 out")
    shares = {
        "network.dropout": network.dropout,
        "train.betas[0]": train.betas[0],
        "train.betas[1]": train.betas[1],
        "train.ema": train.ema,
    }
    for place, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{place} {value:g}: give a number from 0 to below 1")
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
    if not 0 <= network.label_drop <= 1:
        raise UserError(f"network.label_drop {network.label_drop:g}: give a number from 0 to 1")
    for place, value in {
        "network.mlp_ratio": network.mlp_ratio,
        "sampling.snr": sampling.snr,
        "noise.gamma": run.noise.gamma,
    }.items():
        _above_zero(place, value)


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
    _at_least(f"{place}.batch", stage.batch, 1)
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
    for key, rate in rates.items():
        if not 0 <= rate < 1:  # also refuses nan
            raise UserError(f"{place}.{key} {rate:g}: give the hidden share, from 0 to below 1")
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
    if not 0 <= stage.augment <= 1:
        raise UserError(f"{place}.augment {stage.augment:g}: give a probability from 0 to 1")
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
    _above_zero(f"{place}.temperature", stage.temperature)
    _above_zero(f"{place}.learning_rate", stage.learning_rate)
    if not 0 < stage.cooldown <= 1:
        raise UserError(f"{place}.cooldown {stage.cooldown:g}: give a share above 0, up to 1")
    if not 0 <= stage.clip_percentile <= 100:
        raise UserError(
            f"{place}.clip_percentile {stage.clip_percentile:g}: give a percentile from 0 to 100"
        )
    for key, least in {"warmup": 0, "clip": 0, "shift": 0, "block": 1}.items():
        _at_least(f"{place}.{key}", getattr(stage, key), least)
    _check_size(f"{place}.size", stage.size, run.space)
    if stage.data is not None:
        check_data(stage.data, f"{place}.data")
        _check_size(f"{place}.data.size", stage.data.size, run.space)
    if stage.dp is not None:
        _check_dp(place, stage, stage.dp, run)


def _check_dp(place: str, stage: Stage, dp: DP, run: Run) -> None:
    """Raise UserError for what would publish, or let the noise depend on, single images."""
    _above_zero(f"{place}.dp.epsilon", dp.epsilon)
    _above_zero(f"{place}.dp.clip", dp.clip)
    _at_least(f"{place}.dp.multiplicity", dp.multiplicity, 1)
    if not 0 < dp.delta < 1:
        raise UserError(f"{place}.dp.delta {dp.delta:g}: give a probability, such as 1e-5")
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
    if run.train.check_every > 0:
        raise UserError(
            f"train.check_every {run.train.check_every}: checks publish errors on the private "
            f"images of {place}.dp; give 0 (checks in other stages alone) or -1 (none)"
        )
    if run.train.compile:
        raise UserError(
            f"train.compile: the gradients of single images, which {place}.dp needs, cannot be "
            "compiled; leave it out"
        )


def check_data(data: Data, place: str = "data") -> None:
    """Raise UserError for settings of the images that cannot work."""
    if data.channels not in (1, 3):
        raise UserError(f"{place}.channels {data.channels}: give 3 (colour) or 1 (grey)")
    if not 0 <= data.max_bad <= 1:
        raise UserError(f"{place}.max_bad {data.max_bad:g}: give a share from 0 to 1")
    _at_least(f"{place}.limit", data.limit, 0)
    if not 0 <= data.audit_split < 1:
        raise UserError(f"{place}.audit_split {data.audit_split:g}: give a share from 0 to below 1")
    if data.audit_split and data.held_out != "auto":
        raise UserError(
            f"{place}: held_out {data.held_out} and audit_split both say what is not trained on; "
            "leave one of them out"
        )
    image_size(data.size)


def _check_size(place: str, size: tuple[int, ...], space: Space) -> None:
    found = image_size(size)
    _at_least("space.patch", space.patch, 1)
    _at_least("space.levels", space.levels, 1)
    _at_least("space.factor", space.factor, 1)
    _at_least("space.latent_channels", space.latent_channels, 1)
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


def _at_least(place: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise UserError(f"{place} {value:g}: give a number from {least} up")


def _above_zero(place: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{place} {value:g}: give a number above 0")
