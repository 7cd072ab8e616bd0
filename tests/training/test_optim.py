"""Learning rates, weight decay and the average, against their formulas."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from underpaint import config
from underpaint.training.optim import (
    EMA,
    NORMS,
    build_optimizer,
    clip_gradients,
    clip_limit,
    learning_rate,
    optimizer_state,
    restore_optimizer,
)


def rates(total: int = 1000, **settings: object) -> list[float]:
    stage = config.Stage(batch=10, learning_rate=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(stage, images, total) for images in range(0, total, 10)]


def test_constant_after_a_linear_warmup() -> None:
    found = rates(warmup=100)
    assert found[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert set(found[10:]) == {2.0}


def test_cosine() -> None:
    found = rates(schedule="cosine", warmup=200)
    assert found[20] == 2.0
    assert found[60] == pytest.approx(2.0 * 0.5)  # half of what follows the warm-up
    assert found[-1] == pytest.approx(1 + math.cos(math.pi * 790 / 800))


def test_cooldown_is_linear_and_ends_one_step_before_zero() -> None:
    found = rates(schedule="cooldown", cooldown=0.2)
    assert set(found[:81]) == {2.0}
    assert found[90] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(2.0 * 10 / 200)


@pytest.mark.parametrize("schedule", ["cooldown", "cosine"])
def test_past_the_end_nothing_is_learned(schedule: Any) -> None:
    """A stage given in minutes has no length yet while its steps are timed."""
    stage = config.Stage(schedule=schedule, learning_rate=2.0, warmup=50, batch=10)
    assert learning_rate(stage, 10, 0) > 0
    assert [learning_rate(stage, images, 0) for images in (60, 5000)] == [0, 0]
    assert learning_rate(stage, 230, 200) == 0


def norms_of(series: list[float]) -> torch.Tensor:
    """As a step remembers them: the last ones, behind those that are not there yet."""
    early = [math.inf] * (NORMS - len(series))
    return torch.tensor([*early, *series[-NORMS:]], dtype=torch.float64)


def test_percentile_clip_on_a_hand_made_series() -> None:
    stage = config.Stage(clip=0.0, clip_percentile=75.0)
    series = [float(v) for v in range(1, 22)]  # 1 … 21: quarters at 1, 6, 11, 16, 21
    assert clip_limit(stage, norms_of([])) == math.inf
    assert clip_limit(stage, norms_of(series[:19])) == math.inf  # too few yet: no limit
    assert clip_limit(stage, norms_of(series)) == 16.0
    assert clip_limit(stage, norms_of(series[::-1])) == 16.0
    assert clip_limit(stage, norms_of([1000.0] * 99 + [5.0] * 200)) == 5.0  # the last 200
    spike = clip_limit(stage, norms_of([*series, 1e6]))
    assert 16.0 < spike < 17.0  # one jump hardly moves it


def test_percentile_clip_is_beside_the_fixed_one() -> None:
    series = norms_of([float(v) for v in range(1, 22)])
    assert clip_limit(config.Stage(clip=2.0, clip_percentile=50.0), series) == 2.0
    assert clip_limit(config.Stage(clip=12.0, clip_percentile=50.0), series) == 11.0
    assert clip_limit(config.Stage(clip=12.0), series) == 12.0
    assert clip_limit(config.Stage(clip=0.0), series) == math.inf


@pytest.mark.parametrize("percentile", [0.5, 37.0, 95.0, 100.0])
def test_percentile_of_norms_is_numpys(percentile: float) -> None:
    rng = np.random.default_rng(0)
    stage = config.Stage(clip=0.0, clip_percentile=percentile)
    for count in (20, 21, 77, 200):
        series = rng.lognormal(0, 2, count).tolist()
        assert float(clip_limit(stage, norms_of(series))) == np.percentile(series, percentile)


@pytest.mark.parametrize("limit", [0.1, 3.0, math.inf])
def test_clipping_is_torchs_for_a_limit_that_is_a_number_or_a_tensor(limit: float) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(6, 5)
    for layer in layers:
        layer(x).square().sum().backward()
    expected = nn.utils.clip_grad_norm_(layers[0].parameters(), limit)
    for layer, given in zip(layers[1:], (limit, torch.tensor(limit).double()), strict=True):
        assert torch.equal(clip_gradients(layer.parameters(), given), expected)
        for p, q in zip(layers[0].parameters(), layer.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_decay_on_matrices_or_all() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for decay, expected in (("matrices", 1), ("all", 4)):
        train = config.Train(weight_decay=0.5, decay=decay)  # type: ignore[arg-type]
        groups = build_optimizer(model, train, torch.device("cpu")).param_groups
        decayed = sum(len(g["params"]) for g in groups if g["weight_decay"] == 0.5)
        assert decayed == expected
        assert sum(len(g["params"]) for g in groups) == 4


def test_ema_is_the_recursion() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema, expected = EMA(model, 0.9), 0.0
    for k in range(200):
        with torch.no_grad():
            model.weight.fill_(float(k))
        ema.update()
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
    assert float(ema.module.weight) == pytest.approx(expected, rel=1e-5)
    assert ema.steps == 200


def test_optimizer_state_survives_by_name_and_shape() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = build_optimizer(model, config.Train(), torch.device("cpu"))
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    state = optimizer_state(optimizer, model)
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))  # the last layer has grown
    new = build_optimizer(other, config.Train(), torch.device("cpu"))
    restore_optimizer(new, other, state)
    kept = optimizer_state(new, other)
    assert kept.keys() == {"0.weight", "0.bias"}
    assert torch.equal(kept["0.weight"]["exp_avg"], state["0.weight"]["exp_avg"])
