"""The privacy budget of a stage: how much noise it needs, and what its steps have spent.

A step takes each of the n images with probability q, adds their gradients, each of norm at most C,
and normal noise of deviation z·C to the sum. T such steps are (epsilon, delta)-private for adding
or removing one image, where epsilon follows from (delta, q, z, T) (DP-SGD, Abadi et al. 2016, arXiv
1607.00133). z is the noise multiplier. Two accountants of opacus bound epsilon from above:

    PRV   the privacy loss of T steps by Fourier transforms (Gopi et al. 2021, arXiv 2106.02848);
          within 1 % (at most 0.01) of the truth, and slow for very many steps
    RDP   Rényi divergences (Mironov et al. 2019, arXiv 1908.10530); 5 to 40 % above, at once

z is the smallest that PRV accepts, or RDP's where PRV's sums overflow. Both bounds hold and epsilon
only grows with the steps, so that on the way the smaller of RDP's and of the whole stage's counts.
"""

import math
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from underpaint import config
from underpaint.errors import UserError

# opacus' own end at 63, which cannot show an epsilon below 0.2
ORDERS = [1 + x / 4 for x in range(1, 40)] + list(range(11, 64)) + [64, 128, 256, 1024]
CLOSE = 0.005  # how far below the budget the spent epsilon may stay, as a share of it
ERROR = 0.01  # of PRV's epsilon
LARGEST = 1e4  # noise multiplier beyond which nothing is learned


@dataclass(frozen=True)
class Guarantee:
    """What a stage promises for its training images; all steps together cost `epsilon`."""

    epsilon: float  # at most that of the recipe
    delta: float
    clip: float  # largest norm of one image's gradient
    multiplicity: int  # draws in it
    noise_multiplier: float  # deviation of the noise on the sum of gradients, over the clip
    sampling_rate: float  # of each image, in each step
    steps: int
    accountant: str  # prv or rdp

    def spent(self, steps: int) -> float:
        """Epsilon of the first `steps` steps (an upper bound)."""
        if steps <= 0:
            return 0.0
        if steps >= self.steps:
            return self.epsilon
        so_far = rdp(self.noise_multiplier, self.sampling_rate, steps, self.delta)
        return min(self.epsilon, so_far)

    def record(self, steps: int) -> dict[str, Any]:
        """For `state.json`: this, and how many steps are spent."""
        return asdict(self) | {"spent_steps": steps}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The inverse of `record`."""
        return cls(**{k: v for k, v in record.items() if k != "spent_steps"})


def library() -> None:
    """Raise UserError if opacus is not installed."""
    try:
        import opacus.accountants  # noqa: F401
    except ImportError:
        raise UserError("dp: opacus is not installed; run: pip install 'underpaint[dp]'") from None


def guarantee(name: str, stage: config.Stage, dp: config.DP, images: int, length: int) -> Guarantee:
    """The least noise that keeps the stage `name` within its budget.

    `images`: how many it trains on; `length`: of the stage, in images seen. Raises UserError where
    no noise is enough.
    """
    place = f"stages.{name}"
    if stage.batch > images:
        raise UserError(
            f"{place}.batch {stage.batch}: with dp a step takes each of the {images} training "
            f"images at most once; give a batch of at most {images}"
        )
    if dp.delta * images >= 1:
        raise UserError(
            f"{place}.dp.delta {dp.delta:g}: with {images:,} images, one of them could be "
            f"published whole within it; give less than {1 / images:.1g}, far less if possible"
        )
    rate, steps = stage.batch / images, length // stage.batch
    try:
        epsilon, noise, accountant = _least_noise(dp.epsilon, dp.delta, rate, steps)
    except OverflowError:
        raise UserError(
            f"{place}.dp.epsilon {dp.epsilon:g}: no noise keeps {steps:,} steps within it; give a "
            "larger epsilon or delta, a shorter stage or a smaller batch"
        ) from None
    return Guarantee(epsilon, dp.delta, dp.clip, dp.multiplicity, noise, rate, steps, accountant)


@lru_cache(32)
def _least_noise(epsilon: float, delta: float, rate: float, steps: int) -> tuple[float, float, str]:
    """Epsilon spent, noise multiplier, and the accountant that says so.

    Raises OverflowError where no noise is enough.
    """
    from opacus.accountants.utils import get_noise_multiplier

    search = partial(
        get_noise_multiplier,
        target_epsilon=epsilon,
        target_delta=delta,
        sample_rate=rate,
        steps=steps,
        epsilon_tolerance=CLOSE * epsilon,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `rdp` and `prv`
        try:  # first, since it says at once where no noise is enough
            noise = float(search(accountant="rdp", alphas=ORDERS))
        except ValueError:
            noise = math.inf
        if noise > LARGEST:
            raise OverflowError(f"noise multiplier {noise:g}")
        error = ERROR * min(1.0, epsilon)
        try:
            by_prv = float(search(accountant="prv", eps_error=error))
            spent = prv(by_prv, rate, steps, delta, error=error)
            if 0 < spent <= epsilon:  # false for nan, too
                return spent, by_prv, "prv"
        except (ArithmeticError, RuntimeError, ValueError, MemoryError):
            pass  # its sums do not come out at these numbers
    return rdp(noise, rate, steps, delta), noise, "rdp"


def rdp(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` steps at `delta`, by Rényi divergences."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():  # of an order at the end of the list: still a bound
        warnings.simplefilter("ignore")
        divergences = steps * _divergences(noise, rate)
        return float(get_privacy_spent(orders=ORDERS, rdp=divergences, delta=delta)[0])


@lru_cache(64)
def _divergences(noise: float, rate: float) -> NDArray[np.float64]:
    """Those of one step, at all `ORDERS`; those of several add up."""
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS)
    return np.asarray(found)


def prv(noise: float, rate: float, steps: int, delta: float, *, error: float = ERROR) -> float:
    """Epsilon of `steps` steps at `delta`, by privacy loss random variables.

    An upper bound, at most about twice `error` above the truth. Raises what opacus and numpy raise
    where the sums do not come out.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) where all images are taken, which is meant
        return float(accountant.get_epsilon(delta, eps_error=error))
