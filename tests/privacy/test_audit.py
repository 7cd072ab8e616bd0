"""A whole audit: an over-fitted run is flagged, an honest one is not, wrong use is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from underpaint import data, model
from underpaint.cli import main
from underpaint.config import Data
from underpaint.hardware import Precision
from underpaint.privacy import duration
from underpaint.privacy.calibration import load_reference
from underpaint.training import identities

RECIPE = """\
space: {patch: 4}
network: {width: 48, depth: 3, heads: 4}
stages:
  whole: {images: 9600, batch: 32, learning_rate: 3e-3, warmup: 100}
train: {threads: 1, check_every: -1, sample_every: -1, ema: 0.9}
sampling: {count: 4, steps: 10, sampler: euler}
"""
IMAGES = 80


def trained(folder: Path, name: str, split: float, *flags: object) -> Path:
    """A run on a share of the images in `folder`; the others are its non-members."""
    own = ["--config", folder / "recipe.yaml", "--data", folder / "images.npz", "--channels", 1]
    own += ["--audit-split", split, "--out", folder / name, "--quiet", *flags]
    assert main(["train", *map(str, own)]) == 0
    return folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images and a recipe."""
    folder = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Over-fitted: a fifth of the images, each of them 600 times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        return trained(place, "run", 0.8)


