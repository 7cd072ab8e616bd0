"""What a model card says, and what it never says."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import underpaint as up
from tests import systems
from tests.conftest import SMALL, write_pictures
from underpaint import config, model, model_folder
from underpaint.errors import UserError
from underpaint.interop import card
from underpaint.training import identities


def written(source: str | Path, folder: Path, name: str | None = None, **how: object) -> str:
    """The card of the model in `source`."""
    folder.mkdir()
    up.load(source, device="cpu", **how).write(folder, name=name)  # type: ignore[arg-type]
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be written to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def digests(run: Path) -> dict[str, str]:
    return dict(model_folder.read_card(model_folder.find(run))["sha256"])


def scored(run: Path, sha256: str, source: str) -> None:
    """Scores as `evaluate` keeps them (its test pins their keys)."""
    numbers = {"frechet": 12.345, "frechet_interval": [11.0, 13.5], "kernel": 0.01234}
    numbers |= dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
    protocol = {
        "extractor": "mobilenetv2",
        "extractor_sha256": "b0353104" * 8,
        "scores": ["FD-MobileNetV2", "KD-MobileNetV2"],
        "features": 1280,
        "count": 64,
        "reference": {"source": source, "key": "0" * 64},
        "sampling": {"sampler": "heun", "steps": 10, "guidance": 1.0},
        "weights": "ema",
        "weights_sha256": sha256,
        "seeds": [0, 63],
    }
    scores = {"train": numbers, "floor": numbers}
    found = {"scores": scores, "protocol": protocol, "warnings": [source]}
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "scores-0.json").write_text(json.dumps(found))


def audited(run: Path, sha256: dict[str, str], verdict: str = "leak found") -> None:
    """An audit as `underpaint audit` keeps it."""
    attack = {"p_value": 0.2, "auc": {"value": 0.51, "low": 0.4, "high": 0.62}}
    best = {"p_value": 1e-6, "auc": {"value": 0.87654, "low": 0.8, "high": 0.95}}
    found = {
        "sha256": sha256,
        "weights": "ema",
        "verdict": verdict,
        "reasons": [],
        "findings": ["membership by pia: AUC 0.877"],
        "members": 200,
        "non_members": 190,
        "membership": {"loss": attack, "pia": best},
        "source": str(run),
    }
    (run / "audit").mkdir(exist_ok=True)
    (run / "audit" / "audit.json").write_text(json.dumps(found))


# --- the header --------------------------------------------------------------------------------


def test_the_header_is_that_of_the_hub(trained: Path, tmp_path: Path) -> None:
    """Read by the Hub's own parser, which has its server's rule for the header."""
    parsed = ModelCard(written(trained, tmp_path / "card", "org/heads"))
    assert parsed.data.to_dict() == {
        "license": "other",
        "license_name": "not-chosen-yet",
        "library_name": "underpaint",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["underpaint", "diffusion", "image-generation"],
    }
    assert parsed.text.startswith("\n# org/heads\n")
    assert "the owner of the model still has to choose one" in parsed.text
    assert "The owner of this model has to choose one" in parsed._content


# --- what it says ------------------------------------------------------------------------------


def test_what_it_was_trained_on_and_how(trained: Path, tmp_path: Path) -> None:
    text = written(trained, tmp_path / "card", "org/heads")
    images = identities.read(trained)
    lines = "".join(f"{digest.tobytes().hex()}\n" for digest in images.trained)
    counts = len(images.trained), len(images.held_out)
    assert "- {} images; {} more were held out".format(*counts) in text
    assert f"`{hashlib.sha256(lines.encode()).hexdigest()}`" in text
    assert "- Size: 8×8 pixels, in colour; labels: 2." in text
    assert "Its labels: `dark`, `light`." in text
    assert "- Network: dit of width 64 and depth 3, on patches of 4×4 pixels." in text
    assert "- Stage `masked`: 32 images, 50 % of their patches hidden (mask: patch)." in text
    assert "- Stage `whole`: 32 images, whole." in text
    assert "It began with random weights and saw 64 images." in text
    assert 'up.load("org/heads")' in text
    assert "\nunderpaint sample org/heads -n 16 --out samples.png\n" in text
    assert "![32 samples](samples.png)" in text
    with Image.open(tmp_path / "card" / "samples.png") as grid:
        assert grid.width > grid.height > 200  # eight columns, four rows and their labels


def test_the_recipe_trains_again(trained: Path, tmp_path: Path) -> None:
    """It is whole, but for the places of the images."""
    text = written(trained, tmp_path / "card")
    block = re.search(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    assert block
    path = tmp_path / "recipe.yaml"
    path.write_text(block[1])
    before = config.load(trained / "config.yaml")
    assert before.data.source
    blank = dataclasses.replace(before.data, source="")
    assert config.load(path) == dataclasses.replace(before, data=blank)


def test_nothing_names_a_file_or_a_place(tmp_path: Path) -> None:
    """Neither the images' files, nor the folders they are in, nor keys and lists beside them."""
    secret = tmp_path / "Doe-family"
    write_pictures(secret / "portraits")
    for path in (secret / "portraits").rglob("*.png"):
        path.rename(path.with_name(f"jane-{path.name}"))
    write_pictures(secret / "cousins")
    files = (secret / "portraits").rglob("*.png")
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    (secret / "allowed.txt").write_text("".join(f"{digest}\n" for digest in sums))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        SMALL.replace("images: 32", "images: 8")
        + f"data: {{source: {secret}/portraits, held_out: {secret}/cousins, "
        f"only: {secret}/allowed.txt}}\n"
    )
    run = up.train(str(recipe), secret / "run", quiet=True, write_report=False)
    scored(run, digests(run)["ema.safetensors"], f"{secret}/portraits")
    audited(run, digests(run))
    text = written(run, tmp_path / "card")
    shown = "".join(path.read_bytes().decode("latin-1") for path in (tmp_path / "card").iterdir())
    assert "FD-MobileNetV2" in text
    for word in ("Doe", "jane", "portraits", "cousins", "allowed", ".txt", str(tmp_path), "run/"):
        assert word not in shown, word
    names = {path.name for path in secret.rglob("*") if path.suffix in (".png", ".safetensors")}
    assert len(names) > 24
    assert not {name for name in names if name in shown} - {"model.safetensors"}
    assert {p.name for p in (tmp_path / "card").iterdir()} == set(model_folder.SAVED)


