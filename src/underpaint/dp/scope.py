"""What the guarantee of a private stage covers: its images, if nothing else has seen them.

The noise of one stage hides an image in that stage alone. So a private stage is refused where the
same images (by the sha256 of file or pixels) are trained on without noise beside it, or were by the
weights it starts from, and where something about them would be published past the noise: labels
that only they tell of, or statistics that a network keeps of its batches.
"""

from collections.abc import Iterator

import numpy as np
from torch import nn

from underpaint import factory
from underpaint.data import digests
from underpaint.errors import UserError
from underpaint.model_folder import find, read_spec
from underpaint.training import identities, provenance
from underpaint.training.stages import PreparedStage
from underpaint.training.training_set import TrainingSet

DEPTH = 100  # runs that began with each other's weights


def check_scope(stages: list[PreparedStage], start: str | None, processes: int) -> list[str]:
    """Sentences on what the guarantees of private stages leave open; none without such a stage.

    `start`: where the weights come from. Raises UserError where a guarantee would be empty.
    """
    private = [stage for stage in stages if stage.settings.dp]
    notes = []
    for stage in private:
        place = f"stages.{stage.name}.dp"
        if processes > 1:
            raise UserError(f"{place}: works with one process so far, not {processes}; use one")
        _check_batch_statistics(place, stage)
        _check_labels(place, stage, stages, start)
        for other in stages:
            if other.settings.dp is None:
                _check_apart(place, stage, other)
        if start:
            notes += _check_start(place, stage, start)
    sharing = [
        stage
        for stage in private
        if any(o is not stage and _shared(stage.training_set, o.training_set) for o in private)
    ]
    if sharing:
        names = " and ".join(stage.name for stage in sharing)
        budgets = [stage.settings.dp for stage in sharing if stage.settings.dp]
        notes.append(
            f"stages {names} share images: together they spend up to epsilon "
            f"{sum(b.epsilon for b in budgets):g} at delta {sum(b.delta for b in budgets):g}"
        )
    return notes


def _check_batch_statistics(place: str, stage: PreparedStage) -> None:
    norms = nn.modules.batchnorm._NormBase
    modules = factory.unallocated_network(stage.spec).modules()
    if any(isinstance(m, norms) and m.track_running_stats for m in modules):
        raise UserError(
            f"{place}: network.kind {stage.spec.network.kind} has batch norm, which mixes the "
            "images of a batch; use a network with layer or group norm"
        )


def _check_labels(
    place: str, stage: PreparedStage, stages: list[PreparedStage], start: str | None
) -> None:
    """Label names must be known from elsewhere than the private images."""
    assert stage.settings.dp is not None
    names, stated = stage.spec.label_names, stage.settings.dp.labels
    known = [set(p.spec.label_names) for p in stages[: stage.index] if p.settings.dp is None]
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


def _check_apart(place: str, stage: PreparedStage, other: PreparedStage) -> None:
    count = _shared(stage.training_set, other.training_set)
    if count:
        raise UserError(
            f"{place}: {count} of its images are trained on by stage {other.name} without dp, so "
            f"that nothing would be guaranteed for them; give one of the two other images "
            f"(--stages.{other.name}.data.source), or give {other.name} dp too"
        )


def _check_start(place: str, stage: PreparedStage, start: str) -> list[str]:
    """Refuse weights that have seen the images; a note where nobody knows."""
    for source, trained in _ancestors(start):
        known = stage.training_set.identities(stage.order.ids)
        if trained is None or not len(known.files):
            return [
                f"stage {stage.name}: the images cannot be compared with those that the weights of "
                f"{source} were trained on, which are not recorded or sealed; the guarantee does "
                "not hold for any that are among them"
            ]
        count = int(digests.among(known.files, trained).sum())
        if count:
            raise UserError(
                f"{place}: {count} of its images were trained on already by the weights of "
                f"{source}, so that nothing would be guaranteed for them; give other weights or "
                "other images"
            )
    return []


def _ancestors(start: str) -> Iterator[tuple[str, digests.Sums | None]]:
    """The run behind `start`, that behind its own start, …, each with its images' sha256."""
    source: str | None = start
    for _ in range(DEPTH):
        if not source:
            return
        try:
            folder = find(source)
            run = next(p for p in (folder, *folder.parents[:2]) if (p / "images.json").is_file())
            trained = identities.read(run).trained
            before = provenance.start_of(run)
        except (UserError, StopIteration):
            yield source, None
            return
        yield source, trained
        source = before


def _shared(a: TrainingSet, b: TrainingSet) -> int:
    """How many training images of `a` are among those of `b`; sealed ones know only their file."""
    ours, theirs = a.identities(a.train_ids), b.identities(b.train_ids)
    if not len(ours.files) or not len(theirs.files):
        return len(a.train_ids) if a.key == b.key else 0
    known = np.concatenate(theirs)
    return int((digests.among(ours.files, known) | digests.among(ours.pixels, known)).sum())
