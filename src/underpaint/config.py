"""The settings of a run: dataclasses are the schema, YAML and flags are two spellings of them.

`underpaint train --config my.yaml --stages.whole.batch 64` reads the file first, then the flags.
Unknown names, wrong types and impossible values raise `UserError` with one sentence that names the
place, what was given and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from underpaint.errors import UserError

__all__ = [
    "DP",
    "Data",
    "ModelSpec",
    "Network",
    "Noise",
    "Preview",
    "Run",
    "Space",
    "Stage",
    "Train",
    "apply_flags",
    "check",
    "check_data",
    "check_labels",
    "flag_names",
    "from_dict",
    "image_size",
    "load",
    "network_of",
    "preset",
    "preset_names",
    "preset_text",
    "to_dict",
    "to_yaml",
]

T = TypeVar("T")


def setting(default: Any, help: str) -> Any:
    """A field with its default and the sentence that `--help` and docs/recipes.md print."""
    if isinstance(default, dict) or dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class Data:
    """Which images, and how they are decoded into the cache."""

    source: str = setting(
        "",
        "images: a folder, .zip, .tar, .npy/.npz, IDX .gz, .csv, a folder of parquet/arrow, "
        "avatars:STYLE, or a file of underpaint seal (masked stages)",
    )
    size: tuple[int, ...] = setting(
        (), "pixels: one number for a square, or height and width; empty: the images' own size"
    )
    channels: int = setting(3, "colour channels of the decoded images: 3 or 1")
    fit: Literal["crop", "pad", "stretch"] = setting(
        "crop", "how another aspect is met: crop the centre, pad with the background, or stretch"
    )
    background: str = setting("white", "colour behind transparent pixels and padding")
    max_bad: float = setting(0.01, "share of unreadable files that is skipped; beyond it: error")
    held_out: str = setting(
        "auto", "images kept for judging: auto (5 %), a number, none, or another data source"
    )
    audit_split: float = setting(
        0.0, "share of the images set aside as non-members for `audit`, as 0.5; 0: those held out"
    )
    limit: int = setting(0, "use this many training images only (chosen by hash); 0: all")
    only: str = setting(
        "", "file of sha256 sums, one a line: train on these images alone, whatever is held out"
    )


@dataclass(kw_only=True)
class Space:
    """The space in which the diffusion runs."""

    kind: str = setting("pixels", "pixels, wavelets or latents")
    patch: int = setting(
        4,
        "side of a patch in pixels (wavelets: in coefficients, each 2^levels pixels wide); height "
        "and width must be divisible by it",
    )
    levels: int = setting(1, "levels of the Haar transform (wavelets)")
    vae: str = setting(
        "", "folder of a diffusers AutoencoderKL or AutoencoderTiny, which you have (latents)"
    )
    factor: int = setting(8, "pixels a side that one latent stands for (latents)")
    latent_channels: int = setting(4, "channels of the autoencoder's latents (latents)")


@dataclass(kw_only=True)
class Network:
    """The network that sees patches at positions."""

    kind: str = setting("uvit", "uvit, dit, maskdit or unet")
    width: int = setting(128, "features of a token")
    depth: int = setting(5, "transformer blocks (uvit: an even number has its middle block extra)")
    heads: int = setting(4, "attention heads; width must be divisible by it")
    mlp_ratio: float = setting(4.0, "hidden width of the MLP over the token width")
    dropout: float = setting(0.0, "dropout probability")
    qk_norm: bool = setting(
        False, "bring the attention's queries and keys to length one a number (uvit, dit, maskdit)"
    )
    augment: bool = setting(False, "be told of augmentation; on where a stage's augment is above 0")
    labels: bool = setting(True, "learn the labels of the data, if it has any")
    label_drop: float = setting(
        0.1, "probability that a training label is replaced by the null label (for guidance)"
    )
    options: dict[str, Any] = setting({}, "settings that only this kind of network has")


@dataclass(kw_only=True)
class Noise:
    """The noise process, what the network predicts and how errors are weighted."""

    process: Literal["vp-linear", "vp-cosine", "flow", "edm", "ve"] = setting(
        "flow", "variance preserving (linear or cosine), flow matching, EDM, or variance exploding"
    )
    prediction: Literal["eps", "x0", "v", "flow", "score", "edm"] = setting(
        "flow",
        "target of the network; v needs vp-*, flow needs flow, score and edm need edm or ve",
    )
    steps: int = setting(
        0, "discrete training grid (DDPM: 1000; ve: geometric levels); 0: continuous time"
    )
    time: Literal["uniform", "logit-normal", "log-normal", "log-uniform"] = setting(
        "logit-normal",
        "law of the training time: uniform (vp, flow), logit-normal (flow), log-normal sigma "
        "(edm), log-uniform sigma (ve)",
    )
    shift: float = setting(1.0, "resolution shift of the flow's time; above 1: more noise")
    sigma_data: float = setting(0.5, "standard deviation of the data (edm, ve)")
    weighting: Literal["output", "x0", "min-snr"] = setting(
        "output", "squared error of the network's output, of x0, or of x0 weighted min(SNR, gamma)"
    )
    gamma: float = setting(5.0, "gamma of the min-snr weighting")
    learned_weights: bool = setting(
        False, "divide the error at each noise level by its size there, learned as training goes on"
    )
    hidden_weight: float = setting(
        0.0, "weight of MaskDiT's loss on hidden patches (its paper: 0.1); needs a decoder"
    )


@dataclass(kw_only=True)
class DP:
    """Differential privacy of a stage's images (extra `dp`; docs/privacy-dp.md)."""

    epsilon: float = setting(8.0, "privacy budget of the whole stage; smaller: more noise")
    delta: float = setting(1e-5, "probability with which the budget may not hold; far below 1/n")
    clip: float = setting(1.0, "largest norm of one image's gradient")
    multiplicity: int = setting(
        4, "draws of time, noise, mask and augmentation that one image's gradient is the mean of"
    )
    labels: tuple[str, ...] = setting(
        (), "the names of the labels, which you say are public; needed where only the images know"
    )


