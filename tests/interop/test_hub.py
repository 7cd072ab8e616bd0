"""Saving, uploading and downloading models: the same pictures everywhere, and what is refused."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file

import underpaint as up
from tests import systems
from tests.interop.hubs import HTTPX, FakeHub, refusal
from underpaint import model, model_folder
from underpaint.cli import main
from underpaint.errors import UserError
from underpaint.hub import Repository
from underpaint.training import provenance

FILES = ["README.md", "config.json", "model.safetensors", "samples.png"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    fake.install(monkeypatch)
    return fake


def pictures(source: str | Path, **how: object) -> np.ndarray:
    return up.load(source, device="cpu", **how).sample(3, seed=5, labels=["light"])  # type: ignore[arg-type]


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_saved_model_draws_the_same(trained: Path, tmp_path: Path, weights: str) -> None:
    out = up.load(trained, device="cpu", weights=weights).save(tmp_path / "saved")  # type: ignore[arg-type]
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (pictures(out) == pictures(trained, weights=weights)).all()
    assert (out / "samples.png").read_bytes()[:4] == b"\x89PNG"


def test_half_is_the_nearest_float16_and_loads_as_float32(trained: Path, tmp_path: Path) -> None:
    whole, half = (
        up.load(trained, device="cpu").save(tmp_path / name, half=half)
        for name, half in (("whole", False), ("half", True))
    )
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert {tensor.dtype for tensor in two.values()} == {torch.float16}
    for name, tensor in one.items():  # 11 bits, and 2^-24 between the smallest
        assert ((two[name].float() - tensor).abs() <= tensor.abs() * 2**-11 + 2**-25).all()
    state = up.load(half, device="cpu").backbone.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    difference = pictures(whole).astype(int) - pictures(half)
    assert np.abs(difference).max() <= 2  # of 255
    sentence = "The weights are in float16, and read as float32. `config.json`"
    assert sentence in (half / "README.md").read_text()
    again = up.load(half, device="cpu").save(tmp_path / "again")  # its card comes with it
    assert "The weights are in float32. `config.json`" in (again / "README.md").read_text()
    assert (pictures(again) == pictures(half)).all()


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    built = model.build(systems.spec("dit", "pixels", "edm"))
    name, tensor = next(iter(built.backbone.state_dict().items()))
    tensor.view(-1)[0] = 1e5
    with pytest.raises(UserError, match=f"'{name}' has weights beyond float16"):
        built.save(tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()
    built.save(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == FILES[1:3]  # no card


def test_what_is_there_is_replaced_only_if_it_is_a_model(trained: Path, tmp_path: Path) -> None:
    loaded, out = up.load(trained, device="cpu"), tmp_path / "saved"
    loaded.save(out)
    with pytest.raises(UserError, match="exists already; add overwrite=True"):
        loaded.save(out)
    loaded.save(out, half=True, overwrite=True)
    assert next(iter(load_file(out / "model.safetensors").values())).dtype == torch.float16
    for name in ("photo.png", "README.md"):  # somebody else's README alone is no model
        other = tmp_path / f"other-{name}"
        other.mkdir()
        (other / name).write_text("mine")
        with pytest.raises(UserError, match="holds other files than a model"):
            loaded.save(other, overwrite=True)
        assert (other / name).read_text() == "mine"


def test_export_to_a_folder(
    trained: Path, tmp_path: Path, wrong: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(trained), "--to", "folder", "--out", str(out), "--half"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in out.iterdir()) == [".underpaint", *FILES]
    assert pictures(out).shape == (3, 8, 8, 3)
    assert "needs --out DIR" in wrong("export", trained, "--to", "folder")
    line = wrong("export", trained, "--to", "folder", "--out", out)
    assert "exists already; add --overwrite" in line
    again = ["export", str(trained), "--to", "folder", "--out", str(out), "--overwrite"]
    for name in (".git", "notes"):
        (out / name).mkdir()
    (out / ".git" / "config").write_text("added by hand")
    assert "holds .git/config, which no export wrote" in wrong(*again)
    shutil.rmtree(out / ".git")
    (out / "README.md").write_text("edited")
    other = ["torch-export" if word == "folder" else word for word in again]
    assert "is an export in the form folder, and --overwrite replaces one" in wrong(*other)
    assert main(again) == 0
    capsys.readouterr()
    assert "edited" not in (out / "README.md").read_text(encoding="utf-8")
    line = wrong("export", trained, "--to", "folder", "--out", tmp_path / "x", "--private")
    assert "--private is for repositories on the Hub" in line


# --- up and down -------------------------------------------------------------------------------


def test_what_is_uploaded(trained: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--to", "hub:org/heads", "--private", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "address": "https://huggingface.co/org/heads",
        "to": "hub:org/heads",
        "model": str(trained),
        "half": False,
    }
    (create, made), (upload, sent) = hub.calls
    assert (create, made) == (
        "create_repo",
        {"repo_id": "org/heads", "private": True, "exist_ok": True},
    )
    assert (upload, sent["repo_id"], sent["files"], sent["revision"]) == (
        "upload_folder",
        "org/heads",
        FILES,
        None,
    )
    assert 'up.load("org/heads")' in (hub.files("org/heads") / "README.md").read_text()
    assert (pictures("org/heads") == pictures(trained)).all()
    assert sorted(p.name for p in model_folder.find("org/heads").iterdir()) == FILES[1:3]


def test_a_branch_is_made_and_read(trained: Path, hub: FakeHub) -> None:
    loaded = up.load(trained, device="cpu")
    loaded.push_to_hub("org/heads", message="the whole thing")
    address = loaded.push_to_hub("org/heads@small", half=True)
    assert address == "https://huggingface.co/org/heads/tree/small"
    assert hub.calls[1][1]["commit_message"] == "the whole thing"
    assert hub.calls[3] == (
        "create_branch",
        {"repo_id": "org/heads", "branch": "small", "exist_ok": True},
    )
    assert hub.calls[4][1]["revision"] == "small"
    assert hub.calls[0][1]["private"] is None  # as the Hub makes those of org
    small = hub.heads["org/heads", "small"]
    for source, revision in (("org/heads", "small"), ("org/heads@small", None)):
        found = up.load(source, revision=revision, device="cpu")
        assert found.origin is not None
        assert found.origin.source == f"hub:org/heads@{small}"
    assert up.load("hub:org/heads", device="cpu").origin.source.endswith(  # type: ignore[union-attr]
        hub.heads["org/heads", "main"]
    )


def test_a_licence_that_was_chosen_is_kept(trained: Path, hub: FakeHub, tmp_path: Path) -> None:
    loaded = up.load(trained, device="cpu")
    loaded.push_to_hub("org/heads")
    card = hub.files("org/heads") / "README.md"
    text = card.read_text()
    chosen = text.replace("license: other\nlicense_name: not-chosen-yet\n", "license: cc0-1.0\n")
    assert chosen != text
    card.write_text(chosen)
    loaded.push_to_hub("org/heads")
    assert (hub.files("org/heads") / "README.md").read_text() == chosen
    saved = loaded.save(tmp_path / "saved")  # a card with a licence of its own goes as it is
    given = text.replace("license: other\nlicense_name: not-chosen-yet", "license: mit")
    (saved / "README.md").write_text(given)
    up.load(saved, device="cpu").push_to_hub("org/heads")
    assert "license: mit" in (hub.files("org/heads") / "README.md").read_text()


def test_a_card_that_was_edited_goes_where_its_model_goes(
    trained: Path, hub: FakeHub, tmp_path: Path
) -> None:
    saved = up.load(trained, device="cpu").save(tmp_path / "saved")
    with (saved / "README.md").open("a") as card:
        card.write("\nDrawn for my daughter.\n")
    up.load(saved, device="cpu").push_to_hub("org/heads")
    text = (hub.files("org/heads") / "README.md").read_text()
    assert "Drawn for my daughter." in text
    assert 'up.load("org/heads")' in text
    assert "ORG/NAME" not in text


def test_the_commit_is_recorded(
    trained: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up.load(trained, device="cpu").push_to_hub("org/heads")
    pinned = f"hub:org/heads@{hub.heads['org/heads', 'main']}"
    out = tmp_path / "grid.png"
    flags = ["-n", "2", "--out", str(out), "--json", "--revision", "main"]
    assert main(["sample", "org/heads", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == pinned
    faces = trained.parent / "faces"
    run = up.finetune("org/heads", faces, tmp_path / "run", recipe=_short(trained), quiet=True)
    assert provenance.start_of(run) == pinned
    text = up.load(run, device="cpu").save(tmp_path / "saved").joinpath("README.md").read_text()
    assert "\nbase_model: org/heads\n" in text
    parent = f"[org/heads](https://huggingface.co/org/heads) at `{pinned.partition('@')[2]}`"
    assert f"It began with the weights of {parent} and saw 8 images." in text


def _short(trained: Path) -> up.Run:
    recipe = up.config.load(trained / "config.yaml")
    stage = dataclasses.replace(recipe.stages["whole"], images=8)
    return dataclasses.replace(recipe, stages={"whole": stage})


def test_scores_are_of_the_model_on_the_hub(
    trained: Path, hub: FakeHub, tmp_path: Path, wrong: Callable[..., str]
) -> None:
    """Evaluating and auditing take the name as well, and get as far as their images."""
    up.load(trained, device="cpu").push_to_hub("org/heads")
    commit = hub.heads["org/heads", "main"]
    line = wrong("evaluate", "org/heads", "--revision", "main")
    assert f"hub:org/heads@{commit}: does not say what it was trained on; add --reference" in line
    assert "no images.json of a run" in wrong("audit", "org/heads")
    flags = ["--from", "org/heads", "--revision", "gone", "--data", tmp_path]
    assert "org/heads has no revision gone" in wrong("finetune", *flags)


def test_a_folder_comes_before_a_name(
    trained: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up.load(trained, device="cpu").push_to_hub("org/heads")
    hub.calls.clear()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder.find(trained), tmp_path / "org" / "heads")
    assert up.load("org/heads", device="cpu").origin.source == "org/heads"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="org/heads: is no model on the Hugging Face Hub, so it"):
        up.load("org/heads", revision="main")
    with pytest.raises(UserError, match="org/head: no such folder"):  # a typo asks nobody
        up.load("org/head")
    with pytest.raises(UserError, match="no such folder"):  # nor does a path
        up.load(Path("nobody/heads"))
    assert hub.calls == []
    assert "@" in up.load("hub:org/heads", device="cpu").origin.source  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", ["org", "a/b/c", "a--b/c", "-a/b", "a/b.", "a/" + "b" * 100, "a b/c", ""]
)
def test_what_is_no_name(name: str, trained: Path, wrong: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="is no name on the Hugging Face Hub"):
        Repository.named(name)
    assert "is no name on the Hugging Face Hub" in wrong("export", trained, "--to", f"hub:{name}")


def test_a_changed_file_is_not_loaded(trained: Path, hub: FakeHub) -> None:
    up.load(trained, device="cpu").push_to_hub("org/heads")
    path = hub.files("org/heads") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its checksum differs"):
        up.load("org/heads")


def test_a_repository_of_something_else(hub: FakeHub, tmp_path: Path) -> None:
    for content, sentence in (
        ({"architectures": ["UNet"]}, "is damaged or not a model of underpaint"),
        (None, r"is no model of underpaint \(it has no config\.json\)"),
    ):
        folder = tmp_path / str(content is None)
        folder.mkdir()
        name = "config.json" if content else "model.bin"
        (folder / name).write_text(json.dumps(content))
        hub.upload_folder(repo_id="org/other", folder_path=folder, allow_patterns=["*"])
        with pytest.raises(UserError, match=sentence):
            up.load("org/other")


# --- what the Hub and the network refuse ---------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have huggingface_hub itself asked, with a server behind it that gives this answer to all."""

    def answer(given: object) -> None:
        def handle(request: object) -> object:
            if callable(given):
                return given(request)
            if isinstance(given, Exception):
                raise given
            status, code = given  # type: ignore[misc]
            return HTTPX.Response(status, headers={"X-Error-Code": code} if code else {})

        huggingface_hub.set_client_factory(
            lambda: HTTPX.Client(transport=HTTPX.MockTransport(handle))
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    yield answer  # type: ignore[misc]
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def test_the_library_itself_downloads_and_keeps_it(
    trained: Path, server: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a model and no others, under the commit; afterwards without the server."""
    saved = up.load(trained, device="cpu").save(tmp_path / "saved")
    (saved / "unet").mkdir()
    (saved / "unet" / "model.safetensors").write_bytes(b"of something else")
    asked = []

    def serve(request: Any) -> object:
        path = request.url.path
        if "/revision/" in path:
            return HTTPX.Response(200, json={"id": "org/heads", "sha": COMMIT, "siblings": []})
        if "/tree/" in path:
            found = [
                {"type": "file", "path": str(p.relative_to(saved)), "size": p.stat().st_size}
                | {"oid": hashlib.sha1(p.read_bytes()).hexdigest()}
                for p in sorted(saved.rglob("*"))
                if p.is_file()
            ]
            return HTTPX.Response(200, json=found)
        name = path.partition(f"/org/heads/resolve/{COMMIT}/")[2]
        data = (saved / name).read_bytes()
        asked.append(name)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers["Content-Length"] = str(len(data))
        shown = data if request.method == "GET" else b""
        return HTTPX.Response(200, headers=headers, content=shown)

    server(serve)
    found = up.load("org/heads", device="cpu")
    assert found.origin is not None
    assert found.origin.source == f"hub:org/heads@{COMMIT}"
    assert (found.sample(2, seed=1) == up.load(trained, device="cpu").sample(2, seed=1)).all()
    assert set(asked) == {"config.json", "model.safetensors"}
    server(HTTPX.ConnectError("down"))
    assert up.load(found.origin.source, device="cpu").origin == found.origin
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert up.load("org/heads", device="cpu").origin == found.origin


ANSWERS = {
    "missing or private": ((401, "RepoNotFound"), "no model on the Hugging Face Hub that you may"),
    "gated": ((403, "GatedRepo"), "is gated on the Hugging Face Hub; ask for access at"),
    "revision": ((404, "RevisionNotFound"), "has no revision v9; give a branch, a tag or a commit"),
    "down": ((500, ""), "the Hugging Face Hub cannot be reached (Server error '500"),
    "no network": (HTTPX.ConnectError("no route"), "cannot be reached (no route); go online"),
    "slow": (HTTPX.ReadTimeout("too slow"), "cannot be reached (too slow); go online"),
    "proxy": (HTTPX.ProxyError("no proxy"), "cannot be reached (no proxy); try again later"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_answer_of_the_hub_is_one_line(
    name: str, server: Callable[..., None], wrong: Callable[..., str], tmp_path: Path
) -> None:
    answer, sentence = ANSWERS[name]
    server(answer)
    assert sentence in wrong("sample", "org/name@v9", "--out", tmp_path / "grid.png")


def test_offline(wrong: Callable[..., str], trained: Path, tmp_path: Path) -> None:
    line = wrong("sample", "org/name", "--out", tmp_path / "grid.png")
    assert "org/name: is no folder here and not in the cache" in line
    assert "HF_HUB_OFFLINE is set" in line
    assert "HF_HUB_OFFLINE is set" in wrong("export", trained, "--to", "hub:org/name")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        up.finetune("org/name", tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (refusal(errors.HfHubHTTPError, 401, "401 no token"), "refuses to write it (401 no token)"),
        (refusal(errors.HfHubHTTPError, 403, "403"), "log in with `hf auth login` as one who may"),
        (refusal(errors.HfHubHTTPError, 503, "503"), "(503); try again later"),
        (refusal(errors.RepositoryNotFoundError, 401, "401"), "that you may write; check the name"),
        (errors.LocalTokenNotFoundError("no token was found"), "no token was found; log in"),
        (RuntimeError("Error while uploading 'model.safetensors'"), "Error while uploading"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_uploads_that_are_refused(
    trained: Path,
    hub: FakeHub,
    wrong: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    sentence: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "create_repo", refuse)
    line = wrong("export", trained, "--to", "hub:org/name")
    assert sentence in line
    assert "org/name" in line
