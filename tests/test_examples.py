"""The examples run, and what README and docs say is there is there."""

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import underpaint as up
from tests.conftest import write_pictures
from tools import claims
from underpaint import config
from underpaint.cli import VERBS, parser

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"] + [
    f"docs/{name}.md"
    for name in (
        *("architecture", "audit", "privacy-dp", "sealed", "systems", "trust", "use-your-model"),
        *("studies", "your-images", "clusters", "streaming"),
    )
]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an example in an empty folder; returns its globals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["example"])
    return lambda name: runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def brief(name: str) -> config.Run:
    """The recipe `name`, so short and small that it takes seconds."""
    run = config.preset(name)
    small = {"width": 64, "depth": 3, "heads": 2}
    stages = {stage: {"images": 64, "batch": 32} for stage in run.stages}
    train = {"check_every": -1, "threads": 1}
    changes = {"network": small, "stages": stages, "train": train}
    changes["sampling"] = {"count": 8, "steps": 2}
    return config.from_dict(config.Run, changes, "brief", run)


def code(name: str) -> str:
    """An example without its docstring."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    return text.split('"""', 2)[2].strip()


# --- examples ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook(tmp_path: Path) -> None:
    """All its cells in order, with seconds of training."""
    book = nbformat.read(ROOT / "examples" / "first_steps.ipynb", as_version=4)
    brief = (
        "minutes = None\n"
        "preset = up.preset\n"
        "def small(name):\n"
        "    run = preset(name)\n"
        "    run.stages['whole'].minutes, run.stages['whole'].images = 0, 32\n"
        "    run.network.width, run.network.depth, run.network.heads = 32, 1, 2\n"
        "    run.sampling.steps, run.train.threads, run.train.precision = 2, 1, 'fp32'\n"
        "    run.train.check_every = -1\n"
        "    return run\n"
        "up.preset = small"
    )
    (length,) = (cell for cell in book.cells if cell.source == "minutes = 3")
    length.source = brief
    (place,) = (cell for cell in book.cells if "avatars:pixel-art" in cell.source)
    folder = write_pictures(tmp_path / "images")
    place.source = place.source.replace("avatars:pixel-art", str(folder))
    nbclient.NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [o for o in shown if "image/png" in o.get("data", {})]
    texts = [o["data"]["text/plain"] for o in shown if "text/plain" in o.get("data", {})]
    assert len(pictures) == 2
    assert texts[0] == "<Dataset 24 images of 32×32×3, 2 labels, 23 to train on, 1 held out>"
    assert texts[-1] == "(torch.Size([16, 3, 32, 32]), torch.Size([16]))"
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_train_and_sample(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "preset", brief)
    found = example("train_and_sample.py")
    assert Path("runs/pixel-art/report.html").is_file()
    assert found["heads"].shape == (8, 32, 32, 3)
    assert found["heads"].dtype == np.uint8
    assert found["clean"].shape == found["x0"].shape == (8, 3, 32, 32)
    assert found["clean"].isfinite().all()


def test_masks_alone_hides_three_quarters(example: Any) -> None:
    found = example("masks_alone.py")
    images = found["images"].reshape(2, 4, 32, 32, 3)  # row, kind
    grey = (images == 128).all(axis=-1).mean(axis=(2, 3))  # share of the pixels
    assert (grey[:, 0] < 0.1).all()
    assert (grey[:, 1:] >= 0.75).all()
    with Image.open("masks.png") as picture:
        assert picture.width > picture.height > 100


def test_network_alone_learns_from_a_quarter_of_the_patches(example: Any) -> None:
    found = example("network_alone.py")
    assert found["x0"].shape == (32, 16, 48)
    assert sum(found["losses"][-10:]) / 10 < 0.8 * found["losses"][0]


def test_dataset_alone(example: Any) -> None:
    found = example("dataset_alone.py")
    assert found["batch"].shape == (32, 32, 32, 3)
    assert not set(found["ids"]) & set(found["images"].held_out_ids)


# --- pages -------------------------------------------------------------------------------------


def test_readme_has_the_example() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert [block.strip() for block in blocks] == [code("train_and_sample.py")]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"(?<!!)\[[^]]*\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [x for x in links if "://" not in x and not (path.parent / x).exists()]
    assert missing == []