@dataclass(kw_only=True)
class Stage:
    """One stage of a recipe. Its length is a number of images, never of steps."""

    images: int = setting(0, "length in images; a multiple of batch is used")
    minutes: float = setting(
        0.0, "length in minutes, measured once and then frozen as images (instead of images)"
    )
    mask: Literal["none", "patch", "block", "crop", "salient"] = setting(
        "none",
        "what hides patches: none, single patches, blocks of patches, all outside a crop, or "
        "patches of little contrast first (salient)",
    )
    rate: float = setting(0.0, "share of the patches that is hidden, below 1")
    rate_end: float = setting(0.0, "share at the stage's end, where rate_schedule is not constant")
    rate_schedule: Literal["constant", "linear", "cos4"] = setting(
        "constant", "how the rate goes from rate to rate_end (at most 8 distinct levels)"
    )
    block: int = setting(2, "side of a block in patches (mask: block)")
    temperature: float = setting(
        1.0, "how strictly contrast decides: above 1 nearer to chance, below 1 stricter (salient)"
    )
    reweight: bool = setting(
        False, "weight patches by how rarely they are shown (Horvitz-Thompson; mask: salient)"
    )
    fixed: bool = setting(False, "each image keeps one mask for ever, drawn from its hash")
    fixed_key: str = setting(
        "", "key file of underpaint seal: fixed masks are then those of the sealed data"
    )
    batch: int = setting(32, "images a step, over all devices")
    learning_rate: float = setting(1e-3, "peak learning rate")
    warmup: int = setting(0, "images over which the learning rate rises linearly")
    schedule: Literal["constant", "cosine", "cooldown"] = setting(
        "constant", "learning rate after the warm-up; cooldown: constant, then linear to 0"
    )
    cooldown: float = setting(0.25, "share of the stage that the cool-down takes")
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping")
    clip_percentile: float = setting(
        0.0,
        "also clip at this percentile (up to 100) of the stage's last 200 gradient norms; 0: no",
    )
    flip: bool = setting(False, "mirror images at random")
    shift: int = setting(0, "largest random shift in pixels (edges are repeated)")
    keep_optimizer: bool = setting(True, "keep the optimiser's state from the stage before")
    augment: float = setting(
        0.0,
        "probability of each change (flip, quarter turn, shift, scale, brightness, contrast, "
        "saturation) that the network is told of, so that samples do not show it",
    )
    size: tuple[int, ...] = setting((), "pixels; empty: as data.size. Positions are interpolated")
    data: Data | None = setting(None, "other images than the run's (transfer)")
    dp: DP | None = setting(
        None, "differential privacy: epsilon, delta, clip, multiplicity, labels"
    )