def test_of_private_images_no_hash_is_told(run: Path, tmp_path: Path) -> None:
    recipe = config.load(run / "config.yaml")
    recipe.stages["whole"].dp = config.DP(epsilon=8, delta=1e-5)
    (run / "config.yaml").write_text(config.to_yaml(recipe))
    folder = model_folder.find(run)
    state = json.loads((folder / "state.json").read_text())
    state["privacy"] = {"whole": {"epsilon": 8.0, "delta": 1e-05, "spent_steps": 4}}
    (folder / "state.json").write_text(json.dumps(state))
    text = written(run, tmp_path / "card")
    assert "- The stage `whole` is differentially private: epsilon 8 at delta 1e-05." in text
    assert "Which images these were" not in text


def test_scores_of_these_weights_with_their_protocol(run: Path, tmp_path: Path) -> None:
    source = config.load(run / "config.yaml").data.source
    assert "No scores are kept for these weights" in written(run, tmp_path / "none")
    scored(run, "0" * 64, source)
    assert "No scores are kept for these weights" in written(run, tmp_path / "others")
    scored(run, digests(run)["ema.safetensors"], source)
    text = written(run, tmp_path / "card")
    assert "| FD-MobileNetV2 | 12.35 (11 to 13.5) | 12.35 (11 to 13.5) |" in text
    assert "| KD-MobileNetV2 | 0.0123 | 0.0123 |" in text
    assert "64 images per side; samples against the images of its own run; “real images”:" in text
    assert "`heun`, `10` steps, guidance `1.0`, seeds 0 to 63, weights `ema`" in text
    assert "Fewer images than features (1280) bias them upwards." in text
    assert "No scores are kept" in written(run, tmp_path / "model", weights="model")
    scored(run, digests(run)["ema.safetensors"], "/elsewhere")
    text = written(run, tmp_path / "elsewhere")
    assert "samples against other images than those of its run" in text
    assert "/elsewhere" not in text


def test_the_audit_or_that_there_was_none(run: Path, tmp_path: Path) -> None:
    assert "**No audit was made**: nobody has tested" in written(run, tmp_path / "none")
    audited(run, digests(run) | {"ema.safetensors": "0" * 64})
    text = written(run, tmp_path / "others")
    assert "**No audit was made** of these weights (there is one of others)" in text
    audited(run, digests(run))
    text = written(run, tmp_path / "card")
    assert "An audit was made: **leak found**. 200 images that it was trained on and 190" in text
    assert "single images, `pia`, has an AUC of 0.877 (0.800 to 0.950; 0.5 is chance)" in text
    assert "- `membership by pia: AUC 0.877`" in text
    assert "(there is one of others)" in written(run, tmp_path / "model", weights="model")


