"""The settings of a run as dataclasses: names, types, defaults, and a sentence on each.

Those of which a model is made: `model_spec`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeAlias

from underpaint.config.fields import FRACTION, HIDDEN_SHARE, POSITIVE, SEED, Range, setting
from underpaint.config.model_spec import Network, Noise, Sampling, Space
from underpaint.errors import UserError

Channels: TypeAlias = Literal[1, 3, "rgba"]
CHANNELS: dict[Channels, int] = {1: 1, 3: 3, "rgba": 4}  # numbers per pixel


def named(channels: int) -> Channels:
    """The setting of images of so many numbers per pixel."""
    return next(name for name, count in CHANNELS.items() if count == channels)


@dataclass(kw_only=True, slots=True)
class Data:
    """Which images, and how they are decoded into the cache."""

    source: str = setting(
        "",
        "images: a folder, .zip, .tar, .npy/.npz, IDX .gz, .csv, a folder of parquet/arrow, "
        "avatars:STYLE, a file of underpaint seal (masked stages), or shards to stream: "
        "'set-{0000..0999}.tar', 'train-*.parquet', a folder of .tar, @list.txt, here or behind "
        "URLs",
    )
    size: tuple[int, ...] = setting(
        (), "pixels: one number for a square, or height and width; empty: the images' own size"
    )
    channels: Channels = setting(
        3, "of the decoded images: 3 (colour), 1 (grey), or rgba: colour with transparency"
    )
    fit: Literal["crop", "pad", "stretch"] = setting(
        "crop",
        "images of another aspect ratio: crop the centre, pad with the background, or stretch",
    )
    background: str = setting(
        "white", "colour behind transparent pixels and padding (not with rgba)"
    )
    max_bad: float = setting(
        0.01,
        "largest share of unreadable files to skip; more is an error",
        Range(0, 1, "a share from 0 to 1"),
    )
    max_pixels: int = setting(
        100_000_000,
        "largest image to decode, in pixels; larger ones count as unreadable",
        Range(1),
    )
    levels: int = setting(
        16,
        "bits used in 16-bit files: 12 for many microscopes and cameras",
        Range(8, 16, "a number of bits from 8 to 16"),
    )
    held_out: str = setting(
        "auto", "images kept for evaluation: auto (5 %), a number, none, or another data source"
    )
    audit_split: float = setting(
        0.0,
        "share of the images kept out of training as non-members for `audit`, such as "
        "0.5; 0: the held-out images serve",
        Range(0, 1, "a share from 0 to below 1", "most"),
    )
    limit: int = setting(0, "use this many training images only (chosen by hash); 0: all", Range(0))
    remove_duplicates: bool = setting(
        False,
        "train on one image of each group of near duplicates, or on none if one of them "
        "is held out",
    )
    window: int = setting(
        16_384, "images of shards that are shuffled together; 0: all of them", Range(0)
    )
    only: str = setting(
        "", "file of sha256 sums, one per line: train on these images alone, whatever is held out"
    )


@dataclass(kw_only=True, slots=True)
class DP:
    """Differential privacy of a stage's images (extra `dp`; docs/privacy-dp.md)."""

    epsilon: float = setting(
        8.0, "privacy budget of the whole stage; smaller: more noise", POSITIVE
    )
    delta: float = setting(
        1e-5,
        "probability that the guarantee does not hold; far below 1/n",
        Range(0, 1, "a probability, such as 1e-5", "both"),
    )
    clip: float = setting(1.0, "largest norm of one image's gradient", POSITIVE)
    multiplicity: int = setting(
        4,
        "draws of time, noise, mask and augmentation averaged into one image's gradient",
        Range(1),
    )
    labels: tuple[str, ...] = setting(
        (), "label names that you declare public; needed if only the private images define them"
    )