@dataclass(kw_only=True)
class Train:
    """How the loop runs: seed, optimiser, EMA, device, and what is written when."""

    seed: int = setting(0, "seed of everything random")
    microbatch: int = setting(0, "images a forward pass and device; 0: batch / devices")
    betas: tuple[float, float] = setting((0.9, 0.99), "AdamW's betas")
    weight_decay: float = setting(0.01, "AdamW's weight decay")
    decay: Literal["matrices", "all"] = setting("matrices", "tensors that are decayed")
    ema: float = setting(0.999, "decay of the weights' average, a step")
    device: str = setting("auto", "auto, cpu, cuda or mps")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 where it is fast")
    compile: bool = setting(False, "compile the network with torch.compile")
    threads: int = setting(0, "CPU threads; 0: as torch chooses")
    log_every: int = setting(0, "images between two lines of metrics; 0: a 400th of the run")
    check_every: int = setting(0, "images between overfit checks; 0: an 8th of the run; -1: none")
    check_images: int = setting(128, "images of each side (train, held-out) in an overfit check")
    check_samples: int = setting(
        0,
        "samples drawn at a check for their Fréchet distance to training and held-out images "
        "(64 of each at least) and the share of near copies; 0: none",
    )
    stop: Literal["none", "auto"] = setting(
        "none",
        "auto: end a stage where its checks (then 16 a stage) stop gaining or show copying, after "
        "its cool-down if it has one, and keep the weights of its best check",
    )
    sample_every: int = setting(0, "images between sample grids; 0: an 8th of the run; -1: none")
    checkpoint_every: int = setting(0, "images between two checkpoints; 0: an 8th of the run")
    snapshots: int = setting(
        0,
        "images between two snapshots of the averages from which `underpaint ema` rebuilds any "
        "width, each twice as large as the weights; 0: none",
    )
    keep: int = setting(2, "checkpoints kept, besides each stage's last")
    track: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "also send metrics to this tracker"
    )


@dataclass(kw_only=True)
class Preview:
    """How the run draws its sample grids, and the defaults of `underpaint sample`."""

    count: int = setting(32, "samples in a grid")
    sampler: Literal["euler", "heun", "dpm++", "ancestral", "churn", "langevin", "pc"] = setting(
        "heun", "sampling method"
    )
    steps: int = setting(20, "sampling steps")
    grid: Literal["karras", "uniform", "log-snr"] = setting("uniform", "noise levels of the steps")
    guidance: float = setting(1.0, "classifier-free guidance; 1: none")
    clip: Literal["none", "static", "dynamic"] = setting("static", "clipping of x0 while sampling")
    eta: float = setting(1.0, "noise of the ancestral sampler (0: DDIM)")
    corrections: int = setting(1, "Langevin steps at each noise level (langevin, pc)")
    snr: float = setting(0.16, "size of a Langevin step: it adds 2·snr of the level's noise")


@dataclass(kw_only=True)
class Run:
    """A whole run."""

    data: Data = setting(Data(), "images")
    space: Space = setting(Space(), "space of the diffusion")
    network: Network = setting(Network(), "network")
    noise: Noise = setting(Noise(), "noise process and objective")
    stages: dict[str, Stage] = setting({}, "the stages in their order, by name")
    train: Train = setting(Train(), "loop")
    preview: Preview = setting(Preview(), "sample grids")


@dataclass(kw_only=True)
class ModelSpec:
    """What is needed to build a network for weights: a checkpoint's `config.json`."""

    size: tuple[int, int] = setting((32, 32), "height and width in pixels")
    channels: int = setting(3, "colour channels")
    label_names: tuple[str, ...] = setting((), "names of the classes; empty: unconditional")
    space: Space = setting(Space(), "space of the diffusion")
    network: Network = setting(Network(), "network")
    noise: Noise = setting(Noise(), "noise process")
    preview: Preview = setting(Preview(), "defaults for sampling")


def network_of(run: Run) -> Network:
    """The run's network, which is told of augmentation if any stage augments.

    All stages have the same layers, so that weights go from one to the next.
    """
    told = run.network.augment or any(stage.augment > 0 for stage in run.stages.values())
    return dataclasses.replace(run.network, augment=told)


