"""The study of samplers."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from studies.lib import index
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


def test_the_answer_follows_from_the_units() -> None:
    found = index.results("samplers")
    assert samplers_study.answer(found["units"], found["real"]["frechet"]) == found["answer"]
    default = {"calls": 30, "frechet": 40.0, "low": 38.0, "high": 42.0}
    other = default | {"calls": 19, "frechet": 39.0, "difference_low": -2.0, "difference_high": 0.5}
    units = {"euler-30": default, "heun-10": other}
    said = samplers_study.answer(units, 10.0)
    assert "best by heun-10 39.0 (38.0 to 42.0)" in said
    assert "not nearer beyond chance: by -0.5 to 2.0" in said
    other["difference_high"] = -0.1
    assert "that is nearer beyond chance" in samplers_study.answer(units, 10.0)
    packaged = default | {"calls": 19, "frechet": 30.0}
    said = samplers_study.answer(units | {"heun-10-packaged": packaged}, 10.0)
    assert "best by heun-10-packaged 30.0 (38.0 to 42.0); no way is nearer. Real" in said


def test_ways_have_at_most_the_evaluations_of_their_column() -> None:
    assert len(samplers_study.WAYS) == 42
    assert samplers_study.PACKAGED in samplers_study.WAYS
    assert samplers_study.FIRST in samplers_study.WAYS
    for calls in samplers_study.EVALUATIONS:
        for sampler in samplers_study.SAMPLERS:
            way = samplers_study.within(sampler, calls)
            assert calls - 1 <= way.calls <= calls
            assert samplers_study.WAYS[way.name] == way


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
        assert len(calls) == way.calls / (1 if way.guidance == 1 else 2)
