"""A recipe as long as its run became."""

import json
from pathlib import Path
from typing import Any

from underpaint import config
from underpaint.evaluation.as_seen import as_seen


def stage(**settings: Any) -> config.Stage:
    return config.Stage(batch=8, schedule="cooldown", cooldown=0.25, **settings)


def turn(name: str, event: str, images: int) -> dict[str, Any]:
    needed = {"seconds": 1.0, "flops": 1.0, "mask": "none", "rate": 0.0, "visible": 4, "patches": 4}
    return {"kind": "stage", "event": event, "stage": name, "images": images, **needed}


def test_stages_that_are_over_are_as_long_as_they_became(tmp_path: Path) -> None:
    run = config.Run(stages={"one": stage(images=800), "two": stage(images=400), "three": stage()})
    run.stages["three"].images = 80
    lines = [
        turn("one", "start", 0),
        {"kind": "stop", "stage": "one", "images": 400, "cooldown": 0, "ends": True},
        turn("one", "end", 400),
        turn("two", "start", 400),
        {"kind": "stop", "stage": "two", "images": 640, "cooldown": 160, "begins": 480},
        {"kind": "stop", "stage": "two", "images": 900, "cooldown": 128, "begins": 496},
        turn("two", "end", 1024),
        turn("three", "start", 1024),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    seen = as_seen(run, tmp_path).stages
    assert [seen[name].images for name in seen] == [400, 624, 80]  # the third goes on
    assert [seen[name].cooldown for name in seen] == [0.25, 128 / 624, 0.25]
    assert as_seen(run, tmp_path / "none").stages == run.stages