@dataclass(kw_only=True, slots=True)
class Stage:
    """One stage of a recipe. Its length is a number of images, never of steps."""

    images: int = setting(0, "length in images; a multiple of batch is used")
    minutes: float = setting(
        0.0,
        "length in minutes, with start, checks, grids and report; converted to images "
        "once, by the measured speed; fewer or more if the machine becomes slower or faster",
    )
    mask: Literal["none", "patch", "block", "crop", "salient"] = setting(
        "none",
        "what hides patches: none, single patches, blocks of patches, all outside a crop, or "
        "patches of little contrast first (salient)",
    )
    rate: float = setting(0.0, "share of the patches that is hidden, below 1", HIDDEN_SHARE)
    rate_end: float = setting(0.0, "share at the stage's end, where rate_schedule is not constant")
    rate_schedule: Literal["constant", "linear", "cos4"] = setting(
        "constant", "how the rate changes from rate to rate_end (at most 8 distinct levels)"
    )
    block: int = setting(2, "side of a block in patches (mask: block)", Range(1))
    temperature: float = setting(
        1.0,
        "randomness of the choice: above 1 more random, below 1 stricter (salient)",
        POSITIVE,
    )
    reweight: bool = setting(
        False, "weight patches by how rarely they are shown (Horvitz-Thompson; mask: salient)"
    )
    fixed: bool = setting(False, "each image always has the same mask, drawn from its hash")
    fixed_key: str = setting(
        "", "key file of `underpaint seal`: the fixed masks are those of the sealed data"
    )
    batch: int = setting(32, "images per step, over all devices", Range(1))
    learning_rate: float = setting(1e-3, "peak learning rate", POSITIVE)
    warmup: int = setting(0, "images over which the learning rate rises linearly", Range(0))
    schedule: Literal["constant", "cosine", "cooldown"] = setting(
        "constant", "learning rate after the warm-up; cooldown: constant, then linear to 0"
    )
    cooldown: float = setting(
        0.25,
        "share of the stage that the cool-down takes",
        Range(0, 1, "a share above 0, up to 1", "least"),
    )
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping", Range(0))
    clip_percentile: float = setting(
        0.0,
        "also clip at this percentile (up to 100) of the stage's last 200 gradient norms; 0: no",
        Range(0, 100, "a percentile from 0 to 100"),
    )
    flip: bool = setting(False, "mirror images at random")
    shift: int = setting(0, "largest random shift in pixels (edges are repeated)", Range(0))
    keep_optimizer: bool = setting(True, "keep the optimiser's state from the stage before")
    augment: float = setting(
        0.0,
        "probability of each augmentation (flip, quarter turn, shift, scale, brightness, "
        "contrast, saturation); the network is conditioned on it; off during the "
        "cool-down",
        Range(0, 1, "a probability from 0 to 1"),
    )
    size: tuple[int, ...] = setting((), "pixels; empty: as data.size. Positions are interpolated")
    data: Data | None = setting(None, "other images than the run's (transfer)")
    dp: DP | None = setting(
        None, "differential privacy: epsilon, delta, clip, multiplicity, labels"
    )


