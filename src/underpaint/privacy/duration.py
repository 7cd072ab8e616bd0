"""How long an audit takes here: the network's calls are counted, and one of them is timed.

Searching for copies and statistics come on top: a quarter, as in benchmarks/results/audit.json.
"""

import time

import torch

from underpaint.core import samplers
from underpaint.core.masks import gather
from underpaint.model import evaluating
from underpaint.privacy import attacks, completion, controls
from underpaint.privacy.calibration import AttackSetup

FEW = 16  # images of the call that is timed
REST = 0.25  # of the network's time
MEMORIZED = 300  # steps of the positive control, as a rule


def estimate(setup: AttackSetup, completed: int, samples: int, planted: int) -> float:
    """Seconds; 0 `completed`, `samples` or `planted`: that part is left out."""
    levels, denoiser = len(setup.sigmas), setup.loaded.denoiser
    each = attacks.calls_of(setup.names, levels, setup.noises, None)
    if "masks" in setup.names:  # which sees a part of each image
        each += round(levels * (setup.ensemble.masks * (1 - setup.ensemble.rate) - setup.noises))
    steps = samplers.sigmas(denoiser.process, completion.STEPS, "karras")
    calls = each * sum(len(patches) for patches in setup.patches)
    shown = sum(min(completed, len(patches)) for patches in setup.patches)
    calls += shown * completion.DRAWS * completion.calls_of(steps, completion.REPEATS)
    calls += 2 * samples * setup.loaded.sampling.steps
    if planted:
        calls += 3 * MEMORIZED * controls.BATCH + each * (1 + controls.OTHERS) * planted
    return (1 + REST) * calls * _seconds_of_a_call(setup)


@torch.inference_mode()
def _seconds_of_a_call(setup: AttackSetup) -> float:
    """An image's, of the second and third of three."""
    denoiser, ids, taken = setup.loaded.denoiser, slice(0, FEW), []
    mask = attacks.rows(setup.masks[0], ids, setup.loaded.device)
    x = gather(setup.patches[0][ids].to(setup.loaded.device).float(), mask.visible)
    labels = setup.subsets[0].labels(setup.loaded)
    condition = None if labels is None else labels[ids].to(setup.loaded.device)
    with evaluating(denoiser):
        for _ in range(3):
            since = time.perf_counter()
            denoiser.eps(x, setup.sigmas[0], labels=condition, mask=mask).sum().item()
            taken.append(time.perf_counter() - since)
    return min(taken[1:]) / len(x)
