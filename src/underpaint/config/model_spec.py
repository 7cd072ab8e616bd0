"""The settings that make a model: space, network, noise, sampling; a checkpoint's `config.json`."""

from dataclasses import dataclass
from typing import Any, Literal

from underpaint.config.fields import FRACTION, POSITIVE, Range, setting


@dataclass(kw_only=True, slots=True)
class Space:
    """The space in which the diffusion runs."""

    kind: str = setting("pixels", "pixels, wavelets or latents")
    patch: int = setting(
        4,
        "side of a patch in pixels (wavelets: in coefficients, each 2^levels pixels wide); height "
        "and width must be divisible by it",
        Range(1),
    )
    levels: int = setting(1, "levels of the Haar transform (wavelets)", Range(1))
    vae: str = setting("", "folder of a diffusers AutoencoderKL or AutoencoderTiny (latents)")
    factor: int = setting(8, "pixels per side that one latent stands for (latents)", Range(1))
    latent_channels: int = setting(4, "channels of the autoencoder's latents (latents)", Range(1))


@dataclass(kw_only=True, slots=True)
class Network:
    """The network that sees patches at positions."""

    kind: str = setting("dit", "dit, uvit, maskdit, unet or hourglass")
    width: int = setting(128, "features of a token")
    depth: int = setting(
        5, "transformer blocks (uvit: plus a middle block if the number is even)", Range(1)
    )
    heads: int = setting(4, "attention heads; width must be divisible by it")
    mlp_ratio: float = setting(
        4.0, "hidden width of the MLP, as a multiple of the token width", POSITIVE
    )
    dropout: float = setting(0.0, "dropout probability", FRACTION)
    qk_norm: bool = setting(
        False,
        "RMS-normalise the queries and keys of attention (uvit, dit, maskdit; an "
        "hourglass always does)",
    )
    augment: bool = setting(
        False, "condition on augmentation; on where a stage's augment is above 0"
    )
    labels: bool = setting(True, "train with the data's labels, if there are any")
    label_drop: float = setting(
        0.1,
        "probability that a training label is replaced by the null label (for guidance)",
        Range(0, 1, "a number from 0 to 1"),
    )
    options: dict[str, Any] = setting({}, "settings of this kind of network only")


@dataclass(kw_only=True, slots=True)
class Noise:
    """The noise process, what the network predicts and how errors are weighted."""

    process: Literal["vp-linear", "vp-cosine", "flow", "edm", "ve"] = setting(
        "flow", "variance preserving (linear or cosine), flow matching, EDM, or variance exploding"
    )
    prediction: Literal["eps", "x0", "v", "flow", "score", "edm"] = setting(
        "flow", "target of the network; v needs vp-*, flow needs flow, score and edm need edm or ve"
    )
    steps: int = setting(
        0, "discrete training grid (DDPM: 1000; ve: geometric levels); 0: continuous time", Range(0)
    )
    time: Literal["uniform", "logit-normal", "mixed", "log-normal", "log-uniform"] = setting(
        "mixed",
        "distribution of the training time: uniform (vp, flow), logit-normal (flow), mixed (flow: "
        "logit-normal, a fifth uniform), log-normal sigma (edm), log-uniform sigma (ve)",
    )
    stratified: bool = setting(
        True, "stratify the times of a batch of B: one in each of B equally likely intervals"
    )
    shift: float = setting(
        1.0, "resolution shift of the flow's time; above 1: more noise", POSITIVE
    )
    sigma_data: float = setting(0.5, "standard deviation of the data (edm, ve)", POSITIVE)
    weighting: Literal["output", "x0", "min-snr", "velocity"] = setting(
        "output",
        "squared error of the network's output, of x0, of x0 weighted min(SNR, gamma), or of the "
        "velocity",
    )
    gamma: float = setting(5.0, "gamma of the min-snr weighting", POSITIVE)
    learned_weights: bool = setting(
        False, "divide the error at each noise level by its size there, learned as training goes on"
    )
    hidden_weight: float = setting(
        0.0,
        "weight of MaskDiT's loss on hidden patches (its paper: 0.1); needs a decoder",
        Range(0),
    )


@dataclass(kw_only=True, slots=True)
class Sampling:
    """How the run draws its sample grids, and the defaults of `underpaint sample`."""

    count: int = setting(32, "samples in a grid", Range(1))
    sampler: Literal["euler", "heun", "dpm++", "ancestral", "churn", "langevin", "pc"] = setting(
        "heun", "sampling method"
    )
    steps: int = setting(20, "sampling steps", Range(1))
    grid: Literal["karras", "uniform", "log-snr"] = setting("uniform", "noise levels of the steps")
    guidance: float = setting(1.0, "classifier-free guidance; 1: none", Range(0))
    clip: Literal["none", "static", "dynamic"] = setting("static", "clipping of x0 while sampling")
    eta: float = setting(1.0, "noise of the ancestral sampler (0: DDIM)", Range(0))
    corrections: int = setting(1, "Langevin steps at each noise level (langevin, pc)", Range(0))
    snr: float = setting(
        0.16, "size of a Langevin step: it adds 2·snr of the level's noise", POSITIVE
    )
    churn: float = setting(
        40.0, "total noise that the churn sampler adds (EDM's S_churn)", Range(0)
    )
    churn_min: float = setting(0.05, "noise level from which it adds some (churn)", Range(0))
    churn_max: float = setting(50.0, "noise level up to which it adds some (churn)", Range(0))
    churn_noise: float = setting(1.003, "scale of the added noise (churn)", POSITIVE)


@dataclass(kw_only=True, slots=True)
class ModelSpec:
    """What is needed to build a network for weights: a checkpoint's `config.json`."""

    size: tuple[int, int] = setting((32, 32), "height and width in pixels")
    channels: int = setting(3, "numbers per pixel: 1, 3, or 4 with transparency")
    label_names: tuple[str, ...] = setting((), "names of the classes; empty: unconditional")
    space: Space = setting(Space(), "space of the diffusion")
    network: Network = setting(Network(), "network")
    noise: Noise = setting(Noise(), "noise process")
    sampling: Sampling = setting(Sampling(), "defaults for sampling")
