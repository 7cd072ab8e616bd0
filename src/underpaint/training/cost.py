"""What a recipe costs, before anything is trained.

    FLOPs per image    3 · forward(V) + optimiser / batch: the backward pass costs twice the forward
    memory            `parameter_bytes` a parameter + batch · activations(V)

with V the visible patches of N. FLOPs and activations are counted (`backbones.counting`) on
networks without weights. Of an optimiser only Muon's products of matrices are FLOPs that count; it
keeps one number an entry of its matrices, where AdamW keeps two.
"""

from typing import Any

import torch

from underpaint import backbones, config, factory
from underpaint.core import masks
from underpaint.errors import UserError
from underpaint.hardware import pick_device, use_bf16
from underpaint.training.optim import muon_matrices, optimizer_flops


def describe(
    run: config.Run, size: tuple[int, int], channels: int, classes: int = 0
) -> dict[str, Any]:
    """Parameters, and for each stage its masks, FLOPs, images and memory, as plain values.

    `size` is the run's (height, width) in pixels, `classes` the number of labels in its data.
    FLOPs are counts, memory is in bytes (an estimate). `flops` is None where a stage's length is
    given in minutes. A stage whose rate changes has its means, and each level under `levels`.
    Raises UserError where the settings do not fit together.
    """
    config.check(run)
    factory.check_noise(run.noise)
    backbone = network(run, size, channels, classes)
    backbones.check_hidden(backbone, run.network, run.noise)
    backbones.check_features(backbone, run.noise)
    muon_matrices(backbone, run.train)  # refuses
    stages = []
    for name, stage in run.stages.items():
        try:
            stages.append({"name": name, **_stage(run, stage, size, channels, classes)})
        except (UserError, ValueError) as error:
            raise UserError(f"stages.{name}: {error}") from None
    lengths = [stage["flops"] for stage in stages]
    return {
        "parameters": _parameters(backbone),
        "size": list(size),
        "channels": channels,
        "classes": classes,
        "stages": stages,
        "flops": None if None in lengths else sum(lengths),
        "memory": max(stage["memory"] for stage in stages),
    }


def parameter_bytes(bytes_per: int = 4) -> int:
    """Bytes a parameter: weight, gradient, AdamW's two moments and the average, all in float32.

    Under bf16 autocast (`bytes_per` 2) also its copy of the weight.
    """
    return 5 * 4 + (bytes_per if bytes_per < 4 else 0)


def network(
    run: config.Run, size: tuple[int, int], channels: int, classes: int
) -> backbones.Backbone:
    """The network of `run`, on the meta device: to be counted, not computed with."""
    space = factory.space(run.space, size, channels)
    with torch.device("meta"):
        return backbones.build(
            config.network_of(run),
            grid=space.grid,
            patch_dim=space.patch_dim,
            classes=classes if run.network.labels else 0,
            patch=run.space.patch,
        )


def _parameters(backbone: backbones.Backbone) -> int:
    return sum(p.numel() for p in backbone.parameters())


def _stage(
    run: config.Run, stage: config.Stage, size: tuple[int, int], channels: int, classes: int
) -> dict[str, Any]:
    stage_size = config.image_size(stage.size or (stage.data.size if stage.data else ()))
    backbone = network(run, stage_size or size, channels, classes)
    grid = backbone.grid
    N = grid[0] * grid[1]
    draws = stage.dp.multiplicity if stage.dp else 1  # of each image, in a private stage
    a_step = optimizer_flops(backbone, run.train)
    share = a_step / stage.batch if a_step else 0
    whole = 3 * draws * backbone.flops(N) + share
    levels: list[dict[str, Any]] = []
    spec = factory.mask_spec(stage, backbone)
    most = masks.most_levels(run.train.compile)
    found = masks.rate_levels(spec, grid, stage.rate_end, stage.rate_schedule, most)
    ends = [start for start, _ in found[1:]] + [1.0]
    for (start, rate), end in zip(found, ends, strict=True):
        V = masks.visible_count(spec.at(rate), grid)
        levels.append(
            {
                "share": end - start,
                "rate_asked": rate,
                "rate": 1 - V / N,
                "visible": V,
                "flops_per_image": 3 * draws * backbone.flops(V, stage.mask) + share,
            }
        )
    mean = {key: sum(lv["share"] * lv[key] for lv in levels) for key in levels[0] if key != "share"}
    micro = run.train.microbatch if run.train.microbatch > 0 else stage.batch
    most, least = (pick(lv["visible"] for lv in levels) for pick in (max, min))
    device = pick_device(run.train.device)
    half = use_bf16(run.train.precision, device, run.network.width) and stage.dp is None
    bytes_per = 2 if half else 4
    activations = backbone.activation_bytes(
        most, stage.mask, bytes_per, recompute=run.train.recompute
    )
    weights = _parameters(backbone) * parameter_bytes(bytes_per)
    weights -= 4 * sum(p.numel() for p in muon_matrices(backbone, run.train))
    images = max(1, round(stage.images / stage.batch)) * stage.batch if stage.images else None
    return {
        "mask": stage.mask,
        **(mean if len(levels) > 1 else {k: v for k, v in levels[0].items() if k != "share"}),
        "patches": N,
        "whole_flops_per_image": whole,
        "times_cheaper": whole / mean["flops_per_image"],
        # False: hidden patches cost as much as visible ones (a U-Net without a crop)
        "saves": backbone.saves(least, stage.mask) or least == N,
        "images": images,
        "minutes": stage.minutes or None,
        "batch": stage.batch,
        "optimizer_flops_per_image": share,  # of the above
        "flops": None if images is None else round(images * mean["flops_per_image"]),
        "memory": weights + micro * activations,
        "levels": levels,
    }
