"""The folder of the page: what is in it, and that it is what it says."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.interop.small import build
from underpaint import model as models
from underpaint.errors import UserError
from underpaint.interop import export, onnx, web
from underpaint.io import mark
from underpaint.model import Model
from underpaint.training.checkpointing import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the shared export instead of a new one, which takes seconds."""

    def copied(model: Model, target: Path, half: bool) -> dict[str, object]:
        for name in ("model.onnx", "model.json"):
            shutil.copy(folder / name, target / name)
        return {"opset": onnx.OPSET}

    monkeypatch.setattr(onnx, "write_graph", copied)


@pytest.fixture
def page(quick: None, small: Model, tmp_path: Path) -> Path:
    """The folder that `underpaint export --to web` writes."""
    small.save(tmp_path / "model")
    export.export(tmp_path / "model", "web", tmp_path / "web")
    return tmp_path / "web"


def test_the_manifest_names_every_file_and_its_checksum(page: Path) -> None:
    files = json.loads((page / "manifest.json").read_text())["files"]
    there = {p.relative_to(page).as_posix() for p in page.rglob("*") if p.is_file()}
    assert there == {*files, "manifest.json", ".underpaint"}
    for name, about in files.items():
        data = (page / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (about["bytes"], about["sha256"])
    card = json.loads((page / "model.json").read_text())
    assert card["sha256"]["model.onnx"] == files["model.onnx"]["sha256"]


def test_everything_that_is_loaded_is_in_the_folder(page: Path) -> None:
    """Scripts, styles and what the worker fetches: files of the folder, no addresses."""
    named = re.findall(r'(?:src|href)="([^"]+)"', (page / "index.html").read_text())
    for script in page.glob("*.js"):
        text = script.read_text()
        named += re.findall(r'from "\./([^"]+)"', text)
        named += re.findall(r'new Worker\("([^"]+)"', text)
        named += re.findall(r'"((?:ort/)?[\w.-]+\.(?:onnx|json|gz))"', text)
        assert "http" not in text
    assert len(named) >= 10
    for name in named:
        assert (page / name).is_file(), name


def test_it_is_a_static_space(page: Path) -> None:
    header = (page / "README.md").read_text().split("---")[1]
    assert "\nsdk: static\n" in header
    policy = re.search(
        r'Content-Security-Policy" content="([^"]+)"', (page / "index.html").read_text()
    )
    assert policy
    assert "default-src 'self'" in policy[1]
    assert "http" not in policy[1]


def test_the_runtime_is_what_its_authors_ship() -> None:
    """As THIRD_PARTY.md says: the checksums of the package's files, of WebAssembly unpacked."""
    third = (ROOT / "THIRD_PARTY.md").read_text()
    for name, digest in web.RUNTIME.items():
        assert web.unpacked_sha256(name) == digest
        assert name == "LICENSE" or (name in third and digest in third)


def test_the_page_is_written_anew_for_other_weights_alone(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    build().save(run)
    mark(run, "run")
    said: list[str] = []
    assert web.made(run, said.append) == run / "web"
    assert (run / "web" / "index.html").is_file()
    assert len(said) == 1
    web.made(run, said.append)
    assert len(said) == 1
    other = build(labels=())
    shutil.rmtree(run)
    other.save(run)
    mark(run, "run")
    web.made(run, said.append)
    assert len(said) == 2
    (run / "web" / "CNAME").write_text("added by hand")
    assert web.place(run).parent != run


def test_pages_of_what_is_no_run_are_in_the_cache(quick: None, tmp_path: Path) -> None:
    assert web.place("pretrained:lorelei").parent.name == "web"
    assert "cache" in str(web.place("pretrained:lorelei"))
    run = tmp_path / "run"
    build().save(run)
    mark(run, "run")
    (run / "web").mkdir()  # somebody's own
    assert web.place(run).parent != run
    (run / "web").rmdir()
    web.made(run)
    assert models.find(run) == run  # the page is in the way of nothing


def test_a_run_that_is_overwritten_loses_its_page(quick: None, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    for name in ("web", "mine"):
        (run.path / name).mkdir()
    mark(run.path / "web", "export")
    (run.path / "web" / "CNAME").write_text("added by hand")
    run.create(overwrite=True)
    assert (run.path / "web" / "CNAME").exists()
    (run.path / "web" / "CNAME").unlink()
    run.create(overwrite=True)
    assert not (run.path / "web").exists()
    assert (run.path / "mine").exists()


def test_what_no_browser_can_draw_is_refused() -> None:
    with pytest.raises(UserError, match="wavelets"):
        web.check(build(space={"kind": "wavelets"}))
