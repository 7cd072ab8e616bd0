"""From a run's folder to `report.html`: a single file that needs no network and no scripts."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from underpaint import config
from underpaint.errors import UserError
from underpaint.evaluation import early_stopping
from underpaint.evaluation.sample_metrics import recorded
from underpaint.io import is_marked, replace_text, writing
from underpaint.report import charts, gallery, guarantee, metrics, summary

__all__ = ["build", "text_of", "write_page"]

GRIDS = 8  # sample grids shown
LARGE = 400_000  # bytes of a PNG above which a grid is embedded as WebP


def build(
    run_dir: Path | str, *, title: str | None = None, also: Sequence[tuple[str, Path]] = ()
) -> Path:
    """Write `report.html` into a run's folder and return its path.

    `title`: the headline, else the folder's name. `also`: further runs by name, which are shown
    side by side; a single one is compared with the run itself.
    Raises UserError if the folder holds no run, or its files are damaged or cannot be written.
    """
    run_dir = Path(run_dir)
    run, records, environment = _read(run_dir)
    if any(stage.dp for stage in run.stages.values()):
        environment.pop("data", None)  # a hash of the private files says whether they are these
    name = title or run_dir.resolve().name
    stages = summary.stages(records, run)
    pictures = gallery.draw(run_dir, run, stages[-1].name if stages else None)
    compared = list(also) if len(also) != 1 else [(name, run_dir), *also]
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters |= {
        "clock": summary.clock,
        "flops": summary.flops,
        "percent": summary.percent,
        "picture": _picture,
        "capital": lambda sentence: sentence[:1].upper() + sentence[1:],
    }
    page = templates.from_string(text_of("page.html.jinja")).render(
        css=Markup(text_of("page.css")),
        title=name,
        sentences=_sentences(run, stages, pictures, environment),
        health=_health(records),
        stopping=early_stopping.judge(records),
        numbers=_numbers(records, stages),
        stages=stages,
        about_stage=summary.about_stage,
        can_time=any(stage.saved_seconds is not None for stage in stages),
        pictures=pictures,
        pixelated=bool(pictures.size) and max(pictures.size or ()) <= 128,
        grids=_grids(run_dir, records),
        compared=[_compared(label, Path(path), run_dir) for label, path in compared],
        compared_chart=charts.comparison(
            [(label, metrics.read(Path(path) / "metrics.jsonl")) for label, path in compared]
        ),
        charts=charts.of_run(records, stages),
        has_checks=bool(metrics.of_kind(records, "check")),
        stops=metrics.of_kind(records, "stop"),
        private=guarantee.private_stages(records, run),
        rollbacks=metrics.of_kind(records, "rollback"),
        skipped=_skipped(records),
        recipe=(run_dir / "config.yaml").read_text(encoding="utf-8"),
        environment={k: _shown(v) for k, v in environment.items() if v is not None},
        commands=_commands(run_dir, environment),
    )
    return write_page(run_dir / "report.html", page)


def _read(run_dir: Path) -> tuple[config.Run, list[metrics.Record], dict[str, Any]]:
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: holds no run (no config.yaml); give the folder of a run")
    try:
        environment = json.loads((run_dir / "env.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        environment = {}
    except ValueError:
        raise UserError(f"{run_dir / 'env.json'}: is damaged; remove it to go without") from None
    page = run_dir / "report.html"
    if page.exists() and not (is_marked(run_dir, "run") or (run_dir / "metrics.jsonl").is_file()):
        raise UserError(f"{page}: exists, and {run_dir} is no run of underpaint's; move it away")
    records = metrics.read(run_dir / "metrics.jsonl") + recorded(run_dir)
    return config.load(run_dir / "config.yaml"), records, environment


def write_page(path: Path, page: str) -> Path:
    """Replace the page at once, so that a reader never sees half of it."""
    with writing(path):
        replace_text(path, page)
    return path


def text_of(name: str) -> str:
    return (resources.files("underpaint.report") / name).read_text(encoding="utf-8")


# --- what the page says ------------------------------------------------------------------------


def _sentences(
    run: config.Run,
    stages: list[summary.StageFacts],
    pictures: gallery.Gallery,
    environment: dict[str, Any],
) -> list[str]:
    """What was trained, on what, from where."""
    source = run.data.source
    last = run.stages.get(stages[-1].name) if stages else None
    if last and last.data:
        source = last.data.source
    text = f"This model learned to draw images like those of {source}"
    if pictures.counts and pictures.size:
        train, held_out = pictures.counts
        height, width = pictures.size
        colour = "in colour" if pictures.channels == 3 else "in grey"
        text = (
            f"This model learned from {train:,} images of {source} ({width}×{height} pixels, "
            f"{colour})"
        )
        text += f"; {held_out:,} more were held out to judge it" if held_out else ""
    sentences = [f"{text}."]
    patches = stages[-1].patches if stages else None
    sentences.append(summary.about_network(run, environment.get("parameters"), patches))
    sentences.append(summary.about_noise(run.noise))
    if environment.get("start"):
        sentences.append(f"It began with the weights of {environment['start']}.")
    if stages:
        sentences.append(summary.about_stages(stages))
        sentences.append(summary.about_masks(stages))
    if not stages:
        sentences.append("No training is recorded yet.")
    elif not (stages[-1].finished and len(stages) == len(run.stages)):
        sentences.append("The run has not reached the end of its recipe.")
    return sentences


def _health(records: list[metrics.Record]) -> str | None:
    """What is wrong with the last sample grid, if anything is known to be."""
    grids = metrics.of_kind(records, "sample")
    health = grids[-1].get("health") if grids else None
    return health["sentence"] if health else None


def _numbers(
    records: list[metrics.Record], stages: list[summary.StageFacts]
) -> list[tuple[str, str]]:
    """The few figures that stand at the top."""
    if not stages:
        return []
    found = [
        ("images seen", f"{sum(stage.images for stage in stages):,}"),
        ("of training", summary.clock(sum(stage.seconds for stage in stages))),
        ("computed", summary.flops(sum(stage.flops for stage in stages))),
    ]
    whole = sum(stage.whole_flops for stage in stages)
    saved = sum(stage.saved_flops for stage in stages)
    if saved:
        share = f"1/{whole / (whole - saved):.3g}"
        found.append(("of the compute of whole images", share))
    checks = [r for r in metrics.of_kind(records, "check") if r["mask"] == "whole"]
    if checks and checks[-1]["held_out_mean"] is not None:
        found.append(("denoising error on held-out images", f"{checks[-1]['held_out_mean']:.4f}"))
    return found


def _skipped(records: list[metrics.Record]) -> int:
    steps = metrics.of_kind(records, "step")
    return int(steps[-1].get("skipped", 0)) if steps else 0


def _commands(run_dir: Path, environment: dict[str, Any]) -> list[tuple[str, str]]:
    folder = shlex.quote(str(run_dir))
    start = environment.get("start")
    verb = f"finetune --from {shlex.quote(start)}" if start else "train"
    recipe = shlex.quote(str(run_dir / "config.yaml"))
    return [
        ("Train it again", f"underpaint {verb} --config {recipe} --out NEW_FOLDER"),
        ("Draw samples", f"underpaint sample {folder} -n 64 --seed 0 --out grid.png"),
        ("Make this page again", f"underpaint report {folder}"),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


# --- pictures ----------------------------------------------------------------------------------


def _grids(run_dir: Path, records: list[metrics.Record]) -> list[dict[str, Any]]:
    """At most GRIDS of the run's sample grids, evenly chosen, with the first and the last."""
    there = [r for r in metrics.of_kind(records, "sample") if _is_grid(run_dir, r["file"])]
    chosen = sorted({round(i) for i in np.linspace(0, len(there) - 1, GRIDS)}) if there else []
    seconds = summary.seconds_at(records, [r["images"] for r in there])
    return [
        {
            "images": there[i]["images"],
            "stage": there[i]["stage"],
            "seconds": seconds[i],
            "file": _embedded(run_dir / there[i]["file"]),
        }
        for i in chosen
    ]


