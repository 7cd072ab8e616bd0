"""Averages of a width that is chosen after training: against averages tracked directly."""

import itertools
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import integrate

from tests.training.runs import assert_same_run
from underpaint import config
from underpaint.cli import main
from underpaint.errors import UserError
from underpaint.model import load
from underpaint.training import step_rule, train
from underpaint.training.checkpointing import snapshots
from underpaint.training.posthoc import (
    GAMMAS,
    NEAR,
    TRACKED,
    Average,
    PowerAverages,
    combination,
    exponent,
    inner_product,
    rebuild,
    snapshots_for,
)
from underpaint.training.step import Diverged


def profile(a: Average, t: np.ndarray | float) -> np.ndarray | float:
    return (a.gamma + 1) * t**a.gamma / a.steps ** (a.gamma + 1) * (t <= a.steps)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 6.94, 16.97])
def test_relative_width_is_the_deviation_of_the_profile(gamma: float) -> None:
    a = Average(gamma, 1.0)
    mean, square = (integrate.quad(lambda t, k=k: t**k * profile(a, t), 0, 1)[0] for k in (1, 2))
    width = math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))
    assert width == pytest.approx(math.sqrt(square - mean**2))
    assert exponent(width) == pytest.approx(gamma, abs=1e-6)


def test_published_exponents() -> None:
    """Karras et al. 2024: σ_rel 0.05 and 0.10 are γ 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


def test_inner_products_are_integrals() -> None:
    averages = [Average(16.97, 3.0), Average(6.94, 3.0), Average(2.0, 5.0)]
    for a, b in itertools.product(averages, repeat=2):
        exact, _ = integrate.quad(lambda t, a=a, b=b: profile(a, t) * profile(b, t), 0, 3)
        if a.steps == b.steps == 5:
            exact, _ = integrate.quad(lambda t, a=a, b=b: profile(a, t) * profile(b, t), 0, 5)
        assert inner_product(a, b) == pytest.approx(exact)


def test_an_update_keeps_the_profile() -> None:
    """After T steps the weights of step s count ((s)^(γ+1) − (s−1)^(γ+1))/T^(γ+1)."""
    module = torch.nn.Linear(1, 40, bias=False).double()
    tracked = PowerAverages(module)
    for t in range(1, 41):
        with torch.no_grad():
            module.weight.zero_()[t - 1] = 1  # which step it was
        tracked.update(t)
    s = torch.arange(41, dtype=torch.float64)
    for name, state in tracked.state().items():
        share = (s / 40) ** (GAMMAS[name] + 1)
        torch.testing.assert_close(state["weight"][:, 0], share.diff())


@pytest.mark.parametrize("width", [0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_weights_sum_to_one_and_make_the_profile(width: float) -> None:
    stored = [Average(g, float(t)) for t in range(25, 1001, 25) for g in GAMMAS.values()]
    wanted = Average(exponent(width), 1000.0)
    w, error = combination(stored, wanted)
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert error < 0.05
    t = np.linspace(0, 1000, 200_001)
    made = sum(wi * profile(a, t) for wi, a in zip(w, stored, strict=True))
    off = np.sqrt(np.mean((made - profile(wanted, t)) ** 2))
    assert off / np.sqrt(np.mean(profile(wanted, t) ** 2)) == pytest.approx(error, abs=2e-3)
    assert np.abs(w).sum() < 30  # the rounding of stored weights is not blown up


def test_a_tracked_width_is_its_last_snapshot() -> None:
    stored = [Average(g, t) for t in (250.0, 500.0, 750.0, 1000.0) for g in GAMMAS.values()]
    w, error = combination(stored, Average(exponent(TRACKED["wide"]), 1000.0))
    assert error < 1e-6
    assert w == pytest.approx([0] * 7 + [1], abs=1e-6)


@pytest.mark.parametrize("width", [0.15, 0.2, 0.25])
def test_how_many_snapshots_a_width_needs(width: float) -> None:
    def error(n: int) -> float:
        stored = [Average(g, 3 * t) for t in range(1, n + 1) for g in GAMMAS.values()]
        return combination(stored, Average(exponent(width), 3 * n))[1]

    n = snapshots_for(width)
    assert error(n) < 0.02 <= error(n - 1)
    assert snapshots_for(width, 0.1) < n


# --- runs


@pytest.fixture
def tracking(recipe: config.Run) -> config.Run:
    """100 steps of two stages, with 20 snapshots."""
    recipe.stages["masked"].images, recipe.stages["whole"].images = 480, 320
    recipe.train.snapshots = 40
    recipe.train.checkpoint_every = 200
    recipe.train.sample_every = recipe.train.check_every = -1
    return recipe


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[k].double().flatten() for k in sorted(state)])


def test_rebuilt_averages_are_those_tracked_directly(
    tracking: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖rebuilt − tracked‖ / ‖tracked − final weights‖ < 0.02, and below what is said at 0.25."""
    widths = [0.05, 0.07, 0.1, 0.15, 0.2, 0.25]
    tracked: dict[float, dict[str, torch.Tensor]] = {}
    final: dict[str, torch.Tensor] = {}
    original = step_rule.step

    def step(stage, run, state, progress):  # type: ignore[no-untyped-def]
        original(stage, run, state, progress)
        final.update({k: p.detach().double().clone() for k, p in state.backbone.named_parameters()})
        t = state.ema.steps
        for width in widths:
            beta = (1 - 1 / t) ** (exponent(width) + 1)
            old = tracked.get(width, final)
            tracked[width] = {k: beta * old[k] + (1 - beta) * final[k] for k in final}

    monkeypatch.setattr(step_rule, "step", step)
    run = train(tracking, tmp_path / "run", quiet=True)
    errors = rebuild(run, widths)
    assert list(errors) == [str(run / "ema" / f"{width:g}") for width in widths]
    for width in widths:
        state = load_file(run / "ema" / f"{width:g}" / "model.safetensors")
        rebuilt = {k: state[k] for k in final}
        off = (flat(rebuilt) - flat(tracked[width])).norm()
        said = errors[str(run / "ema" / f"{width:g}")]
        assert said < 0.02 or width == 0.25
        assert off / (flat(tracked[width]) - flat(final)).norm() < max(0.02, said), width
    assert load(run / "ema" / "0.1").sample(2, steps=2).shape == (2, 16, 16, 3)


