"""Weights that another run began."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training.runs import metrics, weights
from underpaint import config
from underpaint.errors import UserError
from underpaint.evaluation.validation import OverfitCheck
from underpaint.model import build
from underpaint.model_folder import find, read_spec
from underpaint.training import adopt, train
from underpaint.training.warm_start import adapt


def spec(**changes: object) -> config.ModelSpec:
    network = config.Network(width=64, depth=3, heads=2)
    base = config.ModelSpec(size=(16, 16), label_names=("a", "b"), network=network)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["uvit", "dit"])
def test_labels_are_matched_by_name(kind: str) -> None:
    network = config.Network(kind=kind, width=64, depth=3, heads=2)
    old = build(spec(network=network))
    state = old.denoiser.backbone.state_dict()
    new = build(spec(network=network, label_names=("c", "b")))
    adapted, notes = adapt(state, old.spec, new, "source")
    fresh = new.denoiser.backbone.state_dict()["labels.weight"]
    table = adapted["labels.weight"]
    assert torch.equal(table[1], state["labels.weight"][1])
    assert torch.equal(table[0], fresh[0])
    assert torch.equal(table[2:], state["labels.weight"][2:])  # the null label, where it has a row
    assert notes == ["1 of 2 labels carried over; the rest are new"]
    new.denoiser.backbone.load_state_dict(adapted)


@pytest.mark.parametrize("kind", ["uvit", "dit"])
@pytest.mark.parametrize(("names", "later"), [(("a", "b"), ()), ((), ("a", "b"))])
def test_labels_may_come_and_go(kind: str, names: tuple, later: tuple) -> None:  # type: ignore[type-arg]
    network = config.Network(kind=kind, width=64, depth=3, heads=2)
    old, new = (build(spec(network=network, label_names=n)) for n in (names, later))
    adapted, _ = adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")
    new.denoiser.backbone.load_state_dict(adapted)


def test_another_size_interpolates_positions_and_says_so() -> None:
    old, new = build(spec()), build(spec(size=(32, 24)))
    adapted, notes = adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")
    assert notes == ["positions interpolated from 4×4 to 8×6 patches"]
    new.denoiser.backbone.load_state_dict(adapted)


def test_presets_for_few_images_start_from_the_packaged_network() -> None:
    packaged = read_spec(find("pretrained:lorelei"))
    old = build(packaged)
    for count in (300, 3000, 30_000):
        run = config.preset(f"small-{count}")
        of = {"space": run.space, "network": config.network_of(run), "noise": run.noise}
        new = build(dataclasses.replace(packaged, size=(64, 64), **of))
        adapted, notes = adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")
        assert notes == ["patches resampled from 2×2 to 4×4 pixels"]
        new.denoiser.backbone.load_state_dict(adapted)


@pytest.mark.parametrize("kind", ["dit", "hourglass", "uvit"])
def test_an_enlarged_image_in_larger_patches_is_the_same_to_the_network(kind: str) -> None:
    network = config.Network(kind=kind, width=64, depth=1, heads=2)
    noise = config.Noise(prediction="x0")
    old = build(spec(network=network, noise=noise, space=config.Space(patch=2)))
    torch.nn.init.normal_(old.denoiser.backbone.head.weight)  # type: ignore[union-attr]
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    larger = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    labels = ["a", "b"]
    small = old.denoise(image, 0.5, labels=labels)
    new = build(spec(network=network, noise=noise, size=(32, 32), space=config.Space(patch=4)))
    adapted, _ = adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")
    new.denoiser.backbone.load_state_dict(adapted)
    wanted = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(new.denoise(larger, 0.5, labels=labels), wanted)
    back, _ = adapt(adapted, new.spec, build(old.spec), "source")
    for name in ("embed.weight", "head.weight", "head.bias"):
        torch.testing.assert_close(back[name], old.denoiser.backbone.state_dict()[name])


def test_other_patches_on_another_grid_are_refused() -> None:
    old, new = build(spec()), build(spec(size=(24, 24), space=config.Space(patch=3)))
    with pytest.raises(
        UserError, match=r"space\.patch is 4, the recipe's is 3; set --space\.patch 4"
    ):
        adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": config.Network(width=96, depth=3, heads=2)}, "network.width is 64"),
        ({"network": config.Network(width=64, depth=5, heads=2)}, "network.depth is 3"),
        ({"space": config.Space(patch=2)}, "space.patch is 4"),
        ({"noise": config.Noise(prediction="eps")}, "noise.prediction is flow"),
        ({"channels": 1}, "data.channels is 3"),
    ],
)
def test_the_first_mismatch_is_named(changes: dict, named: str) -> None:  # type: ignore[type-arg]
    old, new = build(spec()), build(spec(**changes))
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        adapt(old.denoiser.backbone.state_dict(), old.spec, new, "source")


def test_a_run_goes_on_from_another(recipe: config.Run, tmp_path: Path) -> None:
    first = train(recipe, tmp_path / "first", quiet=True)
    wide = dataclasses.replace(recipe, network=config.Network(width=96))
    adopted = adopt(wide, str(first))
    assert adopted.network == recipe.network
    assert adopted.data.size == (16, 16)
    adopted.stages = {"whole": dataclasses.replace(recipe.stages["whole"], learning_rate=1e-12)}
    second = train(adopted, tmp_path / "second", start=str(first), quiet=True)
    a, b = weights(first), weights(second)
    # it begins from the average, and at this learning rate it stays there
    torch.testing.assert_close(b["model/head.weight"], a["ema/head.weight"], atol=1e-6, rtol=0)
    assert read_spec(find(second)).label_names == ("0", "1")
    with pytest.raises(UserError, match=r"network\.width is 64, the recipe's is 96"):
        train(wide, tmp_path / "third", start=str(first), quiet=True)
    assert not (tmp_path / "third").exists()


def test_the_first_grid_and_check_are_of_the_weights_it_starts_from(
    recipe: config.Run, tmp_path: Path
) -> None:
    first = train(recipe, tmp_path / "first", quiet=True)
    recipe.stages = {"whole": recipe.stages["whole"]}
    recipe.train.check_every = recipe.train.sample_every = 0
    runs = {
        name: train(recipe, tmp_path / name, start=start, quiet=True, make_check=OverfitCheck.of)
        for name, start in (("tuned", str(first)), ("fresh", None))
    }
    for name, begins in (("tuned", True), ("fresh", False)):
        records = metrics(runs[name])
        assert (min(r["images"] for r in records if r["kind"] == "check") == 0) == begins
        assert (runs[name] / "samples" / "images_000000000000.png").is_file() == begins
