"""What the guarantee of a private stage covers: its images, if nothing else has seen them.

The noise of one stage hides an image in that stage alone. So a private stage is refused where the
same images (by the sha256 of file or pixels) are trained on without noise beside it, or were by the
weights it starts from, and where something about them would be published past the noise: labels
that only they tell of, or statistics that a network keeps of its batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import nn

from underpaint.data import Dataset
from underpaint.errors import UserError
from underpaint.model import find, network, read_spec
from underpaint.sealed.format import Sealed
from underpaint.training.stages import Plan

__all__ = ["check_covered"]

DEPTH = 100  # runs that began with each other's weights


def check_covered(plans: list[Plan], start: str | None, processes: int) -> list[str]:
    """Sentences on what the guarantees of private stages leave open; none without such a stage.

    `start`: where the weights come from. Raises UserError where a guarantee would be empty.
    """
    private = [plan for plan in plans if plan.stage.dp]
    notes = []
    for plan in private:
        place = f"stages.{plan.name}.dp"
        if processes > 1:
            raise UserError(f"{place}: works with one process so far, not {processes}; use one")
        _check_batch_statistics(place, plan)
        _check_labels(place, plan, plans, start)
        for other in plans:
            if other.stage.dp is None:
                _check_apart(place, plan, other)
        if start:
            notes += _check_start(place, plan, start)
    names = _sharing(private)
    if names:
        budgets = [plan.stage.dp for plan in private if plan.stage.dp and plan.name in names]
        notes.append(
            f"stages {' and '.join(names)} share images: together they spend up to epsilon "
            f"{sum(b.epsilon for b in budgets):g} at delta {sum(b.delta for b in budgets):g}"
        )
    return notes


def _check_batch_statistics(place: str, plan: Plan) -> None:
    with torch.device("meta"):
        modules = list(network(plan.spec).modules())
    if any(
        isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in modules
    ):
        raise UserError(
            f"{place}: network.kind {plan.spec.network.kind} has batch norm, which mixes the "
            "images of a batch; use a network with layer or group norm"
        )


def _check_labels(place: str, plan: Plan, plans: list[Plan], start: str | None) -> None:
    """Label names must be known from elsewhere than the private images."""
    assert plan.stage.dp is not None
    names, stated = plan.spec.label_names, plan.stage.dp.labels
    known = [set(p.spec.label_names) for p in plans[: plan.index] if p.stage.dp is None]
    if start:
        known.append(set(read_spec(find(start)).label_names))
    if set(names) == set(stated) or any(set(names) <= k for k in known):
        return
    shown = " ".join(names)
    if stated:
        raise UserError(
            f"{place}.labels {' '.join(stated)}: the images have the labels {shown or '(none)'}; "
            "state just these"
        )
    raise UserError(
        f"{place}: that there are the labels {shown} is known from the private images alone, as a "
        f"statistic of them; if these names are public add --{place}.labels {shown}, else "
        "--no-labels"
    )


def _check_apart(place: str, plan: Plan, other: Plan) -> None:
    count = _shared(plan.dataset, other.dataset)
    if count:
        raise UserError(
            f"{place}: {count} of its images are trained on by stage {other.name} without dp, so "
            f"that nothing would be guaranteed for them; give one of the two other images "
            f"(--stages.{other.name}.data.source), or give {other.name} dp too"
        )


def _check_start(place: str, plan: Plan, start: str) -> list[str]:
    """Refuse weights that have seen the images; a note where nobody knows."""
    for source, trained in _ancestors(start):
        if trained is None or isinstance(plan.dataset, Sealed):
            return [
                f"stage {plan.name}: the images cannot be compared with those that the weights of "
                f"{source} were trained on, which are not recorded or sealed; the guarantee does "
                "not hold for any that are among them"
            ]
        sha = plan.dataset.file_sha256
        count = sum(sha[i] in trained for i in plan.order.ids.tolist())
        if count:
            raise UserError(
                f"{place}: {count} of its images were trained on already by the weights of "
                f"{source}, so that nothing would be guaranteed for them; give other weights or "
                "other images"
            )
    return []


def _ancestors(start: str) -> Iterator[tuple[str, set[str] | None]]:
    """The run behind `start`, that behind its own start, …, each with its images' sha256."""
    source: str | None = start
    for _ in range(DEPTH):
        if not source:
            return
        try:
            folder = find(source)
            run = next(p for p in (folder, *folder.parents[:2]) if (p / "images.json").is_file())
            trained = json.loads((run / "images.json").read_text(encoding="utf-8"))["trained"]
            before = json.loads((run / "env.json").read_text(encoding="utf-8"))["start"]
        except (UserError, StopIteration, OSError, ValueError, KeyError):
            yield source, None
            return
        yield source, set(trained)
        source = before


def _sharing(private: list[Plan]) -> list[str]:
    """Names of the private stages that have images in common with another."""
    return [
        plan.name
        for plan in private
        if any(_shared(plan.dataset, other.dataset) for other in private if other is not plan)
    ]


def _shared(a: Dataset | Sealed, b: Dataset | Sealed) -> int:
    """How many training images of `a` are among those of `b`; sealed ones know only their file."""
    if isinstance(a, Sealed) or isinstance(b, Sealed):
        return len(a.train_ids) if a.key == b.key else 0
    theirs = _names(b)
    own = zip(a.file_digests[a.train_ids], a.pixel_digests[a.train_ids], strict=True)
    return sum(f.tobytes() in theirs or p.tobytes() in theirs for f, p in own)


def _names(dataset: Dataset) -> set[bytes]:
    digests = (dataset.file_digests, dataset.pixel_digests)
    return {d.tobytes() for table in digests for d in table[dataset.train_ids]}
