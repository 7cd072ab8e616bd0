"""The page of a run that goes on: when it is written, and that the run never notices."""

from pathlib import Path

import pytest
import torch

from tests.training.runs import metrics, weights
from underpaint import config, report
from underpaint.errors import RunFailed, UserError
from underpaint.evaluation.validation import OverfitCheck
from underpaint.training import live_page, train


class Clock:
    """A clock that a page sets forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Log:
    def __init__(self, first: bool = True) -> None:
        self.first, self.warnings = first, []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(live_page, "time", found := Clock())
    return found


def test_pages_take_a_small_share_of_the_time(clock: Clock) -> None:
    written = []

    def write(folder: Path, going: bool) -> None:
        written.append(clock.now)
        clock.now += 0.5

    page = live_page.LivePage(write, Path(), Log())
    while clock.now < 1000:
        page.renew()
        clock.now += 1.0
    assert written[0] == 0.0
    assert 15 <= len(written) <= 21  # half a second each, of 1,000
    page.end()  # the last one comes in any case
    assert len(written) > 15
    assert written[-1] == pytest.approx(clock.now - 0.5)


def test_only_the_first_process_writes(clock: Clock) -> None:
    page = live_page.LivePage(lambda folder, going: pytest.fail("written"), Path(), Log(False))
    page.renew()
    page.end()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("report.html: cannot be written"), "report.html: cannot be written"),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left"),
    ],
)
def test_a_run_goes_on_without_a_page_that_cannot_be_written(
    clock: Clock, error: Exception, said: str
) -> None:
    def write(folder: Path, going: bool) -> None:
        raise error

    page = live_page.LivePage(write, Path(), log := Log())
    page.renew()
    clock.now = 1e6
    page.renew()
    assert log.warnings == [f"no page while the run goes on: {said}"]


def test_a_run_is_the_same_with_a_page(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_page, "SHARE", 1e9)  # each time there is news
    recipe.train.check_every = recipe.train.checkpoint_every = 80
    seen: list[tuple[int, bool]] = []

    def write(folder: Path, going: bool) -> None:
        page = report.follow(folder, going).read_text(encoding="utf-8")
        assert ('http-equiv="refresh"' in page) == going
        assert 'alt="nearest' not in page
        assert page.count("<svg") <= 1
        for line in metrics(folder):
            if line["kind"] == "sample":
                assert f'src="{line["file"]}"' in page
        images = [line["images"] for line in metrics(folder)]
        seen.append((images[-1], going))

    check = OverfitCheck.of
    plain = train(recipe, tmp_path / "plain", quiet=True, make_check=check)
    shown = train(recipe, tmp_path / "shown", quiet=True, make_check=check, page=write)
    assert seen[0] == (0, True)
    assert [images for images, _ in seen] == [0, 80, 96]  # news, and the second stage
    one, two = weights(plain), weights(shown)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert metrics(plain) == metrics(shown)


def test_a_run_that_fails_leaves_a_page_that_stands_still(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from underpaint.training import trainer

    def fail(self: trainer.Trainer) -> None:
        raise RunFailed("as if")

    monkeypatch.setattr(trainer.Trainer, "_step", fail)
    with pytest.raises(RunFailed):
        train(recipe, tmp_path / "run", quiet=True, page=report.follow)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "refresh" not in page
    assert "The run has stopped before its end" in page
    assert f"underpaint train --resume --out {tmp_path / 'run'}" in page
