"""Does every system learn, with its masked stage and without, for the same compute?

    python -m studies.systems.run [--only UNIT …] [--work runs/systems]     train and score
    python -m studies.systems.run --speed 3                              images/s, quiet machine
    python -m studies.systems.run --page                                 the page alone

Each system of `SYSTEMS` trains on embedded avatars (32×32) twice: in two stages, the first on
visible parts of the images, and on whole images from the start. Both get the same training FLOPs
(3 · forward an image), one learning rate and one seed, untuned: a difference between the two is a
hint, `underpaint compare` with tuning and more seeds is the measurement. A unit, SYSTEM_two-stage
or SYSTEM_whole, is a run of its own below --work and goes on where it was stopped; units that are
done are left alone, so several processes may share the work, and what --out holds is done.

After each unit --out is written anew: JSON, with a page beside it that shows the grids side by
side. Scores, all at the end of a run, from its averaged weights:

- held_out: mean squared error of x0 on whole held-out images, over 8 noise levels,
- frechet, kernel: distances in MobileNetV2 features (never an FID) of samples to held-out images,
- images/s of a training step of each stage, in --speed: alone on the machine, one thread.

Latents are those of an autoencoder with random weights, which shows that the path works: its images
mean nothing, so there are neither a grid nor distances for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from studies.lib import units
from studies.systems import page as systems_page
from underpaint.compare import study

HERE = Path(__file__).parent
SIZE, CHANNELS, CLASSES = (32, 32), 3, 8
SHOWN = 24  # samples in a grid
HELD_OUT = 1000
PRECISION = "fp32"  # on every machine, so that units of several may be compared
CHECKS = 4  # in a run; each costs as much as some thousand images of training

STAGE = {"batch": 32, "learning_rate": 1e-3, "minutes": 0, "images": 32}
STAGES = {
    "masked": STAGE | {"mask": "patch", "rate": 0.75, "warmup": 1000},
    "whole": STAGE | {"warmup": 1000, "schedule": "cooldown"},
}
UVIT = {"kind": "uvit"}
DDPM = {
    "process": "vp-cosine",
    "prediction": "eps",
    "time": "uniform",
    "steps": 1000,
    "stratified": False,
}
HEUN = {"sampler": "heun", "steps": 20, "grid": "karras", "clip": "static"}
ANCESTRAL = {"sampler": "ancestral", "steps": 50, "grid": "uniform", "clip": "static"}

# preset: what the unit's recipe begins with; recipe: the full-size or published one that the table
# names, if it is another; budget: training FLOPs of a run; share: of the masked stage
SYSTEMS: dict[str, dict[str, Any]] = {
    "uvit": {
        "title": "U-ViT, flow matching",
        "preset": "quickstart",
        "recipe": "quickstart --network.kind uvit",
        "settings": {"network": UVIT, "noise": units.INDEPENDENT, "sampling": units.EULER},
    },
    "maskdm": {
        "title": "MaskDM: U-ViT, DDPM's noise",
        "preset": "quickstart",
        "recipe": "maskdm-celebahq256",
        "settings": {"network": UVIT, "noise": DDPM, "sampling": ANCESTRAL},
    },
    "maskdm-wavelets": {
        "title": "MaskDM on wavelets",
        "preset": "quickstart",
        "recipe": "maskdm-dwt-celebahq256",
        "settings": {
            "network": UVIT,
            "space": {"kind": "wavelets", "patch": 2},
            "noise": DDPM,
            "sampling": ANCESTRAL,
        },
    },
    "dit": {
        "title": "DiT, flow matching",
        "preset": "quickstart",
        "settings": {"noise": units.INDEPENDENT, "sampling": units.EULER},
    },
    "maskdit": {
        "title": "MaskDiT: encoder and decoder, EDM",
        "preset": "quickstart",
        "recipe": "maskdit-xl2-imagenet256",
        "share": 0.7,
        "budget": 3e13,
        "settings": {
            "network": {
                "kind": "maskdit",
                "depth": 4,
                "options": {"decoder_width": 64, "decoder_depth": 2, "decoder_heads": 2},
            },
            "noise": {
                "process": "edm",
                "prediction": "edm",
                "time": "log-normal",
                "stratified": False,
                "hidden_weight": 0.1,
            },
            "stages": {"masked": {"rate": 0.5}},
            "sampling": HEUN,
        },
    },
    "ncsn": {
        "title": "Score network (NCSN), VE noise",
        "preset": "ncsn-small",
        "recipe": "ncsn-small",
        "budget": 3e13,
        "settings": {"stages": {"masked": {"mask": "block"}}, "sampling": {"steps": 40}},
    },
    "unet": {
        "title": "Convolutional U-Net on crops, flow matching",
        "preset": "unet-small",
        "budget": 7e13,
        "settings": {
            "noise": units.INDEPENDENT,
            "stages": {"masked": {"mask": "crop"}},
            "sampling": units.EULER,
        },
    },
    "latents": {
        "title": "DiT on latents (random autoencoder)",
        "preset": "quickstart",
        "recipe": "quickstart --space.kind latents",
        "budget": 1e13,
        "settings": {
            "space": {"kind": "latents", "patch": 1, "factor": 4, "latent_channels": 4},
            "noise": DDPM | {"process": "vp-linear"},
            "sampling": units.EULER | {"clip": "none"},
        },
    },
}
BUDGET, SHARE = 4e13, 0.35
ARMS = tuple(systems_page.ARMS)
UNITS = [f"{system}_{arm}" for system in SYSTEMS for arm in ARMS]


def recipe(unit: str, scale: float, work: Path) -> Any:
    """The run of a unit: the lengths that spend the system's budget, `scale` times."""
    from underpaint import config

    system, arm = unit.split("_")
    about = SYSTEMS[system]
    run = config.from_dict(
        config.Run,
        {
            "data": {"held_out": str(HELD_OUT)},
            "stages": STAGES,
            "train": {
                "threads": 1,
                "precision": PRECISION,
                "sample_every": -1,
                "check_images": 128,
            },
        },
        "systems: ",
        units.base(about["preset"]),
    )
    run = config.from_dict(config.Run, about.get("settings", {}), f"{system}: ", run)
    if run.space.kind == "latents":
        run.space.vae = str(autoencoder(work / "autoencoder"))
    if arm == "whole":
        run.stages = {"whole": run.stages["whole"]}
    share = about.get("share", SHARE)
    shares = {"masked": share, "whole": 1 - share} if arm == "two-stage" else {"whole": 1.0}
    budget = about.get("budget", BUDGET)
    run = study.scaled(run, shares, budget, scale, SIZE, CHANNELS, CLASSES)
    run.train.check_every = -(-sum(stage.images for stage in run.stages.values()) // CHECKS)
    return run


def autoencoder(folder: Path) -> Path:
    """A small AutoencoderKL of random weights: 32×32 pixels ↔ 8×8×4 latents."""
    if not (folder / "config.json").is_file():
        import torch
        from diffusers import AutoencoderKL

        torch.manual_seed(0)
        blocks = 3
        vae = AutoencoderKL(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=SIZE[0],
        )
        vae.save_pretrained(folder)
    return folder


def train(folder: Path, run: Any, count: int) -> dict[str, Any]:
    """One unit, begun or gone on with; its result."""
    from underpaint import api
    from underpaint.model import load

    if (folder / "config.yaml").is_file():
        api.resume(folder, quiet=True)
    else:
        api.train(run, folder, quiet=True)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    checks = [m for m in metrics if m["kind"] == "check" and m["mask"] == "whole"]
    ends = [m for m in metrics if m["kind"] == "stage" and m["event"] == "end"]
    model = load(folder)
    result = {
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "flops": ends[-1]["flops"],
        "images": ends[-1]["images"],
        "stages": {
            m["stage"]: {
                "mask": m["mask"],
                "rate": m["rate"],
                "visible": m["visible"],
                "patches": m["patches"],
                "flops_per_image": m["flops_per_image"],
                "images": m["images"] - before,
            }
            for before, m in zip([0, *(m["images"] for m in ends)], ends, strict=False)
        },
        "held_out": checks[-1]["held_out_mean"],
        "curve": [[m["images"], m["held_out_mean"]] for m in checks],
        "train_seconds": ends[-1]["seconds"],
    }
    if run.space.kind != "latents":
        result |= scored(folder, model, count)
    return result


def scored(folder: Path, model: Any, count: int) -> dict[str, Any]:
    """Grid and distances of a unit; the grid goes into its folder."""
    from underpaint import pictures
    from underpaint.evaluation.evaluate import evaluate

    names = model.label_names
    labels = [i % len(names) for i in range(SHOWN)]
    images = model.sample(SHOWN, seed=1000, labels=labels)
    pictures.grid(images, len(names)).save(folder / "grid.png", optimize=True)
    found = evaluate(folder, n=count, interval=True)
    assert found is not None  # one process
    return {
        "scores": {side: found["scores"][side] for side in ("train", "held_out", "floor")},
        "protocol": found["protocol"],
        "warnings": found["warnings"],
    }


def speed(unit: str, work: Path, rounds: int) -> dict[str, float]:
    """Images/s of a training step of each stage, the best of `rounds`, on one thread."""
    import torch

    from underpaint.training import distributed, stages, throughput

    torch.set_num_threads(1)
    run = recipe(unit, 1.0, work)
    world = distributed.start("cpu")
    try:
        prepared = stages.prepare_stages(run, lambda _: None)
        found = [
            {stage.name: throughput.speed(stage, run, world, 1.0) for stage in prepared}
            for _ in range(rounds)
        ]
    finally:
        world.close()
    return {name: max(times[name] for times in found) for name in found[0]}


def restore(work: Path, out: Path, scale: float) -> None:
    """Take the units of a committed `out` as done, on a machine that has not done them."""
    systems = units.committed(out, scale).get("systems", {}).items()
    results = {f"{name}_{arm}": r for name, told in systems for arm, r in told["units"].items()}
    units.restore({unit: results[unit] for unit in UNITS if unit in results}, work)


def gathered(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the picture of their samples."""
    import torch

    from underpaint import __version__

    results = units.gather(UNITS, work)
    systems = {
        system: {
            "title": about["title"],
            "preset": about.get("recipe", about["preset"]),
            "units": {
                arm: results[f"{system}_{arm}"] for arm in ARMS if f"{system}_{arm}" in results
            },
        }
        for system, about in SYSTEMS.items()
    }
    grids = {
        (row, arm): path
        for row, system in enumerate(SYSTEMS)
        for arm in ARMS
        if (path := work / f"{system}_{arm}" / "grid.png").is_file()
    }
    systems_page.paste(systems_page.samples(out), grids)
    about = {
        "underpaint": __version__,
        "torch": torch.__version__,
        "precision": PRECISION,
        "data": "avatars:lorelei, 32×32",
        "held_out": HELD_OUT,
        "scale": scale,
    }
    units.write_json(out, about | {"systems": systems})


def write(work: Path, out: Path, scale: float) -> None:
    """All that is kept of the units that are done."""
    gathered(work, out, scale)
    systems_page.page(out)


def main() -> int:
    """All units that are asked for and not done yet; the JSON and the page after each."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=UNITS, choices=UNITS, metavar="UNIT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the budgets")
    parser.add_argument("--count", type=int, default=HELD_OUT, help="samples that are scored")
    parser.add_argument("--work", type=Path, default=Path("runs/systems"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results")
    parser.add_argument("--speed", type=int, metavar="ROUNDS", help="measure images/s instead")
    parser.add_argument("--page", action="store_true", help="write the page of --out and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.page:
        print(systems_page.page(given.out))
        return 0

    def do(unit: str) -> dict[str, Any]:
        run = recipe(unit, given.scale, given.work)
        return train(given.work / unit, run, given.count)

    restore(given.work, given.out, given.scale)
    if not given.speed:
        return units.conduct(
            given.only, given.work, do, lambda: write(given.work, given.out, given.scale)
        )
    for unit, result in units.gather(given.only, given.work).items():
        result["images_per_s"] = speed(unit, given.work, given.speed)
        units.write_json(given.work / unit / "result.json", result)
        print(unit, result["images_per_s"], flush=True)
        write(given.work, given.out, given.scale)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
