"""Shadow models take away how hard an image is, and are trained once on complementary halves."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from underpaint import config, cores
from underpaint.cli import main
from underpaint.errors import Interrupted
from underpaint.privacy import shadows
from underpaint.privacy.statistics import auc
from underpaint.training import identities

SHIFT, SPREAD = 1.5, 1.0  # of a score's logarithm: between in and out, and from model to model


def told(models: int, images: int, seed: int, spread: float | np.ndarray = SPREAD) -> dict:
    """Scores of images of very different difficulty, half of which each model has seen."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 5, (images, 1))
    half = [rng.permutation(images) < images // 2 for _ in range(models // 2)]
    inside = np.stack([side for own in half for side in (own, ~own)])
    noise = rng.normal(0, 1, (models, images, 1)) * spread
    shadow = np.exp(difficulty + noise - SHIFT * inside[:, :, None])
    member = rng.permutation(images) < images // 2
    own = rng.normal(0, 1, (images, 1)) * spread
    scores = np.exp(difficulty + own - SHIFT * member[:, None])
    return {"scores": scores, "shadow": shadow, "inside": inside, "member": member}


def found(own: dict) -> float:
    better = shadows.calibrate(own["scores"], own["shadow"], own["inside"])[:, 0]
    return auc(better[own["member"]], better[~own["member"]]).value


def test_few_models_give_the_difference_to_those_that_did_not_see_the_image() -> None:
    """With 2 of 4 outside its variance is 1 + 1/2 of a score's: AUC = Φ(shift / √(2 · 3/2))."""
    own = told(4, 4000, 0)
    raw = auc(own["scores"][own["member"], 0], own["scores"][~own["member"], 0]).value
    assert raw == pytest.approx(stats.norm.cdf(SHIFT / math.sqrt(2 * 26)), abs=0.03)
    assert found(own) == pytest.approx(stats.norm.cdf(SHIFT / math.sqrt(3)), abs=0.02)
    better = shadows.calibrate(own["scores"], own["shadow"], own["inside"])
    outside = np.log(own["shadow"][:, 0][~own["inside"][:, 0]])
    assert better[0] == pytest.approx(np.log(own["scores"][0]) - outside.mean())


def test_more_models_come_near_to_the_likelihood_ratio() -> None:
    """With the means known: AUC = Φ(shift / √2); sixteen models come near, four do not."""
    best = stats.norm.cdf(SHIFT / math.sqrt(2))
    many, few = found(told(32, 4000, 1)), found(told(4, 4000, 1))
    assert few < best - 0.03
    assert many == pytest.approx(best, abs=0.02)


def test_the_ratio_is_that_of_two_normals() -> None:
    own = told(32, 500, 2)
    s, k, out = np.log(own["scores"]), np.log(own["shadow"]), ~own["inside"]
    means = [np.array([k[w[:, i], i, 0].mean() for i in range(500)]) for w in (out, ~out)]
    spreads = [
        math.sqrt(sum(((k[w[:, i], i, 0] - m[i]) ** 2).sum() for i in range(500)) / (500 * 15))
        for w, m in zip((out, ~out), means, strict=True)
    ]
    expected = stats.norm.logpdf(s[:, 0], means[0], spreads[0]) - stats.norm.logpdf(
        s[:, 0], means[1], spreads[1]
    )
    assert shadows.calibrate(own["scores"], own["shadow"], own["inside"])[:, 0] == pytest.approx(
        expected
    )


def test_variances_of_their_own_count_from_many_models_on() -> None:
    """Where models agree on some images and not on others, that is worth knowing."""
    spread = np.where(np.arange(2000) % 2, 0.2, 3.0)[:, None]
    own = told(64, 2000, 3, spread)
    pooled = {**own, "shadow": own["shadow"][:62], "inside": own["inside"][:62]}
    assert found(own) > found(pooled) + 0.02


def test_the_shadows_tell_what_to_expect_of_the_recipe() -> None:
    own = told(4, 400, 4)
    easy = own["shadow"] / np.exp(np.log(own["shadow"]).mean(0))  # as if all were alike
    assert shadows.expected_auc(easy, own["inside"])["least"] > 0.8
    mixed = shadows.expected_auc(easy, np.random.default_rng(0).permuted(own["inside"], axis=1))
    assert mixed["mean"] == pytest.approx(0.5, abs=0.08)


# --- training them ---------------------------------------------------------------------------

RECIPE = """\
space: {patch: 4}
network: {width: 64, depth: 3, heads: 2}
stages:
  masked: {images: 64, mask: patch, rate: 0.5, batch: 8}
  whole: {images: 64, batch: 8, warmup: 16}
train: {threads: 1, check_every: -1, sample_every: -1}
sampling: {count: 4, steps: 2, sampler: euler}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on half of 80 images."""
    folder = tmp_path_factory.mktemp("shadowed")
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8))
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(folder / "cache"))
        flags = ["--config", folder / "recipe.yaml", "--data", folder / "images.npz"]
        flags += ["--channels", 1, "--audit-split", 0.5, "--out", folder / "run", "--quiet"]
        assert main(["train", *map(str, flags)]) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def own_cache(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(run.parent / "cache"))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shadows are trained here, where a test can watch."""
    monkeypatch.setattr(shadows, "_workers", lambda *_: 1)


def flags(run: Path, *more: object) -> list[str]:
    own = ["audit", run, "--against", "shadow", "--attacks", "loss,pia", "--samples", 4]
    return [str(word) for word in (*own, "--no-control", "--json", "--quiet", *more)]


@pytest.mark.usefixtures("one_process")
def test_shadows_are_trained_on_complementary_halves_once_and_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    real = shadows.train

    def stopped(recipe: Any, out: Path, **options: Any) -> Path:
        calls.append({"recipe": recipe, "out": out, **options})
        if len(calls) == 2:  # Ctrl-C in the second
            raise Interrupted("stopped")
        return real(recipe, out, **options)

    monkeypatch.setattr(shadows, "train", stopped)
    assert main(flags(run, "--shadows", 2)) == 130
    capsys.readouterr()
    assert main(flags(run, "--shadows", 2)) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(calls) == 3  # the first was finished, the second was done again
    assert calls[1]["out"] == calls[2]["out"]
    stages = calls[0]["recipe"].stages
    assert [stage.images for stage in stages.values()] == [64, 64]
    assert [stage.mask for stage in stages.values()] == ["patch", "none"]
    sums = [set((call["out"].parent / "images.txt").read_text().split()) for call in calls[::2]]
    known = identities.read(run)
    assert sums[0] | sums[1] == {sha.tobytes().hex() for part in known for sha in part}
    assert not sums[0] & sums[1]
    assert [len(own) for own in sums] == [40, 40]
    for call, own in zip(calls[::2], sums, strict=True):
        trained = identities.read(call["out"]).trained
        assert {sha.tobytes().hex() for sha in trained} == own
    assert set(found["membership"]) == {"loss", "pia", "loss, shadows", "pia, shadows"}
    assert found["shadows"]["models"] == 2
    assert found["tests"] == 4 + 4 + 2
    page = (run / "audit" / "audit.html").read_text()
    assert "2 models trained for this audit by the same recipe" in page
    assert "--against shadow --shadows 2" in page
    # all of it is there now
    assert main(flags(run, "--shadows", 2)) == 0
    assert len(calls) == 3
    assert json.loads(capsys.readouterr().out)["membership"] == found["membership"]


@pytest.mark.usefixtures("one_process")
def test_shorter_shadows_are_other_shadows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def noted(recipe: Any, out: Path, **options: Any) -> Path:
        calls.append(recipe)
        raise Interrupted("enough")

    monkeypatch.setattr(shadows, "train", noted)
    assert main(flags(run, "--shadows", 2, "--shadow-images", 32)) == 130
    assert [(s.images, s.warmup) for s in calls[0].stages.values()] == [(16, 0), (16, 4)]


@pytest.mark.usefixtures("one_process")
def test_shadows_see_as_many_images_as_the_run_did(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage ended early, whatever its recipe says."""
    calls: list[Any] = []

    def noted(recipe: Any, out: Path, **options: Any) -> Path:
        calls.append(recipe)
        raise Interrupted("enough")

    early = Path(shutil.copytree(run, tmp_path / "early"))
    records = [json.loads(line) for line in (early / "metrics.jsonl").read_text().splitlines()]
    ends = [r for r in records if r["kind"] == "stage" and r["event"] == "end"]
    ends[-1]["images"] -= 24
    (early / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(shadows, "train", noted)
    assert main(flags(early, "--shadows", 2)) == 130
    assert [stage.images for stage in calls[0].stages.values()] == [64, 40]


def test_processes_of_their_own_train_the_same_shadows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memberships = []
    for workers in (1, 2):
        monkeypatch.setenv("UNDERPAINT_CACHE", str(run.parent / f"cache-{workers}"))
        monkeypatch.setattr(shadows, "_workers", lambda *_, workers=workers: workers)
        assert main(flags(run, "--shadows", 2, "--shadow-images", 32)) == 0
        memberships.append(json.loads(capsys.readouterr().out)["membership"])
    assert memberships[0] == memberships[1]


def test_as_many_at_once_as_threads_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available", lambda: 8)
    for threads, count, workers in ((2, 16, 4), (1, 2, 2), (16, 4, 1), (0, 4, 1)):
        recipe = config.Run(train=config.Train(threads=threads, device="cpu"))
        assert shadows._workers(recipe, count) == workers


def test_wrong_use(run: Path, wrong: Callable[..., str], tmp_path: Path) -> None:
    assert "give a number from 2 up" in wrong("audit", run, "--against", "shadow", "--shadows", 1)
    assert "add that" in wrong("audit", run, "--shadows", 4)
    assert "add that" in wrong("audit", run, "--shadow-images", 400, "--against", run)
    card = next((run / "checkpoints").glob("*/config.json")).parent
    images = run.parent / "images.npz"
    alone = tmp_path / "model"
    alone.mkdir()
    for file in ("config.json", "ema.safetensors", "model.safetensors"):
        (alone / file).write_bytes((card / file).read_bytes())
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "o.npz", images=rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    lists = ["--members", images, "--non-members", tmp_path / "o.npz", "--against", "shadow"]
    assert "needs the run's recipe" in wrong("audit", alone, *lists)
    environment = json.loads((run / "env.json").read_text())
    gone = environment | {"start": str(tmp_path / "gone")}
    (run / "env.json").write_text(json.dumps(gone))
    assert "gone, which is not there" in wrong("audit", run, "--against", "shadow")
    (run / "env.json").write_text(json.dumps(environment))