@pytest.fixture(scope="module")
def honest(place: Path) -> Path:
    """One epoch on half of the images: two steps, in which nothing can be learned by heart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        return trained(place, "honest", 0.5, "--stages.whole.images", 64)


def test_the_run_records_its_images(run: Path, honest: Path) -> None:
    """`--audit-split` sets that share aside, and every image is on one side."""
    dataset = data.prepare(Data(source=str(run.parent / "images.npz"), channels=1))
    for folder, counts in ((run, [16, 64]), (honest, [40, 40])):
        known = identities.read(folder)
        assert [*map(len, known)] == counts
        one, two = ({sha.tobytes().hex() for sha in sums} for sums in known)
        assert one | two == set(dataset.file_sha256)
        assert not one & two


def test_an_over_fitted_run_is_flagged(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 16 images was seen 600 times: everything that is tried finds it.

    Attacks with an AUC above 0.9, copies among the samples by the rule of the held-out images (the
    network is too small to paint noise to a third of its distance), completion and the whole set.
    """
    monkeypatch.setattr(duration, "_seconds_of_a_call", lambda _: 0.01)
    flags = ["--attacks", "loss,sima", "--samples", "64", "--json"]
    assert main(["audit", str(run), *flags]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    # calls: 80 · 6 · (2 + 1) of attacks, 80 · 2 · 39 of completions, 2 · 64 · 10 of samples, and
    # 3 · 300 · 16 + 5 · 32 · 18 of the control; a quarter more for all else
    assert "this audit takes about 5 min" in printed.err
    assert found["controls"]["null"]["blind"]["passed"]
    assert found["controls"]["positive"]["passed"], found["controls"]
    assert found["verdict"] == "leak found", found
    for name in ("loss", "sima"):
        assert found["membership"][name]["auc"]["value"] > 0.9
    said = "; ".join(found["findings"])
    for words in ("membership by loss", "membership by sima", "copies in pixels", "completion"):
        assert words in said
    assert "data set as a whole" in said
    # of the members and non-members that there are, all are used
    assert [found["members"], found["non_members"]] == [16, 64]
    assert found["membership"]["loss"]["tpr_at"]["0.01"] == {"needs": 300, "has": 64}
    assert "below 300" in found["notes"][0]
    stored = json.loads((run / "audit" / "audit.json").read_text())
    assert stored["verdict"] == found["verdict"]
    page = (run / "audit" / "audit.html").read_text()
    assert "does not show that the model is safe" in page
    assert "picks the right one 100 times in 100" in page
    assert "that needs 300 non-members, and there were 64" in page
    assert 'src="http' not in page
    # the same again: the control comes from the cache
    assert main(["audit", str(run), *flags]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["controls"]["positive"]["reused"]
    assert again["membership"] == found["membership"]
    assert again["copies"] == found["copies"]
    assert (again["precision"], f"underpaint audit {run} --seed 0 --precision fp32" in page) == (
        "fp32",
        True,
    )


def test_an_audit_in_bf16_finds_as_much(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a control of its own: what shows in one precision need not in another."""
    flags = ["--attacks", "loss,sima", "--samples", "8", "--json", "--quiet"]
    found = []
    for precision in ("fp32", "bf16"):
        own = ["--precision", precision, "--out", str(tmp_path / precision)]
        assert main(["audit", str(run), *flags, *own]) == 0
        found.append(json.loads(capsys.readouterr().out))
    exact, fast = found
    assert (exact["precision"], fast["precision"]) == ("fp32", "bf16")
    assert fast["controls"]["positive"]["passed"]
    assert not fast["controls"]["positive"]["reused"]
    for name, own in exact["membership"].items():
        assert fast["membership"][name]["auc"]["value"] == pytest.approx(
            own["auc"]["value"], abs=0.02
        )


def test_an_honest_run_is_not_flagged(honest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot remember anything, and the control shows that it could be seen."""
    flags = ["--attacks", "loss,pia", "--samples", "64", "--json", "--quiet"]
    assert main(["audit", str(honest), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controls"]["positive"]["passed"]
    assert found["verdict"] == "no leak found", found["findings"]
    assert found["detectable"] < 0.9
    for own in found["copies"]["spaces"]["pixels"]["ratios"].values():
        assert own["third"]["count"] == 0
        assert own["quantile"]["p_value"] > 0.01
    page = (honest / "audit" / "audit.html").read_text()
    assert "by these attacks, at this power" in page
    assert "This does not make the model safe" in page


def test_without_the_control_the_verdict_says_so(
    honest: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--attacks", "sima", "--samples", "8", "--json", "--quiet", "--no-control"]
    assert main(["audit", str(honest), *flags, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "no leak found"
    assert not found["checked"]
    page = (tmp_path / "audit.html").read_text()
    assert "Not checked against a positive control" in page
    flags.remove("--json")
    assert main(["audit", str(honest), *flags, "--out", str(tmp_path), "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "no leak found: " in said
    assert "the smallest AUC that would be seen is 0." in said
    assert "not checked against a positive control" in said


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
    assert "can be separated without asking the model" in found["reasons"][0]


def test_a_reference_model_takes_away_how_hard_an_image_is(
    run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference saw neither side: attacks find nothing on it, and less its scores they do."""
    rng = np.random.default_rng(5)
    other = tmp_path / "others"
    other.mkdir()
    np.savez(other / "images.npz", images=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8))
    (other / "recipe.yaml").write_text(RECIPE)
    reference = trained(other, "reference", 0.5, "--stages.whole.images", 320)
    capsys.readouterr()  # what training said
    flags = ["--attacks", "loss", "--samples", "8", "--json", "--quiet", "--no-control"]
    flags += ["--against", str(reference), "--out", str(tmp_path / "audit")]
    assert main(["audit", str(run), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controls"]["null"]["reference"]["passed"]
    low, high = (found["controls"]["null"]["reference"]["auc"]["loss"][k] for k in ("low", "high"))
    assert low < 0.5 < high
    assert set(found["membership"]) == {"loss", "loss, calibrated"}
    assert found["membership"]["loss, calibrated"]["auc"]["value"] > 0.9
    assert found["tests"] == 2 + 4 + 2
    assert f"--against {reference}" in (tmp_path / "audit" / "audit.html").read_text()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_model_is_asked_in_the_same_precision(
    precision: Precision, run: Path, honest: Path
) -> None:
    loaded = model.load(honest, device="cpu", precision=precision)
    setup = SimpleNamespace(loaded=loaded, subsets=())  # nothing that it may not have seen
    assert load_reference(run, setup).precision == precision


def test_a_reference_that_has_seen_a_side_is_refused(
    run: Path, honest: Path, trained: Path, wrong: Callable[..., str]
) -> None:
    assert "was trained on images of this audit" in wrong("audit", run, "--against", honest)
    assert "its images, patches or space are others" in wrong("audit", run, "--against", trained)
    assert "no such folder" in wrong("audit", run, "--against", "reference")


def test_copies_are_looked_for_in_features_if_asked(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    class Pooled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    torch.jit.script(Pooled()).save(str(tmp_path / "pooled.pt"))
    flags = ["--attacks", "sima", "--samples", "8", "--json", "--quiet", "--no-control"]
    flags += ["--features", "torchscript", "--weights-file", str(tmp_path / "pooled.pt")]
    assert main(["audit", str(honest), *flags, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["copies"]["spaces"]) == ["pixels", "torchscript"]
    assert found["tests"] == 1 + 2 * 4 + 2
    assert found["copies"]["spaces"]["torchscript"]["training_images"] == 40
    assert "In the features of torchscript" in (tmp_path / "audit.html").read_text()


def test_a_moved_run_is_audited_by_what_it_recorded(
    honest: Path,
    place: Path,
    tmp_path: Path,
    wrong: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its folder and its images lie elsewhere, some of these are lost, and others came."""
    run = shutil.copytree(honest, tmp_path / "run", ignore=shutil.ignore_patterns("audit"))
    recipe = run / "config.yaml"
    recipe.write_text(recipe.read_text().replace(str(place), str(tmp_path / "gone")))
    assert "add --data DATA, where they are" in wrong("audit", run)
    pixels = np.load(place / "images.npz")["images"]
    others = np.random.default_rng(7).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "there.npz", images=np.concatenate([pixels[5:], others]))
    flags = ["--attacks", "sima", "--samples", "8", "--json", "--quiet", "--no-control"]
    assert main(["audit", str(run), "--data", str(tmp_path / "there.npz"), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["of"].values()) == IMAGES - 5  # of those it has recorded, and no others
    (said,) = (note for note in found["notes"] if "lacks" in note)
    assert "there.npz lacks " in said
    page = (run / "audit" / "audit.html").read_text()
    assert f"--data {tmp_path / 'there.npz'}" in page  # in the command that repeats it
    line = wrong("audit", run, "--data", tmp_path / "there.npz", "--members", place / "images.npz")
    assert "leave it out" in line


def test_wrong_use(
    run: Path, honest: Path, wrong: Callable[..., str], trained: Path, tmp_path: Path
) -> None:
    assert "needs 3,000 non-members and there are 64" in wrong("audit", run, "--fpr", 0.001)
    assert "'los' does not exist" in wrong("audit", run, "--attacks", "los")
    images = run.parent / "images.npz"
    both = wrong("audit", run, "--members", images, "--non-members", images)
    assert "members and non-members at once" in both
    assert "1 non-members, and an audit needs 16" in wrong("audit", trained)
    assert "-n 15: an audit needs at least 16 images of each" in wrong("audit", run, "-n", 15)
    assert "--features names" in wrong("audit", run, "--weights-file", images)
    (run / "images.json").rename(tmp_path / "aside.json")
    assert "records no members" in wrong("audit", run)
    (run / "images.json").write_text("{}")
    assert "damaged" in wrong("audit", run)
    (tmp_path / "aside.json").rename(run / "images.json")
