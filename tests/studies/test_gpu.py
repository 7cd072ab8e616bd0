"""The parts for a GPU, tried on a CPU at a thousandth of their lengths."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from studies.ladder import run as ladder
from studies.lib import gpu
from underpaint import config, factory
from underpaint.training import cost

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr("sys.argv", ["gpu", *map(str, flags)])
    return gpu.main()


def test_what_was_measured_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    monkeypatch.setattr(gpu, "SOURCE", str(tmp_path / "images.npz"))
    flags = [
        "--device",
        "cpu",
        "--scale",
        0.002,
        "--work",
        tmp_path,
        "--out",
        tmp_path / "gpu.json",
    ]
    only = ["--only", "default-0", "default-90", "losses-fp32"]
    assert run(monkeypatch, *flags, *only) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["units"]
    assert list(found) == only[1:]
    whole, masked = found["default-0"], found["default-90"]
    assert (whole["visible"], masked["visible"], masked["hidden"]) == (256, 28, 1 - 28 / 256)
    assert whole["flops_per_image"] > 8 * masked["flops_per_image"]
    assert found["losses-fp32"]["skipped"] == 0
    assert len(found["losses-fp32"]["losses"]) > 1
    # again: nothing is measured anew, by a machine that has the results alone
    flags[5] = tmp_path / "elsewhere"
    monkeypatch.setattr(gpu, "do", lambda *_: pytest.fail("it is done"))
    capsys.readouterr()
    assert run(monkeypatch, *flags, *only) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in shown[1:3]] == [
        ["default", "0.0%", str(whole["batch"])],
        ["default", "89.1%", str(masked["batch"])],
    ]
    assert shown[3].startswith("losses-fp32")
    assert "default-50" in shown[-1]
    with pytest.raises(SystemExit):
        run(monkeypatch, *flags, "--scale", 1)  # units of another scale


@pytest.mark.parametrize("name", gpu.CONFIGS)
def test_every_network_fits_its_size_and_masks(name: str) -> None:
    about = gpu.CONFIGS[name]
    run = config.preset(about.preset)
    run = config.from_dict(config.Run, {"network": about.network or {}}, "", run)
    size = (about.size, about.size)
    backbone = cost.network(run, size, 3, 0)
    for rate in about.batches:
        kind = about.mask if rate else "none"
        stage = config.Stage(mask=kind, rate=rate / 100)  # type: ignore[arg-type]
        spec = factory.mask_spec(stage, backbone)
        assert spec.in_units(backbone.unit, backbone.grid)


def test_the_script_is_a_shells_and_knows_its_parts(tmp_path: Path) -> None:
    script = ROOT / "studies" / "gpu.sh"
    for shell in ("bash", "sh"):
        subprocess.run([shell, "-n", script], check=True)
    echo = tmp_path / "python"  # stands for the interpreter: shows what it is asked for
    echo.write_text('#!/bin/sh\necho "$@"\n[ "$2" = studies.times.run ] && exit 130\nexit 0\n')
    echo.chmod(0o755)

    def said(*words: str, code: int = 0) -> str:
        environment = {"PYTHON": str(echo), "PATH": "/usr/bin:/bin"}
        ended = subprocess.run(
            ["sh", script, *words], capture_output=True, text=True, env=environment, check=False
        )
        assert ended.returncode == code
        return ended.stdout.strip()

    assert said("speed", "--only", "default-0") == (
        "-m studies.lib.gpu --kind speed --only default-0\ndone"
    )
    assert said("table") == "-m studies.lib.gpu --table"
    ends = said("ends", "--scale", "0.1")
    assert ends.startswith("-m studies.ladder.run --begins end- --scale 10 --work runs/ladder-10")
    assert ends.endswith("--scale 0.1\ndone")
    assert said("times").endswith("the part is over; call it again to go on")
    assert said("nothing", code=2) == ""


def test_the_ends_are_scaled_to_ten_times_their_budget() -> None:
    names = [name for name in ladder.UNITS if name.startswith("end-")]
    assert len(names) == 3 * len(ladder.ENDS) > 0
    for name in names[-1:]:
        about = ladder.settings(name)["study"]
        found = cost.describe(ladder.recipe(name, 10.0), (64, 64), 3, 8)
        assert found["flops"] == pytest.approx(10 * about["budget"], rel=0.02)
