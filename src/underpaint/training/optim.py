"""The optimiser, its learning rate as a function of images seen, and the average of the weights.

The learning rate and the average depend on counts alone, so that a resumed run repeats them.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from underpaint import backbones, config
from underpaint.errors import UserError
from underpaint.training import muon
from underpaint.training.uncompiled import AdamW


def build_optimizer(
    model: nn.Module,
    train: config.Train,
    device: torch.device,
    undecayed: Iterable[Tensor] = (),
    bf16: bool = False,
    kind: type[muon.Muon] = muon.Muon,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) in its fused form; or Muon, and AdamW for
    what Muon is not for.

    Weight decay acts on matrices alone, or on all tensors (`train.decay`); never on `undecayed`,
    tensors beside the model's. `bf16`: the type that Muon orthogonalises in, else float32.
    `kind`: the Muon of sharded weights (`sharding`), or that of whole ones.
    Raises UserError if Muon is asked for and the model has no matrices for it.
    """
    matrices = muon_matrices(model, train)
    tensors = [p for p in model.parameters() if p not in matrices]
    decayed = [p for p in tensors if train.decay == "all" or p.ndim >= 2]
    rest = [p for p in tensors if not (train.decay == "all" or p.ndim >= 2)]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": [*rest, *undecayed], "weight_decay": 0.0},
    ]
    adamw = AdamW(
        [g for g in groups if g["params"]],
        lr=0.0,  # set before each step
        betas=train.betas,
        fused=device.type in ("cpu", "cuda"),
    )
    if train.optimizer == "adamw":
        return adamw
    dtype = torch.bfloat16 if bf16 else torch.float32
    return kind(matrices, adamw, train.weight_decay, dtype)


def muon_matrices(model: nn.Module, train: config.Train) -> dict[Tensor, int]:
    """The weights that Muon moves, each with the matrices that stand in it; none for AdamW.

    Raises UserError if Muon is asked for and the model has none for it.
    """
    if train.optimizer != "muon":
        return {}
    found = backbones.hidden_matrices(model)
    if not found:
        raise UserError(
            "train.optimizer muon moves the matrices inside a network's blocks, and this one has "
            "none; give adamw"
        )
    return {model.get_parameter(name): number for name, number in found.items()}


def optimizer_flops(model: nn.Module, train: config.Train) -> int:
    """FLOPs of one optimiser step: Muon's products of matrices; what AdamW does is not counted."""
    return muon.flops(muon_matrices(model, train))


def cooling_down(stage: config.Stage, images: int, total: int) -> bool:
    """Whether the step that begins after `images` of the stage's `total` is of its cool-down."""
    return stage.schedule == "cooldown" and images > total * (1.0 - stage.cooldown)


def learning_rate(stage: config.Stage, images: int, total: int) -> float:
    """Learning rate of the step that begins after `images` of the stage's `total` images.

    Past the end, as in a step that is only timed, a falling schedule stays at 0.
    """
    peak = stage.learning_rate
    if images < stage.warmup:
        # + batch: the first step is not wasted on a rate of zero
        return peak * min(1.0, (images + stage.batch) / stage.warmup)
    if stage.schedule == "cosine":
        progress = (images - stage.warmup) / max(1, total - stage.warmup)
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if stage.schedule == "cooldown":
        start = total * (1.0 - stage.cooldown)
        return peak * min(1.0, max(0, total - images) / max(1.0, total - start))
    return peak


NORMS = 200  # steps whose gradient norms are remembered
FIRST = 20  # fewer norms say nothing of a percentile


def clip_limit(stage: config.Stage, norms: Tensor) -> float | Tensor:
    """The largest gradient norm of the step that follows steps of these `norms`; inf: no limit.

    `norms` [n] float64, infinite where there are none yet. The smaller of `stage.clip` and the
    asked percentile of the norms before clipping, between two of them by linear interpolation
    (after AutoClip, Seetharaman et al. 2020, arXiv 2007.14469, there over all steps so far). Norms
    that rise for good raise the limit, one jump hardly does.
    """
    most = stage.clip or math.inf
    if not stage.clip_percentile:
        return most
    rising, count = norms.sort().values, norms.isfinite().sum()
    last = (count - 1).clamp(min=0)
    place = last.double() * (stage.clip_percentile / 100)
    before = place.floor().long()
    # by `take`: an index that is one number would be read
    low, high = rising.take(before), rising.take(torch.minimum(before + 1, last))
    # from the nearer end, as numpy's percentile
    share, length = place - before, high - low
    limit = torch.where(share < 0.5, low + length * share, high - length * (1 - share))
    return torch.where(count < FIRST, most, limit.clamp(max=most))


def clip_gradients(parameters: Iterable[Tensor], limit: float | Tensor) -> Tensor:
    """Scale the gradients to a norm of at most `limit`; returns the norm before, on the device.

    As `clip_grad_norm_`, which would wait for a limit on a GPU.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    scale_gradients(gradients, norm, limit)
    return norm


def scale_gradients(gradients: list[Tensor], norm: Tensor, limit: float | Tensor) -> None:
    """Scale what has, or is a part of what has, this norm to a norm of at most `limit`."""
    if isinstance(limit, Tensor):
        limit = limit.to(norm)
    torch._foreach_mul_(gradients, ((norm + 1e-6).reciprocal() * limit).clamp(max=1.0))


def step_where(
    optimizer: torch.optim.Optimizer, finite: Tensor | None, deferred: bool = False
) -> None:
    """A step of the optimiser where `finite`, a bool on its device, is true or None.

    `deferred`: the device decides, through what a gradient scaler sets on an optimiser as well;
    else it is read, which costs nothing on a CPU.
    """
    if deferred and finite is not None:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    elif finite is not None and not finite:
        return
    optimizer.step()
    optimizer.found_inf = None  # type: ignore[attr-defined]


class EMA:
    """Exponential moving average of a module's weights, updated once a step.

    avg ← avg + (1 − decay_k)(weights − avg), with decay_k = min(decay, (1 + k)/(10 + k)) after k
    steps, so that a short run is not averaged with its random start. `module` is the averaged
    copy, ready to be evaluated.
    """

    def __init__(self, module: nn.Module, decay: float, steps: int = 0) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.steps = steps
        self.bind(self.module.parameters(), module.parameters())

    def bind(self, average: Iterable[Tensor], weights: Iterable[Tensor]) -> None:
        """Update `average` by `weights`: where these are other tensors now than at the start."""
        self._average, self._weights = list(average), list(weights)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._average, self._weights, 1.0 - decay)
        self.steps += 1


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by the parameters' names (it survives a change of other tensors)."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {names[p]: dict(state) for p, state in optimizer.state.items() if p in names}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, dict[str, Tensor]]
) -> None:
    """Take over the state of all tensors whose shape has not changed."""
    for name, parameter in model.named_parameters():
        moments = state.get(name)
        if moments and all(v.shape in (parameter.shape, ()) for v in moments.values()):
            optimizer.state[parameter] = {
                # the step count stays where AdamW keeps it: beside the parameter when fused
                k: v.detach().clone().to(parameter.device)
                for k, v in moments.items()
            }
