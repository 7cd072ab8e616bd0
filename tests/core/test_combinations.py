"""Networks × predictions × processes: those that suit each other work, others are refused."""

from itertools import product

import pytest
import torch
from torch import nn

from tests import systems
from underpaint import backbones, config, model
from underpaint.core import masks, preconditioning, schedules
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError

SUITS = {  # which prediction goes with which process
    "eps": {"vp-linear", "vp-cosine", "flow", "edm", "ve"},
    "x0": {"vp-linear", "vp-cosine", "flow", "edm", "ve"},
    "v": {"vp-linear", "vp-cosine"},
    "flow": {"flow"},
    "score": {"ve", "edm"},
    "edm": {"edm", "ve"},
}


def spec(network: str, prediction: str, process: str) -> config.ModelSpec:
    return config.ModelSpec(
        size=(8, 8),
        label_names=("a", "b"),
        space=config.Space(patch=4),
        network=systems.network(network),
        noise=systems.process(process, prediction),
        sampling=config.Sampling(sampler="euler", steps=3),
    )


def test_the_lists_are_whole() -> None:
    assert SUITS.keys() == preconditioning.SCHEDULES.keys() == set(config_choices("prediction"))
    assert (
        set.union(*SUITS.values()) == schedules.TIME_LAWS.keys() == set(config_choices("process"))
    )


def config_choices(name: str) -> tuple[str, ...]:
    from typing import get_args, get_type_hints

    return get_args(get_type_hints(config.Noise)[name])


@pytest.mark.parametrize(
    ("network", "prediction", "process"), [*product(backbones.kinds(), SUITS, schedules.TIME_LAWS)]
)
def test_works_or_is_refused(network: str, prediction: str, process: str) -> None:
    """Gets gradients (masked and whole) and samples; or says in a line why it cannot.

    Every prediction in pixels; every space under the process's own: tests/test_matrix.py.
    """
    asked = spec(network, prediction, process)
    if process not in SUITS[prediction]:
        with pytest.raises(UserError) as error:
            model.build(asked)
        says = str(error.value)
        assert f"'{prediction}' does not go with process {process}, since it" in says
        assert "; use eps, x0" in says
        assert "\n" not in says
        return
    torch.manual_seed(0)
    built = model.build(asked)
    for p in built.denoiser.parameters():  # heads begin at zero, behind which no gradient flows
        nn.init.normal_(p, std=0.1)
    g = torch.Generator().manual_seed(0)
    patches, n = (torch.randn(4, *built_shape(built), generator=g) for _ in range(2))
    labels = torch.tensor([0, 1, -1, 0])
    seen = [masks.Mask((2, 2))]
    if built.denoiser.unit == 1:  # else these patches are a single unit
        seen.append(masks.draw(MaskSpec("patch", 0.5), (2, 2), 4, g))
    for mask in seen:
        built.denoiser.zero_grad()
        t = built.denoiser.process.draw_t(4, g)
        visible, noise = (masks.gather(x, mask.visible) for x in (patches, n))
        DenoisingLoss(built.denoiser)(visible, labels, mask, t, noise).mean.backward()
        grads = [p.grad for p in built.denoiser.parameters() if p.grad is not None]
        assert all(bool(grad.isfinite().all()) for grad in grads)
        assert sum(float(grad.abs().sum()) for grad in grads) > 0
    x0 = built.denoise(torch.zeros(1, 3, 8, 8), 0.5, ["a"])
    assert x0.isfinite().all()
    assert built.sample(1).shape == (1, 8, 8, 3)


def built_shape(built: model.Model) -> tuple[int, int]:
    return built.space.grid[0] * built.space.grid[1], built.space.patch_dim