def test_by_default_there_are_as_many_as_the_default_widths_need(
    tracking: config.Run, tmp_path: Path
) -> None:
    tracking.train.snapshots = -1
    run = train(tracking, tmp_path / "run", quiet=True)
    assert len(snapshots(run)) == 32
    assert max(rebuild(run, [0.05, 0.1, 0.2]).values()) < NEAR


def test_a_resumed_run_tracks_the_same(
    tracking: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tracking, tmp_path / "whole", quiet=True)

    class Cut(Exception):
        pass

    original = step_rule.step

    def step(stage, run, state, progress):  # type: ignore[no-untyped-def]
        if progress.images >= 520:  # snapshots at 440, 480 and 520 are after the checkpoint's
            raise Cut
        original(stage, run, state, progress)

    monkeypatch.setattr(step_rule, "step", step)
    with pytest.raises(Cut):
        train(tracking, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(step_rule, "step", original)
    train(None, tmp_path / "cut", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "cut")
    same_files(whole, tmp_path / "cut", 21)


def same_files(a: Path, b: Path, count: int) -> None:
    """Snapshots and the checkpoints' averages."""
    found = sorted(p.relative_to(a) for p in a.glob("*/*/*") if p.stem in TRACKED)
    assert found == sorted(p.relative_to(b) for p in b.glob("*/*/*") if p.stem in TRACKED)
    assert len([p for p in found if p.parts[0] == "snapshots"]) == 2 * (count - 1)
    for path in found:
        assert (a / path).read_bytes() == (b / path).read_bytes(), path


def test_a_return_takes_its_snapshots_back(
    tracking: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = step_rule.step, []

    def step(stage, run, state, progress):  # type: ignore[no-untyped-def]
        if progress.images == 300 and not seen:
            seen.append(sorted(p.name for p in (tmp_path / "run" / "snapshots").iterdir()))
            raise Diverged("made up")
        if progress.images == 200 and seen and len(seen) == 1:
            seen.append(sorted(p.name for p in (tmp_path / "run" / "snapshots").iterdir()))
        original(stage, run, state, progress)

    monkeypatch.setattr(step_rule, "step", step)
    tracking.stages["masked"].batch = 4  # 300 is a whole number of steps
    train(tracking, tmp_path / "run", quiet=True)
    before, after = seen
    assert [int(name) for name in before] == [40, 80, 120, 160, 200, 240, 280]
    assert after == before[:5]


def test_stages_of_other_sizes_are_brought_to_the_last(
    tracking: config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.stages["whole"].size = (24,)
    run = train(tracking, tmp_path / "run", quiet=True)
    wish = ["ema", str(run), "--out", str(tmp_path / "out"), "--width", "0.1", "0.2"]
    assert main(wish) == 0
    assert "note" not in capsys.readouterr().out
    assert main([*wish, "0.25"]) == 2
    assert "0.1: exists already; add --overwrite or choose" in capsys.readouterr().err
    assert main([*wish, "0.25", "--overwrite"]) == 0
    note = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"note: width 0\.25: the profile of 20 snapshots is 6\.\d% off; train with a smaller "
        r"--train\.snapshots, about 50 in the run, for 2%",
        note,
    )
    last = load_file(sorted((run / "snapshots").iterdir())[-1] / "wide.safetensors")
    rebuilt = load_file(tmp_path / "out" / "0.1" / "model.safetensors")
    for name, tensor in last.items():
        torch.testing.assert_close(rebuilt[name], tensor, rtol=1e-4, atol=1e-5)
    assert load(tmp_path / "out" / "0.2").sample(1, steps=2).shape == (1, 24, 24, 3)


def test_wrong_use(recipe: config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.stages.pop("whole")
    plain = train(recipe, tmp_path / "plain", quiet=True)
    assert not (plain / "snapshots").exists()

    def wrong(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main(["ema", *map(str, arguments)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    assert "holds no snapshots" in wrong(plain)
    assert "--train.snapshots" in wrong(plain)
    assert "is not a run" in wrong(tmp_path / "nothing")
    for width in ("0.01", "0.5", "nan"):
        assert "give relative widths from 0.05 to 0.25" in wrong(plain, "--width", width)
    recipe.train.snapshots = 48
    run = train(recipe, tmp_path / "run", quiet=True)
    first = sorted((run / "snapshots").iterdir())[0]
    (tmp_path / "out" / "0.1").mkdir(parents=True)
    assert "is no model; choose another --out" in wrong(
        run, "--width", "0.1", "--out", tmp_path / "out"
    )
    (first / "wide.safetensors").write_bytes(b"")
    assert "is missing, cut short or changed" in wrong(run)
    shutil.rmtree(first)
    (first).mkdir()
    assert "its state.json is missing or damaged" in wrong(run)
    recipe.train.snapshots = -2
    with pytest.raises(UserError, match=r"train\.snapshots -2: give a number from -1 up"):
        config.check(recipe)