def test_what_a_card_is_made_of_is_damaged(run: Path, tmp_path: Path) -> None:
    scored(run, digests(run)["ema.safetensors"], "x")
    path = run / "evaluation" / "scores-0.json"
    found = json.loads(path.read_text())
    found["scores"]["train"]["frechet"] = "low"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"scores-0\.json: is damaged"):
        written(run, tmp_path / "scores")
    path.unlink()
    audited(run, digests(run))
    (run / "audit" / "audit.json").write_text('{"verdict": 3}')
    with pytest.raises(UserError, match=r"audit\.json: is damaged"):
        written(run, tmp_path / "audit")


# --- models without a run ------------------------------------------------------------------------


def test_the_packaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "ROWS", 1)
    text = written("pretrained:lorelei", tmp_path / "card", "org/heads")
    assert "It is `pretrained:lorelei`, which comes with underpaint. What is said of it" in text
    assert "| training images | the 9,500 of `avatars:lorelei` that are not held out |" in text
    assert "932,620 parameters" in text
    assert "images of 32×32 pixels in colour, by label" in text
    assert "**No audit was made**" in text
    assert ModelCard(text).data.library_name == "underpaint"


def test_weights_without_their_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder.find(trained), tmp_path / "alone")
    text = written(tmp_path / "alone", tmp_path / "card")
    assert "Not known: it was saved without the run that trained it." in text
    assert str(tmp_path) not in text


def test_weights_that_were_changed_have_not_the_runs_scores(run: Path, tmp_path: Path) -> None:
    scored(run, digests(run)["ema.safetensors"], "x")
    loaded = up.load(run, device="cpu")
    next(loaded.backbone.parameters()).data += 1e-3
    text = (loaded.save(tmp_path / "saved") / "README.md").read_text()
    assert "they were changed in Python since" in text
    assert "FD-MobileNetV2" not in text


def test_a_model_of_latents_names_no_place(tmp_path: Path) -> None:
    """Its autoencoder stays where it is: whoever loads the model gives it."""
    built = model.build(systems.spec("dit", "latents", "edm", tmp_path / "my-vae"))
    built.save(tmp_path / "saved")
    assert "my-vae" not in (tmp_path / "saved" / "config.json").read_text()
    loaded = up.load(tmp_path / "saved", device="cpu")
    with pytest.raises(UserError, match="its autoencoder does not come with it; add --vae"):
        loaded.sample(1)
    text = written(tmp_path / "saved", tmp_path / "card")
    assert 'up.load("ORG/NAME", vae="FOLDER")' in text
    assert "![" not in text
    assert not (tmp_path / "card" / "samples.png").exists()


# --- Markdown ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("plain", "`plain`"),
        ("<b>|*_", "`<b>|*_`"),
        ("a`b", "`` a`b ``"),
        ("two\nlines", "`two\ufffdlines`"),
        ("`", "`` ` ``"),
        ("\x1b[31m", "`\ufffd[31m`"),
    ],
)
def test_labels_are_no_markup(label: str, shown: str) -> None:
    assert card.code(label) == shown


def test_a_text_cannot_end_its_block() -> None:
    text = yaml.safe_dump({"labels": ["```", "a\n````\nb"]})
    block = card.fenced(text, "yaml")
    fence = block.split("yaml", 1)[0]
    assert fence == "`" * 5
    assert block.endswith(f"\n{fence}")


def test_grids_of_many_labels_and_of_few(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = up.load(trained, device="cpu")
    for count, columns in ((1, 8), (3, 6), (5, 5), (8, 8), (30, 8)):
        names = tuple(f"label {i}" for i in range(count))
        seen: list[object] = []
        monkeypatch.setattr(type(loaded), "label_names", names)
        monkeypatch.setattr(
            type(loaded),
            "sample",
            lambda self, n, seen=seen, **how: (
                seen.append((n, how["labels"])) or np.zeros((n, 8, 8, 3), np.uint8)
            ),
        )
        assert card._draw(loaded, tmp_path / f"{count}.png") == 4 * columns
        assert seen == [(4 * columns, [names[i % min(count, 8)] for i in range(columns)])]