def commands(page: str) -> list[str]:
    """Lines of code blocks that call `underpaint`, without their comments."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    starts = (line.strip() for line in lines)
    return [line.partition("#")[0].strip() for line in starts if line.startswith("underpaint ")]


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/your-images.md", "docs/recipes.md", "docs/use-your-model.md"],
)
def test_commands_are_understood(page: str) -> None:
    found = [line for line in commands(page) if line.split()[1] in VERBS]
    assert len(found) >= 3
    for line in found:
        words = shlex.split(line.partition(">")[0].replace("...", ""))[1:]
        own = parser(words[0])
        _, others = own.parse_known_args(words[1:])
        own.refuse(others)  # raises for a flag that does not exist


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w[\w/*]*(?:/|\.py|\.json|\.yaml))`", text.replace("`config.yaml`", ""))
    names = [name for name in names if name not in ("env.json", "images.json", "config.json")]
    assert len(names) > 90
    package = ROOT / "src" / "underpaint"
    there = [package, ROOT]
    assert [n for n in names if not any(list(p.glob(n.rstrip("/"))) for p in there)] == []


def test_architecture_picture_is_drawn_by_its_script() -> None:
    drawn = runpy.run_path(str(ROOT / "tools" / "architecture.py"))
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn["picture"]()
    package = ROOT / "src" / "underpaint"
    boxes = drawn["DATA"] + drawn["TRAINING"] + drawn["SAMPLING"]
    assert [box.file for box in boxes if not (package / box.file).exists()] == []


TABLES = runpy.run_path(str(ROOT / "tools" / "tables.py"))


@pytest.mark.parametrize(
    ("name", "title"), [(name, title) for name, own in TABLES["TABLES"].items() for title in own]
)
def test_tables_are_those_of_the_committed_json(name: str, title: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert TABLES["written"](text, title, TABLES["TABLES"][name][title]()) == text


def test_a_claim_is_stated_as_its_study_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = claims._compute
    monkeypatch.setitem(compute.__globals__, "ROOT", tmp_path)
    assert compute("acceleration", "masked") == ("not measured yet", "–")
    found = {"answer": "pays", "relation": "=", "ratio": 0.431, "low": 0.36, "high": 0.52}
    results = {
        "study": {"budget": 9e13, "tuning": {"trials": 6}},
        "score": "held-out loss",
        "verdicts": {"masked": found | {"seeds": [1, 2, 3]}},
        "by_seconds": {"masked": found | {"answer": "undecided", "ratio": None}},
    }
    path = tmp_path / "studies" / "acceleration" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(results), encoding="utf-8")
    ours, conditions = compute("acceleration", "masked")
    assert ours == "compute: 0.43 (0.36 to 0.52), pays"
    assert "9e+13 training FLOPs, 3 seeds, 6 tuning trials an arm, held-out loss" in conditions
    found |= {"relation": "≤", "ratio": 0.25, "low": None, "high": None}
    path.write_text(json.dumps(results | {"verdicts": {"masked": found | {"seeds": [1]}}}))
    assert compute("acceleration", "masked")[0] == "compute: ≤ 0.25, pays"
    timed = {"masked": {"relation": "=", "ratio": 1.01, "low": 0.92, "high": 1.11}}
    both = {"verdicts": {"masked": found | {"seeds": [1]}}, "by_seconds": timed}
    path.write_text(json.dumps(results | both))
    ours = compute("acceleration", "masked")[0]
    assert ours == "compute: ≤ 0.25, pays; time on one core: 1.01 (0.92 to 1.11)"
    found |= {"answer": "undecided", "ratio": None}
    path.write_text(json.dumps(results | {"verdicts": {"masked": found | {"seeds": [1]}}}))
    assert compute("acceleration", "masked")[0] == "undecided"


def test_where_masks_pay_is_stated_by_the_number_of_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(claims.__dict__, "ROOT", tmp_path)
    (tmp_path / "studies" / "where").mkdir(parents=True)
    cells = [
        {"patches": patches, "ratio": ratio, "relation": relation, "verdict": verdict, "seeds": n}
        for patches, ratio, relation, verdict, n in (
            (256, 0.9, "=", "undecided", 1),
            (256, 0.5, "<", "pays", 3),
            (256, 0.7, "=", "pays", 1),
            (49, 1.3, "=", "does not pay", 1),
        )
    ]
    (tmp_path / "studies" / "where" / "results.json").write_text(json.dumps({"cells": cells}))
    told, conditions = claims._where()
    assert told.endswith(
        "at 49: 1.30 (does not pay); 256: < 0.50 to 0.90 (pays in 2, undecided in 1)"
    )
    assert conditions.endswith("three seeds in 1 of 4 cells")


def test_claims_of_transfer_and_privacy_are_told_as_their_studies_found_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(claims.__dict__, "ROOT", tmp_path)
    for name in ("transfer", "privacy"):
        (tmp_path / "studies" / name).mkdir(parents=True)
    path = tmp_path / "studies" / "transfer" / "results.json"
    assert claims._transfer() == ("not measured yet", "–")
    ratio = {"ratio": 0.512, "low": 0.4, "high": 0.66}
    effects = [
        {"size": size, "arm": "masked", "against": against, "seeds": [1, 2], "frechet_B": about}
        for size, against, about in (
            (100, "scratch", {}),
            (1000, "whole", {}),
            (1000, "scratch", ratio),
        )
    ]
    path.write_text(json.dumps({"effects": effects[:2]}))
    assert claims._transfer() == ("not measured yet", "–")
    path.write_text(json.dumps({"effects": effects}))
    assert claims._transfer()[0] == "0.51 (0.40 to 0.66) of the FD-MobileNetV2"
    ratio["high"] = 1.2
    path.write_text(json.dumps({"effects": effects}))
    assert claims._transfer()[0] == "0.51 (0.40 to 1.20) of the FD-MobileNetV2: undecided"
    told = {"data": {"members": 500}, "claims": []}
    path = tmp_path / "studies" / "privacy" / "results.json"
    path.write_text(json.dumps(told))
    assert claims._privacy() == ("not measured yet", "–")
    for arm, verdict in (("parts", "fails"), ("parts-whole", "fails"), ("public-dp", "holds")):
        told["claims"].append({"arm": arm, "verdict": verdict, "seeds": [1, 2]})  # type: ignore[attr-defined]
    path.write_text(json.dumps(told))
    ours, conditions = claims._privacy()
    assert ours == "of 2 comparisons it holds in 0, fails in 2, 0 undecided"
    assert conditions.endswith("500 members, 2 seeds")