def image_size(size: tuple[int, ...]) -> tuple[int, int] | None:
    """`(s,)` → (s, s); `(h, w)` as it is; `()` → None. Raises UserError otherwise."""
    if not size:
        return None
    if len(size) > 2 or min(size) < 1:
        shown = " ".join(str(s) for s in size)
        raise UserError(f"size '{shown}': give one positive number, or height and width")
    return (size[0], size[-1])


# --- reading ---------------------------------------------------------------------------------


def from_dict(cls: type[T], values: Any, where: str, base: T | None = None) -> T:
    """Build `cls` from nested plain values, on top of `base` (or of the defaults).

    `where` names the place in messages, for example `my.yaml: stages.whole`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected settings as 'name: value', got {_shown(values)}")
    result: Any = cls() if base is None else dataclasses.replace(base)  # type: ignore[type-var]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in names:
            raise UserError(_unknown(str(name), names, where))
        current = getattr(result, name)
        setattr(result, name, _convert(hints[name], value, _join(where, name), current))
    if isinstance(result, Stage):  # the length that was said last is the one that is meant
        if values.get("images") and "minutes" not in values:
            result.minutes = 0.0
        if values.get("minutes") and "images" not in values:
            result.images = 0
    return result


def _convert(hint: Any, value: Any, where: str, current: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, current)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, current)  # type: ignore[arg-type]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected 'name: value' pairs, got {_shown(value)}")
        merged = dict(current or {})
        for key, item in value.items():
            if dataclasses.is_dataclass(args[1]):
                if item is None:  # a stage set to null is dropped from a preset's recipe
                    merged.pop(str(key), None)
                    continue
                item = _convert(args[1], item, _join(where, str(key)), merged.get(str(key)))
            merged[str(key)] = item
        return merged
    if origin is Literal:
        if value not in args:
            options = ", ".join(str(a) for a in args)
            raise UserError(f"{where}: {_shown(value)} is not one of {options}")
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {_shown(value)}")
        return tuple(_convert(args[0], item, where) for item in items)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    raise UserError(f"{where}: expected {kind[hint.__name__]}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, (str, int, float)) else f"{value!r}"


def _join(where: str, name: str) -> str:
    return f"{where}{name}" if where.endswith((": ", "--", ".")) else f"{where}.{name}"


def _unknown(name: str, names: list[str], where: str) -> str:
    place, _, section = where.rstrip(": ").partition(": ")
    of = f" of {section}" if section else ""
    close = difflib.get_close_matches(name, names, 1, 0.6)
    if not close and not name.startswith("--"):
        sections = {"data": Data, "space": Space, "network": Network, "noise": Noise}
        sections |= {"stages.NAME": Stage, "train": Train, "preview": Preview}
        sections |= {"stages.NAME.dp": DP}
        elsewhere = {f.name: s for s, cls in sections.items() for f in dataclasses.fields(cls)}
        close = difflib.get_close_matches(name, list(elsewhere), 1, 0.7)
        close = [f"{elsewhere[c]}.{c}" for c in close]
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    return f"{place}: '{name}' is not a setting{of}; {hint}"


def load(path: str | Path, base: Run | None = None) -> Run:
    """Read a YAML recipe on top of `base`. Raises UserError for a missing or invalid file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a YAML recipe") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give a YAML recipe") from None
    return from_dict(Run, _parse(text, str(path)), f"{path.name}: ", base)


def _parse(text: str, where: str) -> Any:
    try:
        values = yaml.safe_load(text)
        return {} if values is None else values  # an empty file is no settings
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}: is not valid YAML{line}") from None


def preset_names() -> list[str]:
    """Names of the recipes that are part of the package."""
    folder = resources.files("underpaint") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def preset(name: str) -> Run:
    """A recipe of the package by its name."""
    return from_dict(Run, _parse(preset_text(name), name), f"{name}.yaml: ")


def preset_text(name: str) -> str:
    """The YAML of a recipe of the package, with its comments."""
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
        raise UserError(f"preset '{name}' does not exist; {hint}")
    path = resources.files("underpaint") / "presets" / f"{name}.yaml"
    return path.read_text(encoding="utf-8")


