"""The page of the study of MaskDiT."""

import json
from pathlib import Path
from typing import Any

from studies.maskdit import page as maskdit

ROOT = Path(__file__).parents[2] / "studies"


def test_the_page_of_maskdit_tells_time_first_and_whether_it_is_the_masks(tmp_path: Path) -> None:
    results = json.loads((ROOT / "maskdit" / "results.json").read_text())
    with_loss, without = maskdit.WITH, maskdit.WITHOUT
    base = {run["seed"]: run["score"] for run in results["runs"] if run["arm"] == without}

    def shifted(arm: str, by: float, noise: float = 1e-4) -> dict[str, Any]:
        """`arm` has `by` more error than half hidden without the loss on hidden patches."""
        more = {without: (0.0, 0.0), arm: (by, noise)}
        runs = [
            run | {"score": base[run["seed"]] + level + (run["seed"] - 2) * spread}
            for run in results["runs"]
            for level, spread in [more.get(run["arm"], (0.0, 0.0))]
        ]
        return results | {"runs": runs}

    for by, word in ((0.01, "the masks lower the"), (-0.01, "the masks raise the")):
        assert f"So {word} error of this network" in maskdit.parts(shifted(maskdit.WHOLE, by))
    assert "it is not shown that" in maskdit.parts(shifted(maskdit.WHOLE, 0.01, 0.1))
    for by, word in ((0.01, "raises it"), (-0.01, "lowers it")):
        assert word in maskdit.parts(shifted(with_loss, by))
        assert "no effect of the loss" in maskdit.parts(shifted(with_loss, by, 0.1))

    time = results["by_seconds"][with_loss]
    assert maskdit.answer(results)[0].startswith("The claim of 0.31 of the time is not reached. ")
    for relation, ratio, word in (("=", 0.31, "is reached"), (">", 0.2, "is not reached")):
        time |= {"relation": relation, "ratio": ratio}
        assert word in maskdit.answer(results)[0]
    text = maskdit.page(results).write(tmp_path / "page.html").read_text()
    assert "is not reached" in text
    assert "At 0.5 of the compute" in text
