"""Nothing is believed from a stranger: each hostile file is one line, before it costs anything.

Here are the files that a run, a model or a data set of somebody else brings; archives and images
are in data/test_left_out.py and data/test_bounds.py, YAML in test_yaml.py, sealed files in
sealed/test_sealed.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from underpaint import model, model_folder
from underpaint.errors import UserError
from underpaint.report import page
from underpaint.training.checkpointing import read_optimizer, read_progress
from underpaint.training.provenance import recorded

WRONG = (None, "x", -1, 1.5, True, [], {}, [1], {"a": 1}, 10**30, float("nan"), float("inf"))


def taken(path: Path, texts: list[str], read: Callable[[], object]) -> list[str]:
    """Of the texts in a file those that are not refused in one line."""
    found = []
    for text in texts:
        path.write_text(text)
        try:
            read()
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                found.append(str(error))
        else:
            found.append(text)
    return found


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    newest = model_folder.newest(trained).folder
    return Path(shutil.copytree(newest, tmp_path / "run" / "checkpoints" / newest.name))


def hostile(values: dict[str, Any], free: tuple[str, ...] = ()) -> list[str]:
    """Every field missing, and with each value that it cannot have; another one; no object."""
    found = [json.dumps({k: v for k, v in values.items() if k != name}) for name in values]
    for name, right in values.items():
        for wrong in WRONG if name not in free else ():
            empty = wrong in ([], {}, True) or name in ("norms", "sums")
            fits = type(wrong) is type(right) and empty
            fits |= isinstance(right, float) and wrong in (1.5, 10**30)
            if not fits:
                found.append(json.dumps(values | {name: wrong}))
    found += [json.dumps(values | {"more": 1}), "", "[]", "null", "[" * 200_000, '{"a":' * 100_000]
    return found


def test_a_state_that_nobody_wrote(checkpoint: Path) -> None:
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    assert read_progress(checkpoint).images == state["images"]
    assert taken(path, hostile(state), lambda: read_progress(checkpoint)) == []


def test_an_environment_that_nobody_wrote(trained: Path, tmp_path: Path) -> None:
    env = json.loads((trained / "env.json").read_text())
    right = {name: env[name] for name in ("data", "precision")}
    texts = [text for text in hostile(right) if '"more"' not in text]  # env.json holds more
    assert taken(tmp_path / "env.json", texts, lambda: recorded(tmp_path)) == []


def test_a_recipe_and_records_that_nobody_wrote(
    trained: Path, tmp_path: Path, wrong: Callable[..., str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for name, texts in {
        "config.yaml": ("", "train:\n\tseed: 1\n", "hello: [1, {"),
        "images.json": ("[1]", '{"trained": [[1]], "held_out": []}', "{}", "[" * 200_000),
        "env.json": ("[1]", '{"parameters": "x"}', '{"start": 3}', "[" * 200_000),
    }.items():
        before = (run / name).read_text()
        for text in texts:
            (run / name).write_text(text)
            wrong("train", "--resume", "--out", run, "--quiet")
            if name != "env.json":
                wrong("audit", run, "--quiet")
            if name == "env.json":
                wrong("report", run)
            if name == "config.yaml":
                wrong("evaluate", run, "--quiet")
        (run / name).write_text(before)
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(recipe.replace("  whole:", "  other:"))
    line = wrong("train", "--resume", "--out", run, "--quiet")
    assert "stage other: is in" in line
    assert "the run began with masked, whole" in line


def test_a_model_is_read_while_its_run_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that was the newest is cleared between finding and reading it."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    old, new = sorted((run / "checkpoints").glob("0*"))[-2:]
    (run / "checkpoints" / "LATEST").write_text(old.name)
    read = model_folder.read_weights

    def reading(folder: Path, weights: model_folder.Weights = "ema") -> dict[str, torch.Tensor]:
        if folder == old:
            shutil.rmtree(old)
            (run / "checkpoints" / "LATEST").write_text(new.name)
        return read(folder, weights)

    monkeypatch.setattr(model, "read_weights", reading)
    found = model.load(run, device="cpu").denoiser.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in read(new).items())


def test_a_model_that_nobody_trained(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    card = json.loads(path.read_text())
    spec = card["model"]
    texts = [t for t in hostile(card, ("underpaint",)) if '"underpaint"' in t and '"more"' not in t]
    texts += ["", "[]", "null", "[" * 200_000]
    for change in (
        {"size": [10**9, 10**9]},
        {"size": [0, 8]},
        {"size": [8]},
        {"size": [16, 16]},
        {"channels": 2},
        {"channels": 10**9},
        {"label_names": ["dark", "dark"]},
        {"label_names": [str(i) for i in range(10**5)]},
        {"label_names": "dark"},
        {"space": spec["space"] | {"kind": "pixel"}},
        {"space": spec["space"] | {"patch": 0}},
        {"space": spec["space"] | {"patch": 10**9}},
        {"space": spec["space"] | {"kind": "wavelets", "levels": 10**6}},
        {"network": spec["network"] | {"kind": "no"}},
        {"network": spec["network"] | {"width": 10**9, "heads": 1}},
        {"network": spec["network"] | {"width": -64}},
        {"network": spec["network"] | {"heads": 0}},
        {"network": spec["network"] | {"depth": 10**9}},
        {"network": spec["network"] | {"depth": 60_000}},
        {"network": spec["network"] | {"mlp_ratio": 1e9}},
        {"network": spec["network"] | {"options": {"x": 1}}},
        {"network": spec["network"] | {"kind": "unet", "options": {"multipliers": [1] * 60}}},
        {"network": spec["network"] | {"kind": "unet", "options": {"multipliers": [10**9] * 4}}},
        {"network": spec["network"] | {"kind": "hourglass", "options": {"local_depth": 10**6}}},
        {"noise": spec["noise"] | {"process": "no"}},
        {"noise": spec["noise"] | {"sigma_data": float("nan")}},
        {"noise": spec["noise"] | {"steps": -5}},
        {"sampling": spec["sampling"] | {"steps": 0}},
        {"more": 1},
    ):
        texts.append(json.dumps(card | {"model": spec | change}))
    for digests in ({"../../secret": "0" * 64}, {"/dev/zero": "0" * 64}, {"ema.safetensors": "0"}):
        texts.append(json.dumps(card | {"sha256": digests}))
    assert taken(path, texts, lambda: model.load(checkpoint)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, checkpoint: Path) -> None:
    for name in ("ema", "model"):
        path = checkpoint / f"{name}.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[0] = value
        save_file(tensors, path)
    card = json.loads((checkpoint / "config.json").read_text())
    card["sha256"] = {name: model_folder.sha256(checkpoint / name) for name in card["sha256"]}
    (checkpoint / "config.json").write_text(json.dumps(card))
    for name in ("ema", "model"):
        with pytest.raises(UserError, match="not finite"):
            model.load(checkpoint, weights=name)  # type: ignore[arg-type]


def test_an_optimizer_that_nobody_wrote(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.pt"
    right = read_optimizer(checkpoint)
    name, moments = next(iter(right.items()))
    moment = next(iter(moments))
    wrong: list[Any] = [None, [], 3, {"a": 1}, {1: {}}, {name: [1]}, {name: {moment: 1}}]
    wrong += [{name: {moment: "x"}}, {name: {1: torch.zeros(1)}}, {name: {moment: [1.0]}}]
    wrong += [{name: {moment: torch.full((3,), value)}} for value in (torch.nan, torch.inf)]
    wrong += [{name: {moment: torch.zeros(3).to_sparse()}}, torch.zeros(3), (right,), {"": None}]
    for state in wrong:
        torch.save(state, path)
        with pytest.raises(UserError, match=r"optimizer\.pt"):
            print(state, read_optimizer(checkpoint))
    for content in (b"", b"PK", b"x" * 1000, path.read_bytes()[:-300]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"optimizer\.pt"):
            read_optimizer(checkpoint)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"kind": 3}',
        '{"kind": "step", "images": "x"}',
        '{"kind": "stage", "seconds": -1}',
        "[" * 100_000,
        '{"kind": "sample", "file": 3}',
        '{"kind": "sample"}',
        '{"kind": "check"}',
    ],
)
def test_metrics_that_nobody_wrote(line: str, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    metrics = run / "metrics.jsonl"
    metrics.write_text(f"{line}\n{metrics.read_text()}")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        page.build(run)
