"""Averages of the weights whose width is chosen after training (post-hoc EMA).

An average with the profile p(t) = (γ + 1) t^γ / T^(γ+1) over the steps 0..T has the relative width
(standard deviation of p over T)

    σ_rel = √(γ + 1) / ((γ + 2) √(γ + 3))

and is kept by avg ← β avg + (1 − β) weights with β = (1 − 1/t)^(γ+1) at step t. A run tracks two of
them (σ_rel 0.05 and 0.10) and stores snapshots of both. Any other width is the combination Σ w_i
avg_i of the snapshots, wherever they lie, whose profile is nearest in least squares, with Σ w_i = 1
and the inner products

    ⟨a, b⟩ = (γ_a + 1)(γ_b + 1)/(γ_a + γ_b + 1) · t_a^γ_b / t_b^(γ_b+1),   t_a ≤ t_b

Karras et al. 2024, arXiv 2312.02696, section 3.

Between two snapshots the combination is a t^17.0 + b t^6.9, which follows a flat profile (a wide
average) only where snapshots are close for their t: it is the first intervals that cost wide ones
their nearness, and an earlier first snapshot alone does not help. `snapshots_for` says how many do.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from underpaint import config
from underpaint.errors import UserError
from underpaint.io import appearing, check_place, holds_only, writing
from underpaint.model import build
from underpaint.model_folder import MODEL, Weights, read_spec, read_weights, write_model
from underpaint.progress import doing
from underpaint.training import warm_start
from underpaint.training.checkpointing import read_snapshot, snapshots
from underpaint.training.seeding import seed_from

TRACKED: dict[Weights, float] = {"narrow": 0.05, "wide": 0.10}
# Narrower than the tracked ones cannot be told; wider ones take more and more snapshots.
NARROWEST, WIDEST = 0.05, 0.25
NEAR = 0.02  # how far a profile may be off before `underpaint ema` says so
MOST = 256  # snapshots that `snapshots_for` considers


class Average(NamedTuple):
    """The profile of an average: exponent and last step."""

    gamma: float
    steps: float


def exponent(width: float) -> float:
    """γ of a relative width up to 0.288: the largest root of (γ+2)²(γ+3) = (γ+1)/width²."""
    q = width**-2
    return float(np.roots([1, 7, 16 - q, 12 - q]).real.max())


GAMMAS: dict[Weights, float] = {name: exponent(width) for name, width in TRACKED.items()}


class PowerAverages:
    """The tracked averages of a module's parameters; `state` has its buffers too."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew at the module's weights."""
        self._weights = dict(self.module.named_parameters())
        self._averages = {
            name: {k: p.detach().clone() for k, p in self._weights.items()} for name in TRACKED
        }

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take in the weights after step `t` = 1, 2, …"""
        for name, gamma in GAMMAS.items():
            beta = (1 - 1 / t) ** (gamma + 1)
            torch._foreach_lerp_(
                list(self._averages[name].values()), list(self._weights.values()), 1 - beta
            )

    def state(self) -> dict[Weights, dict[str, Tensor]]:
        """Both averages as states of the module."""
        tensors = self.module.state_dict()
        return {name: {**tensors, **average} for name, average in self._averages.items()}

    @torch.no_grad()
    def load(self, state: Mapping[Weights, dict[str, Tensor]]) -> None:
        """Take over what `state` gave."""
        for name, average in self._averages.items():
            for k, tensor in average.items():
                tensor.copy_(state[name][k])


def inner_product(a: Average, b: Average) -> float:
    """∫ of the product of two profiles."""
    if a.steps > b.steps:
        a, b = b, a
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return scale * (a.steps / b.steps) ** b.gamma / b.steps


def combination(stored: Sequence[Average], wanted: Average) -> tuple[np.ndarray, float]:
    """The weights w [n], summing to one, of the nearest profile, and ‖Σ w_i p_i − p‖ / ‖p‖."""
    n, scale = len(stored), wanted.steps  # profiles in units of the last step
    A = scale * np.array([[inner_product(a, b) for b in stored] for a in stored])
    b = scale * np.array([inner_product(a, wanted) for a in stored])
    # with the multiplier of Σ w = 1 as the last unknown; lstsq, since neighbours are nearly equal
    system = np.block([[A, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    w = np.linalg.lstsq(system, np.append(b, 1.0), rcond=1e-12)[0][:n]
    w /= w.sum()
    norm = scale * inner_product(wanted, wanted)
    return w, math.sqrt(max(0.0, w @ A @ w - 2 * w @ b + norm) / norm)


def snapshots_for(width: float, error: float = NEAR) -> int:
    """How many equally spaced snapshots bring a profile of this width within `error`."""
    for n in range(2, MOST):
        stored = [Average(gamma, i) for i in range(1, n + 1) for gamma in GAMMAS.values()]
        if combination(stored, Average(exponent(width), n))[1] < error:
            return n
    return MOST


def rebuild(
    folder: Path,
    widths: Sequence[float],
    out: Path | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write a model's folder `out/WIDTH` for each width, from the snapshots of the run `folder`.

    Models in `folder/ema`, the default, are replaced; others are with `overwrite` alone. The
    averages end where the last snapshot was taken. Returns the folders, with how far each profile
    is from the wanted one. Raises UserError for a run without snapshots and for widths out of
    reach.
    """
    for width in widths:
        if not NARROWEST <= width <= WIDEST:
            raise UserError(
                f"--width {width:g}: give relative widths from {NARROWEST:g} to {WIDEST:g}"
            )
    found = snapshots(folder)
    targets = {width: (out or folder / "ema") / f"{width:g}" for width in widths}
    for target in targets.values():
        is_model = holds_only(target, MODEL) and (target / "config.json").is_file()
        if os.path.lexists(target) and not is_model:
            raise UserError(f"{target}: is there already and is no model; choose another --out")
        if out and target.exists() and not overwrite:
            raise UserError(f"{target}: exists already; add --overwrite or choose another --out")
        check_place(target)
    tracked = [(snapshot, name) for snapshot in found for name in TRACKED]
    stored = [Average(GAMMAS[name], read_snapshot(snapshot)) for snapshot, name in tracked]
    solved = [combination(stored, Average(exponent(width), stored[-1].steps)) for width in widths]
    spec = read_spec(found[-1])
    torch.manual_seed(seed_from(config.load(folder / "config.yaml").train.seed, "weights"))
    model = build(spec)  # earlier stages may have had another size or labels: see `_enter`
    sums: list[dict[str, Tensor]] = [{} for _ in widths]
    with doing("adding up snapshots", len(found)) as at:
        for i, (snapshot, name) in enumerate(tracked):
            state = read_weights(snapshot, name)
            state, _ = warm_start.adapt(state, read_spec(snapshot), model, str(snapshot))
            for (weights, _), total in zip(solved, sums, strict=True):
                for k, tensor in state.items():
                    term = float(weights[i]) * tensor.double()
                    total[k] = total[k] + term if k in total else term
            at(i // len(TRACKED) + 1)
    expected = model.denoiser.backbone.state_dict()
    errors = {}
    for width, (_, error), total in zip(widths, solved, sums, strict=True):
        target = targets[width]
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for k, v in total.items():
                # whole-number buffers come out whole but for rounding: the weights sum to one
                rounded = v if expected[k].is_floating_point() else v.round()
                total[k] = rounded.to(expected[k].dtype)
            with appearing(target, MODEL) as temporary:
                write_model(temporary, spec, {"model": total})
        errors[str(target)] = error
    return errors
