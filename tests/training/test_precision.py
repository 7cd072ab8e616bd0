"""bf16: where auto chooses it, and what training in it and drawing with it keep."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.runs import assert_same_run, metrics, weights
from underpaint import config, hardware, model
from underpaint.backbones.layers import attend
from underpaint.cli import main
from underpaint.hardware import use_bf16
from underpaint.training import throughput, train

CPU = torch.device("cpu")
MEASURE = hardware.bf16_speedup  # as it is before tests/conftest.py replaces it


def speedup(monkeypatch: pytest.MonkeyPatch, found: float) -> list[int]:
    """Let bf16 be measured as so many times as fast; returns the widths that are asked for."""
    widths: list[int] = []

    def measured(width: int) -> float:
        widths.append(width)
        return found

    monkeypatch.setattr(hardware, "bf16_speedup", measured)
    monkeypatch.setattr(throughput, "bf16_speedup", measured)
    return widths


@pytest.mark.parametrize(("found", "expected"), [(0.03, False), (1.05, False), (1.2, True)])
def test_auto_goes_by_what_is_measured(
    found: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = speedup(monkeypatch, found)
    assert use_bf16("auto", CPU, 96) is expected
    assert widths == [96]
    assert use_bf16("bf16", CPU)
    assert not use_bf16("fp32", CPU)
    assert not use_bf16("auto", torch.device("mps"))
    assert widths == [96]  # nothing is measured where nothing is to be chosen


def test_the_measurement_leaves_no_trace() -> None:
    """Neither in the random numbers that follow nor in the modes around it."""
    measure = MEASURE.__wrapped__
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.no_grad():
        assert 0 < measure(16) < float("inf")
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(4), expected)
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_is_measured_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, one may wait for a core that others have: 0.4 was found where it is 1.7."""
    before, during = torch.get_num_threads(), set()
    autocast = torch.autocast

    def noted(*args: Any, **more: Any) -> Any:
        during.add(torch.get_num_threads())
        return autocast(*args, **more)

    monkeypatch.setattr(torch, "autocast", noted)
    torch.set_num_threads(2)
    try:
        MEASURE.__wrapped__(16)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert during == {1}


def test_attention_on_a_cpu_is_in_float32() -> None:
    """The same as float32 attention of the rounded values, and so are the gradients."""
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(2, 3, 9, 8, dtype=torch.bfloat16) for _ in range(4))
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*given)
    assert found.dtype == torch.bfloat16
    found.backward(g)
    expected = F.scaled_dot_product_attention(*exact)
    expected.backward(g.float())
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)
    for x, y in zip(given, exact, strict=True):
        torch.testing.assert_close(x.grad, y.grad.bfloat16(), rtol=0, atol=0)


def test_a_run_in_bf16_learns_as_one_in_float32(recipe: config.Run, tmp_path: Path) -> None:
    """Weights stay float32; each line's loss is that of float32 within a few per cent."""
    found = {}
    for precision in ("fp32", "bf16"):
        recipe.train.precision = precision  # type: ignore[assignment]
        found[precision] = train(recipe, tmp_path / precision, quiet=True)
    assert {w.dtype for w in weights(found["bf16"]).values()} == {torch.float32}
    losses = [
        [m["loss"] for m in metrics(found[precision]) if m["kind"] == "step"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0.05, atol=0)


@pytest.mark.parametrize(("found", "chosen"), [(1.02, "fp32"), (1.34, "bf16")])
def test_a_run_measures_once_and_goes_on_as_it_began(
    found: float, chosen: str, recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.train.precision = "auto"
    recipe.train.keep = 100
    speedup(monkeypatch, found)
    run = train(recipe, tmp_path / "run", quiet=True)
    assert recipe.train.precision == "auto"  # the caller's recipe is as it was
    assert config.load(run / "config.yaml").train.precision == chosen
    assert json.loads((run / "env.json").read_text())["precision"] == chosen
    line = f"precision {chosen}: training in bf16 is {found:.2g} times as fast as in fp32 here"
    assert (run / "log.txt").read_text().count(line) == 1
    straight = weights(run)
    name = sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir())[1]
    for written in (chosen, "auto"):  # so runs had it that began before
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(
            text.replace(f"precision: {chosen}", f"precision: {written}")
        )
        (run / "checkpoints" / "LATEST").write_text(name + "\n")
        widths = speedup(monkeypatch, 1 / found)
        train(None, run, resume=True, quiet=True)
        assert not widths
        resumed = weights(run)
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_run_in_bf16_repeats_itself(recipe: config.Run, tmp_path: Path) -> None:
    recipe.train.precision = "bf16"
    one, two = (train(recipe, tmp_path / name, quiet=True) for name in ("one", "two"))
    assert_same_run(one, two)


# --- models that are there ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second."""
    place = tmp_path_factory.mktemp("precision")
    np.save(place / "images.npy", np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3), "u1"))
    settings = {
        "data": {"source": str(place / "images.npy")},
        "network": {"width": 64, "depth": 3, "heads": 2},
        "stages": {"whole": {"images": 640, "batch": 8}},
        "train": {"threads": 1, "precision": "fp32", "check_every": -1, "sample_every": -1},
        "sampling": {"steps": 2, "sampler": "euler"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        return train(config.from_dict(config.Run, settings, "test: "), place / "run", quiet=True)


@pytest.mark.parametrize("fast_at_it", [False, True])
def test_a_model_draws_in_float32_unless_asked(
    fast_at_it: bool, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = speedup(monkeypatch, 2.0 if fast_at_it else 0.5)
    plain = model.load(learned, device="cpu")
    assert (plain.precision, widths) == ("fp32", [])
    assert model.load(learned, device="cpu", precision="auto").precision == (
        "bf16" if fast_at_it else "fp32"
    )
    fast = model.load(learned, device="cpu", precision="bf16")
    one, two = (loaded.sample(16, seed=3).astype(float) for loaded in (plain, fast))
    assert 0 < np.abs(one - two).mean() < 0.02 * one.std()
    plain.precision = "bf16"
    assert np.array_equal(plain.sample(16, seed=3), two)
    plain.precision = "fp32"
    assert np.array_equal(plain.sample(16, seed=3), one)


def test_the_precision_of_samples_is_recorded(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["sample", str(learned), "-n", "2", "--out", str(tmp_path / "x.png")]
    flags += ["--json", "--overwrite"]
    for more, told in (([], "fp32"), (["--precision", "bf16"], "bf16")):
        assert main([*flags, "--quiet", *more]) == 0
        assert json.loads(capsys.readouterr().out)["precision"] == told