def _is_grid(run_dir: Path, name: str) -> bool:
    """Whether it is a sample grid of the run; one from a stranger may name any file of ours."""
    if not re.fullmatch(r"samples/images_[0-9]{12}\.png", str(name)):
        return False
    return (run_dir / name).is_file() and not (run_dir / name).is_symlink()


def _compared(label: str, run_dir: Path, main: Path) -> dict[str, Any]:
    """What is shown of a run among others."""
    run, records, environment = _read(run_dir)
    stages = summary.stages(records, run)
    grids = [r for r in metrics.of_kind(records, "sample") if _is_grid(run_dir, r["file"])]
    checks = [r for r in metrics.of_kind(records, "check") if r["mask"] == "whole"]
    limit = f", {run.data.limit:,} images" if run.data.limit else ""
    start = environment.get("start")
    if start and Path(start).resolve() == main.resolve():
        start = "the run above"
    return {
        "label": label,
        "data": f"{run.data.source}{limit}",
        "start": f"began with the weights of {start}" if start else "began from random weights",
        "images": sum(stage.images for stage in stages),
        "seconds": sum(stage.seconds for stage in stages),
        "held_out": checks[-1]["held_out_mean"] if checks else None,
        "grid": _embedded(run_dir / grids[-1]["file"]) if grids else None,
    }


def _embedded(path: Path) -> str:
    """A picture file as a data address; large ones (of photographs) are compressed."""
    data, kind = path.read_bytes(), "png"
    if len(data) > LARGE:
        with Image.open(path) as image:
            data, kind = _encoded(image, "webp"), "webp"
    return _address(data, kind)


def _picture(pixels: NDArray[np.uint8]) -> str:
    """Pixels [H, W, C] as a data address; small images exactly, large ones as WebP."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    kind = "png" if max(image.size) <= 96 else "webp"
    return _address(_encoded(image, kind), kind)


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "webp" else {"optimize": True}))
    return file.getvalue()


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
