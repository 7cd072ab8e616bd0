"""Muon: momentum whose matrices are orthogonalised before they move the weights.

    M ← μ M + (1 − μ) G,   X = (1 − μ) G + μ M                     (Nesterov, μ = 0.95)
    O = U Vᵀ of X = U Σ Vᵀ, nearly                                 (`orthogonalize`)
    W ← (1 − rate · decay) W − rate · 0.2 √max(out, in) · O

(Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale, with which an entry of W moves as
far as by AdamW at the same rate, and the decay: Liu et al. 2025, arXiv 2502.16982.)

It is for the matrices inside a network's blocks (`backbones.hidden_matrices`); AdamW moves the
rest.

Σ is brought to 1 by odd polynomials of X, which need products of matrices alone (Newton–Schulz):

    A = X Xᵀ,   X ← a X + (b A + c A²) X

Muon's five steps have one (a, b, c) for all. Here each step has coefficients of its own, the best
for what the step before left (as Polar Express, Amsel et al. 2025, arXiv 2505.16932), and X is
first divided by (Σ σ⁸)^(1/8), not by its Frobenius norm: A² is there anyway, and this bound of the
largest σ is far closer. So three steps do for what took five.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from underpaint.training.uncompiled import Uncompiled

MOMENTUM = 0.95
SCALE = 0.2  # root mean square of AdamW's usual updates

# Of all odd polynomials of degree 5 those nearest to 1 on [LEAST, 1], then on what the one before
# makes of it: they leave every singular value there within 0.156 of 1. A smaller LEAST would reach
# smaller ones, by a first polynomial that comes so near to 0 elsewhere that bf16 cannot follow.
LEAST = 0.015
COEFFICIENTS = (
    (7.897655, -22.848975, 16.832932),
    (3.406791, -2.554052, 0.517480),
    (2.383019, -1.741878, 0.426726),
)
CUSHION = 1.01  # beyond 1 the first polynomial rises steeply, and bf16 has eight bits
TINY = 1e-30  # of a gradient that is zero
# Bytes of the matrices that are taken together: on a CPU what its cache holds, else what memory has
# for a few copies.
CACHED, HELD = 2**19, 2**28


class Muon(Uncompiled):
    """Muon for `matrices`, and the given AdamW for the rest, as one optimiser.

    `matrices`: weights [out, in, …] to the number of equal matrices [out / number, in · …] that
    stand in them one above the other. The iteration runs in `dtype`. All groups and all states are
    here: a learning rate is set, and a state kept, as in any optimiser.
    """

    found_inf: Tensor | None = None  # 1.0 on the device: the step changes nothing (`step_where`)

    def __init__(
        self,
        matrices: Mapping[Tensor, int],
        adamw: torch.optim.AdamW,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        group = {"params": list(matrices), "weight_decay": weight_decay}
        super().__init__([group], {"lr": 0.0})
        self.matrices, self.adamw, self.dtype = dict(matrices), adamw, dtype
        # AdamW goes on with the same groups and the same states
        self.param_groups += adamw.param_groups
        self.state = adamw.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient."""
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        group = self.param_groups[0]
        weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        for alike in self._alike(weights):
            shape = _matrix(alike[0], self.matrices[alike[0]])
            whole = [self.whole(x, p) for x, p in zip(self._nesterov(alike), alike, strict=True)]
            x = torch.cat([x.view(-1, *shape) for x in whole])  # [n, out, in]
            moves = orthogonalize(x, self.dtype).to(x.dtype).reshape(-1, *alike[0].shape)
            size = SCALE * max(shape) ** 0.5
            kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
            if self.found_inf is not None:
                kept = torch.where(self.found_inf > 0, 1.0, kept)
                moves = moves * (1 - self.found_inf)
            mine = [self.local(p) for p in alike]
            torch._foreach_mul_(mine, kept)
            parts = [self.part(move, p) for move, p in zip(moves.unbind(), alike, strict=True)]
            torch._foreach_add_(mine, parts, alpha=-group["lr"] * size)

    # --- what another process may have a part of (`sharding`); here all is in this one -----------

    def local(self, x: Tensor) -> Tensor:
        """What this process has of a weight, a gradient or a momentum."""
        return x

    def whole(self, x: Tensor, weight: Tensor) -> Tensor:
        """All of what `local` gives a part of."""
        return x

    def part(self, x: Tensor, weight: Tensor) -> Tensor:
        """What `local` would give of the whole `x`."""
        return x

    def _nesterov(self, weights: list[Tensor]) -> list[Tensor]:
        """X of each of these weights; their momentum M is moved."""
        for p in weights:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.local(self.state[p]["momentum"]) for p in weights]
        gradients = [self.local(p.grad) for p in weights if p.grad is not None]
        if self.found_inf is not None:  # a momentum moved towards itself stays
            stays = self.found_inf > 0
            pairs = zip(momenta, gradients, strict=True)
            gradients = [torch.where(stays, m, g) for m, g in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, momenta, MOMENTUM))

    def _alike(self, weights: list[Tensor]) -> list[list[Tensor]]:
        """The weights that are orthogonalised together: of one shape, and not too many."""
        groups: dict[Any, list[Tensor]] = {}
        for p in weights:
            groups.setdefault((p.shape, self.matrices[p]), []).append(p)
        found = []
        for alike in groups.values():
            most = CACHED if alike[0].device.type == "cpu" else HELD
            count = max(1, most // (alike[0].numel() * self.dtype.itemsize))
            found += [alike[i : i + count] for i in range(0, len(alike), count)]
        return found


def orthogonalize(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearly U Vᵀ of each matrix X = U Σ Vᵀ of `x` [n, out, in], in `dtype`.

    Singular values above LEAST of (Σ σ⁸)^(1/8) come within 0.156 of 1 (in bf16 most of them),
    smaller ones grow 64-fold. A matrix of zeros stays one.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # first to a norm of 1, for the eighth powers' sake
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = (x / norm.clamp(min=TINY)).to(dtype)
    for k, (a, b, c) in enumerate(COEFFICIENTS):
        gram = x @ x.mT
        if k:
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        else:
            square = gram @ gram
            fourth = CUSHION**4 * torch.linalg.vector_norm(
                square, dim=(1, 2), keepdim=True, dtype=torch.float32
            ).clamp(min=TINY)
            x = x * fourth.pow(-0.25).to(dtype)
            polynomial = (b * fourth.rsqrt()).to(dtype) * gram + (c / fourth).to(dtype) * square
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def flops(matrices: Mapping[Tensor, int]) -> int:
    """FLOPs of orthogonalising these weights once, by their shapes; those of other work are few.

    A matrix whose sides are s ≤ l takes 4 s² l + 2 s³ a step: 2 a multiply-add.
    """
    total = 0
    for weight, number in matrices.items():
        s, l = sorted(_matrix(weight, number))  # noqa: E741
        total += number * len(COEFFICIENTS) * (4 * s * s * l + 2 * s**3)
    return total


def _matrix(weight: Tensor, number: int) -> tuple[int, int]:
    """Rows and columns of each of the `number` matrices in a weight."""
    return weight.shape[0] // number, weight.numel() // weight.shape[0]