@dataclass(kw_only=True, slots=True)
class Train:
    """How the loop runs: seed, optimiser, EMA, device, and what is written when."""

    seed: int = setting(0, "seed of everything random", SEED)
    microbatch: int = setting(
        0,
        "images per forward pass and device; 0: batch / devices; -1: the same, halved until it "
        "fits into memory",
        Range(-1),
    )
    timeout: float = setting(
        30.0, "minutes that a process waits for the others (torchrun)", POSITIVE
    )
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw",
        "muon: orthogonalised momentum for the matrices inside the blocks, at the same learning "
        "rate, and AdamW for the rest",
    )
    betas: tuple[float, float] = setting((0.9, 0.99), "AdamW's betas", FRACTION)
    weight_decay: float = setting(0.01, "decoupled weight decay", Range(0))
    decay: Literal["matrices", "all"] = setting("matrices", "tensors with weight decay")
    ema: float = setting(0.999, "decay of the weights' average per step", FRACTION)
    device: str = setting("auto", "auto, cpu, cuda or mps")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto",
        "auto: bf16 on GPUs, and on CPUs if it trains faster there (measured once, at the start)",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "with several processes (torchrun): a full copy in each (ddp), or weights, "
        "moments and EMA sharded (fsdp); auto: fsdp if a copy would take over 60 % of a "
        "GPU",
    )
    recompute: bool = setting(
        False,
        "activation checkpointing: recompute each block in the backward pass; less "
        "memory, about a third more compute",
    )
    compile: bool = setting(
        False, "compile the network with torch.compile; on a CPU it needs a C++ compiler"
    )
    threads: int = setting(0, "CPU threads; 0: as torch chooses", Range(0))
    workers: int = setting(
        -1,
        "processes that read and decode images of shards, per training process; 0: none; "
        "-1: one less than the cores, at most 8",
        Range(-1),
    )
    log_every: int = setting(
        0, "images between two lines of metrics; 0: a 400th of the run", Range(0)
    )
    check_every: int = setting(
        0,
        "images between checks on held-out images; 0: an 8th of the run, rarer in short "
        "runs; -1: no checks",
        Range(-1),
    )
    check_images: int = setting(128, "images per side (training, held-out) in a check", Range(1))
    check_samples: int = setting(
        0,
        "samples drawn at each check for their Fréchet distance to training and held-out images "
        "(64 of each at least) and the share of near copies; 0: none",
        Range(0),
    )
    stop: Literal["none", "auto"] = setting(
        "none",
        "auto: end a stage when its checks (16 per stage) stop improving or show "
        "memorizing, after its cool-down if it has one, and keep the weights of the best "
        "check",
    )
    sample_every: int = setting(
        0,
        "images between sample grids; 0: an 8th of the run, rarer in short runs; -1: no grids",
        Range(-1),
    )
    checkpoint_every: int = setting(
        0, "images between two checkpoints; 0: an 8th of the run", Range(0)
    )
    snapshots: int = setting(
        0,
        "images between two snapshots, from which `underpaint ema` computes averages of "
        "any width (each twice the size of the weights); -1: a 32nd of the run; 0: none",
        Range(-1),
    )
    keep: int = setting(2, "checkpoints to keep, besides each stage's last", Range(1))
    track: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "also send metrics to this tracker"
    )


@dataclass(kw_only=True, slots=True)
class Run:
    """A whole run."""

    data: Data = setting(Data(), "images")
    space: Space = setting(Space(), "space of the diffusion")
    network: Network = setting(Network(), "network")
    noise: Noise = setting(Noise(), "noise process and objective")
    stages: dict[str, Stage] = setting({}, "the stages in their order, by name")
    train: Train = setting(Train(), "loop")
    sampling: Sampling = setting(Sampling(), "sample grids")

    @property
    def last(self) -> Stage:
        """The last stage, whose task the run ends with. Raises UserError if there is none."""
        if not self.stages:
            raise UserError("the recipe has no stages; give at least one under 'stages:'")
        return list(self.stages.values())[-1]

    def data_of(self, stage: Stage) -> Data:
        """The images of a stage, its own or the run's, at the stage's size."""
        data = stage.data or self.data
        return dataclasses.replace(data, size=stage.size) if stage.size else data


def network_of(run: Run) -> Network:
    """The run's network, which is given augmentation if any stage augments.

    All stages have the same layers, so that weights go from one to the next.
    """
    augmented = run.network.augment or any(stage.augment > 0 for stage in run.stages.values())
    return dataclasses.replace(run.network, augment=augmented)


def image_size(size: tuple[int, ...]) -> tuple[int, int] | None:
    """`(s,)` → (s, s); `(h, w)` as it is; `()` → None. Raises UserError otherwise."""
    if not size:
        return None
    if len(size) > 2 or min(size) < 1:
        shown = " ".join(str(s) for s in size)
        raise UserError(f"size '{shown}': give one positive number, or height and width")
    return (size[0], size[-1])
