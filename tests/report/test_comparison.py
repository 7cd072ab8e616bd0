"""The page of a comparison: what the results say, in a page that stands alone."""

import json
from pathlib import Path
from typing import Any

from tests.report.test_report import Page
from underpaint.compare.verdict import Point, verdict
from underpaint.report import comparison, summary

POINTS = (0.25, 0.5, 1.0)


def results(arms: int = 1, *, start: float = 0.0) -> dict[str, Any]:
    """As `runner.conduct` gives them, of a baseline and `arms` faster ones."""
    names = ["plain", *(f"fast & <{i}>" for i in range(arms))]
    curves = {
        name: {
            seed: [Point(c * 1e12, 0.3 - 0.1 * c * (1 + 0.2 * i) + seed / 1e3) for c in POINTS]
            for seed in (1, 2, 3)
        }
        for i, name in enumerate(names)
    }
    runs = [
        {
            "arm": name,
            "seed": seed,
            "point": point.compute / 1e12,
            "flops": point.compute,
            "score": point.score,
            "run": f"runs/{name}/{seed}",
        }
        for name, own in curves.items()
        for seed, points in own.items()
        for point in points
    ]
    verdicts = {name: verdict(name, curves[name], curves["plain"]) for name in names[1:]}
    return {
        "score": "held-out loss",
        "baseline": "plain",
        "runs": runs,
        "tuning": {"plain": [{"batch": 8, "score": 0.4}, {"batch": 16, "score": 0.3}]},
        "chosen": {"plain": {"batch": 16}},
        "start_flops": dict.fromkeys(names[1:], start),
        "study": {"arms": dict.fromkeys(names)},
        "verdicts": {name: vars(v) for name, v in verdicts.items()},
    }


def test_the_page_says_the_verdict_and_shows_every_run(tmp_path: Path) -> None:
    told = results()
    page = Page(comparison.write(told, tmp_path / "out"))
    text = page.text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert told["verdicts"]["fast & <0>"]["sentence"] in text.replace("&#39;", "'")
    assert page.source.count("<code>runs/") == 18
    assert page.source.count("<svg") == 2  # a wide drawing, and one for a phone
    assert text.count("chosen") == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())["baseline"] == "plain"


def test_a_study_shows_the_height_to_reach_and_times_measured_alone(tmp_path: Path) -> None:
    told = results()
    assert "time alone" not in Page(comparison.write(told, tmp_path / "without")).text
    told["by_seconds"] = told["verdicts"]
    for run in told["runs"]:
        run["seconds_alone"] = 4000.0
    page = Page(comparison.write(told, tmp_path / "with"))
    assert "time alone" in page.text
    assert page.source.count(summary.clock(4000.0)) == 18
    assert page.source.count("stroke-dasharray") == 2  # the dashed line, in both drawings


def test_many_arms_are_drawn_in_several_charts_with_the_baseline_in_each(tmp_path: Path) -> None:
    page = Page(comparison.write(results(5), tmp_path))
    assert page.source.count('aria-label="held-out loss against compute of plain, ') == 4


def test_pre_training_moves_the_curve_to_the_right() -> None:
    for start, expected in ((0.0, [0.25, 0.5, 1.0]), (1e12, [1.25, 1.5, 2.0])):
        line = comparison._line(results(start=start), "fast & <0>", 1)
        assert list(line.x) == expected
        assert line.spread is not None
        assert all(
            a < m < b for a, m, b in zip(line.spread[0], line.y, line.spread[1], strict=True)
        )
