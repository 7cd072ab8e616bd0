"""A whole audit: an over-fitted run is flagged, wrong use is refused in a line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from underpaint import data
from underpaint.cli import main
from underpaint.config import Data

RECIPE = """\
space: {patch: 4}
network: {width: 48, depth: 3, heads: 4}
stages:
  whole: {images: 12800, batch: 32, learning_rate: 3e-3, warmup: 100}
train: {threads: 1, check_every: -1, sample_every: -1, ema: 0.9}
preview: {count: 4, steps: 10, sampler: euler}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a fifth of 210 images."""
    folder = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (210, 8, 8, 1), dtype=np.uint8))
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(folder / "cache"))
        flags = ["--config", folder / "recipe.yaml", "--data", folder / "images.npz"]
        flags += ["--channels", 1, "--audit-split", 0.8, "--out", folder / "run", "--quiet"]
        assert main(["train", *map(str, flags)]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def own_cache(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(run.parent / "cache"))


def test_the_run_records_its_images(run: Path) -> None:
    known = json.loads((run / "images.json").read_text())
    assert [len(known["trained"]), len(known["held_out"])] == [42, 168]
    dataset = data.prepare(Data(source=str(run.parent / "images.npz"), channels=1))
    assert set(known["trained"]) | set(known["held_out"]) == set(dataset.file_sha256)


def test_an_over_fitted_run_is_flagged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--attacks", "loss,pia,sima", "--samples", "16", "--json", "--quiet"]
    assert main(["audit", str(run), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controls"]["null"]["blind"]["passed"]
    assert found["controls"]["positive"]["passed"], found["controls"]
    assert found["verdict"] == "leak found", found
    best = {name: own["auc"]["value"] for name, own in found["membership"].items()}
    assert max(best.values()) > 0.9, best
    assert found["membership"]["loss"]["tpr_at"]["0.01"] == {"needs": 300, "has": 168}
    stored = json.loads((run / "audit" / "audit.json").read_text())
    assert stored["verdict"] == found["verdict"]
    page = (run / "audit" / "audit.html").read_text()
    assert "does not show that the model is safe" in page
    assert 'src="http' not in page
    # the same again: the control comes from the cache
    assert main(["audit", str(run), *flags]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["controls"]["positive"]["reused"]
    assert again["membership"] == found["membership"]


def test_wrong_use(run: Path, wrong: Callable[..., str], trained: Path, tmp_path: Path) -> None:
    assert "needs 3,000 non-members and there are 168" in wrong("audit", run, "--fpr", 0.001)
    assert "'los' does not exist" in wrong("audit", run, "--attacks", "los")
    images = run.parent / "images.npz"
    both = wrong("audit", run, "--members", images, "--non-members", images)
    assert "members and non-members at once" in both
    assert "an audit needs 100" in wrong("audit", trained)
    (run / "images.json").rename(tmp_path / "aside.json")
    assert "records no members" in wrong("audit", run)
    (tmp_path / "aside.json").rename(run / "images.json")


def test_an_honest_run_is_not_flagged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps: it cannot remember anything, and the control shows that it could be seen."""
    honest = run.parent / "honest"
    if not honest.exists():
        flags = ["--config", run.parent / "recipe.yaml", "--data", run.parent / "images.npz"]
        flags += ["--channels", 1, "--audit-split", 0.8, "--out", honest, "--quiet"]
        assert main(["train", *map(str, flags), "--stages.whole.images", "64"]) == 0
        capsys.readouterr()
    flags = ["--attacks", "loss,pia", "--samples", "16", "--json", "--quiet"]
    assert main(["audit", str(honest), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controls"]["positive"]["passed"]
    assert found["verdict"] == "no leak found", found["findings"]
    assert found["copies"]["ratios"]["second"]["third"]["count"] == 0


def test_sides_that_differ_give_no_verdict(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark = np.random.default_rng(1).integers(0, 128, (150, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", images=dark)
    flags = ["--attacks", "sima", "--samples", "8", "--json", "--quiet", "--no-control"]
    flags += ["--non-members", str(tmp_path / "dark.npz"), "--out", str(tmp_path / "audit")]
    assert main(["audit", str(run), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["controls"]["null"]["blind"]["passed"]
    assert found["verdict"] == "no verdict"
    assert "told apart without asking the model" in found["reasons"][0]
