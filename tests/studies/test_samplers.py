"""The study of samplers."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from studies.samplers import run as samplers_study
from underpaint.core import samplers
from underpaint.core.schedules import Flow


def test_samplers_are_compared_by_grain_and_by_their_distance_to_the_end() -> None:
    plain = np.full((2, 4, 4, 3), 128, np.uint8)
    edge = plain.copy()
    edge[:, :, 2:] = 200  # one step of three in each row
    assert samplers_study.flat(plain) == 1.0
    assert samplers_study.flat(edge) == pytest.approx(2 / 3)
    assert samplers_study.flat(plain + np.uint8([0, 2, 0, 2])[None, None, :, None]) == 1.0
    assert samplers_study.flat(plain + np.uint8([0, 3, 0, 3])[None, None, :, None]) == 0.0
    assert samplers_study.error(plain, plain) == 0.0
    assert samplers_study.error(plain, edge) == pytest.approx(72 / math.sqrt(2))

    def found(distances: dict[str, float]) -> dict[str, Any]:
        return {
            "ways": {name: {"frechet": distances.get(name, 50.0)} for name in samplers_study.WAYS}
        }

    results = {"a": found({"heun-10": 40.0}), "b": found({"heun-10": 62.5})}
    told = samplers_study.ratios(results)
    assert told["heun-10"][0] == pytest.approx(1.0)  # the geometric mean of 0.8 and 1.25
    assert told["heun-10"][1] < 0.8 < 1.25 < told["heun-10"][2]
    assert told["euler-20"] == pytest.approx([1.0, 1.0, 1.0])
    assert samplers_study.FIRST not in told


def test_ways_of_sampling_call_the_network_as_often_as_is_stated() -> None:
    for way in samplers_study.WAYS.values():
        calls: list[float] = []

        def denoise(x: Any, sigma: float, calls: list[float] = calls) -> Any:
            calls.append(sigma)
            return torch.zeros_like(x)

        levels = samplers.sigmas(Flow(), way.steps, way.grid)
        samplers.sample(
            denoise, torch.randn(1, 4, 3), levels, samplers.Sampling(sampler=way.sampler)
        )
        assert len(calls) == way.calls
