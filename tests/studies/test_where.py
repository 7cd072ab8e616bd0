"""Where masking pays: what the map says, at what cost."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.where import run as where
from underpaint.training import cost


def where_results(gain: float) -> dict[str, Any]:
    """Errors of compute^-0.2, times the seed's luck; a cell needs exp(gain) of the compute."""
    rng = np.random.default_rng(0)
    luck = {seed: math.exp(rng.normal(0, 0.02)) for seed in where.SEEDS}
    results = {}
    for unit in where.UNITS:
        name, seed = unit.split("_")
        whole = "-whole-" in name
        compute = float(name.rsplit("-", 1)[1]) if whole else math.exp(-gain)
        own = 1.0 if whole else math.exp(rng.normal(0, 0.004))
        results[unit] = {"score": compute**-0.2 * luck[int(seed)] * own}
    return results


@pytest.mark.parametrize(("gain", "verdict"), [(-0.4, "pays"), (0.4, "does not pay")])
def test_where_masking_pays(gain: float, verdict: str) -> None:
    told = where.judged(where_results(gain))
    assert len(told) == len(where.CELLS) >= 12
    for cell in told:
        assert cell["ratio"] == pytest.approx(math.exp(gain), rel=0.15)
        assert cell["low"] < cell["ratio"] < cell["high"]
        assert cell["verdict"] == verdict
        assert cell["relation"] == "="
    at_par = where.judged(where_results(0.0))
    assert "undecided" in {cell["verdict"] for cell in at_par}


def test_cells_of_where_cost_as_much_as_their_baseline_and_see_as_many_images() -> None:
    whole = {}
    for patches, side in where.SIDES.items():
        for name in [
            f"{patches}-whole-1",
            *(c.name for c in where.CELLS if c.patches == patches),
        ]:
            run = where.recipe(f"{name}_1", 1.0, "avatars:lorelei")
            spent = cost.describe(run, (side, side), 3, 8)["flops"]
            assert spent == pytest.approx(where.BUDGET * patches, rel=1e-2)
            if name.endswith("whole-1"):
                whole[patches] = run.stages["whole"].images
    assert max(whole.values()) < 1.35 * min(whole.values())


def test_the_page_of_where_masking_pays(tmp_path: Path) -> None:
    results = where_results(-0.4)
    cells = where.judged(results)
    units = {name: {**unit, "seconds": 90.0} for name, unit in list(results.items())[:4]}
    assert {cell["slowdown"] for cell in cells} == {None}
    seconds = {"masked": 30.0, "whole": 20.0}  # of equal FLOPs: half as fast again, on average
    first = where.CELLS[0].name
    results[f"{first}_1"]["stage_seconds"] = seconds
    timed = where.judged({k: v for k, v in results.items() if k[-1] == "1"})[0]
    assert timed["slowdown"] == pytest.approx(50 / 40)
    cells[0] |= {"slowdown": 1.25, "ratio": 0.8}
    found = {"budget": 2e13, "share": 0.4, "cells": cells, "units": units}
    text = where.page(found).write(tmp_path / "where.html").read_text()
    assert "The training of 4 runs took 6 core-minutes" in text
    assert "<td>1.00</td></tr>" in re.sub(r"\s*\n\s*", "", text)
    assert f"Of {len(cells)} cells masking pays in {len(cells)}, does not pay in 0" in text
    assert text.count("</td></tr>") == len(cells)
    assert "2e13 training FLOPs for each patch of an image, 40 % of them on masked" in text