def apply_flags(run: Run, flags: list[str]) -> Run:
    """Apply `--stages.whole.batch 64` or `--train.seed=1`; several values make a list."""
    values: dict[str, list[str]] = {}
    name = None
    for token in flags:
        if token.startswith("--"):
            name, _, value = token[2:].partition("=")
            values[name] = [value] if value else []
        elif name is None:
            raise UserError(f"'{token}' was not expected here; settings look like --train.seed 1")
        else:
            values[name].append(token)
    for name, items in values.items():
        parsed = [_parse_flag(item) for item in items]
        if "." not in name:
            close = difflib.get_close_matches(f"--{name}", flag_names(run), 1, 0.5)
            hint = f"did you mean '{close[0]}'?" if close else "settings look like --train.seed 1"
            raise UserError(f"'--{name}' is not a setting; {hint}")
        head, *path = name.split(".")
        if head == "stages" and path[0] not in run.stages:
            raise UserError(
                f"--{name}: the recipe has no stage '{path[0]}'; it has {', '.join(run.stages)}"
            )
        nested: Any = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
        for part in reversed(path):
            nested = {part: nested}
        run = from_dict(Run, {head: nested}, "--", run)
    return run


def _parse_flag(text: str) -> Any:
    """A flag's value as YAML reads it; all but plain values (`#fff`, a date, `a: b`) are texts."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if value is None and text in ("null", "~"):
        return None
    nested = isinstance(value, (list, dict)) and text.startswith(("[", "{"))
    return value if nested or isinstance(value, (bool, int, float)) else text


def flag_names(run: Run) -> list[str]:
    """All settings of `run` as flags: `--train.seed`, `--stages.whole.batch`, …"""
    names = []
    for section, value in to_dict(run).items():
        for key, item in value.items():
            names += [f"--{section}.{key}.{k}" for k in item] if section == "stages" else []
            names.append(f"--{section}.{key}")
    return names


# --- checking --------------------------------------------------------------------------------


def check(run: Run) -> None:
    """Raise UserError for settings that cannot work together, as far as no data is needed."""
    if not run.stages:
        raise UserError("the recipe has no stages; give at least one under 'stages:'")
    for name, stage in run.stages.items():
        _check_stage(f"stages.{name}", name, stage, run)
    check_data(run.data)
    _check_size("data.size", run.data.size, run.space)
    network, train, preview = run.network, run.train, run.preview
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
        "preview.count": (preview.count, 1),
        "preview.steps": (preview.steps, 1),
        "preview.guidance": (preview.guidance, 0),
        "preview.eta": (preview.eta, 0),
        "preview.corrections": (preview.corrections, 0),
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
    if preview.grid == "uniform" and 0 < run.noise.steps < preview.steps:
        raise UserError(
            f"preview.steps {preview.steps}: the noise has a grid of {run.noise.steps} levels "
            "(noise.steps); give fewer steps or preview.grid karras or log-snr"
        )
    if preview.sampler in ("langevin", "pc") and preview.snr > 0.5:  # samplers.LARGEST_SNR
        raise UserError(
            f"preview.snr {preview.snr:g}: give at most 0.5, beyond which Langevin steps overshoot"
        )
    if preview.sampler == "langevin" and preview.corrections == 0:
        raise UserError("preview.corrections 0: sampler langevin needs at least 1")
    if run.space.kind == "latents" and preview.clip != "none":
        raise UserError(
            f"preview.clip {preview.clip}: latents are not bounded as pixels are; give clip none"
        )
    if not network.labels and preview.guidance != 1:
        raise UserError(
            f"preview.guidance {preview.guidance:g} guides towards labels, and network.labels is "
            "false; give guidance 1, or learn the labels"
        )
    if not 0 <= network.label_drop <= 1:
        raise UserError(f"network.label_drop {network.label_drop:g}: give a number from 0 to 1")
    for place, value in {
        "network.mlp_ratio": network.mlp_ratio,
        "preview.snr": preview.snr,
        "noise.gamma": run.noise.gamma,
    }.items():
        _above_zero(place, value)


def check_labels(run: Run, source: str, label_names: tuple[str, ...]) -> None:
    """Raise UserError if the recipe guides towards labels that the images have not."""
    if run.preview.guidance != 1 and not label_names:
        raise UserError(
            f"preview.guidance {run.preview.guidance:g} guides towards labels, and '{source}' has "
            "none; give them in a table 'path,label', where one class for all is enough, or set "
            "--preview.guidance 1 to train without"
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


# --- writing ---------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values (tuples become lists), ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """YAML that `load` reads back to the same settings."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100)
