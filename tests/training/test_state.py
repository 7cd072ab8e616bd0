"""Checkpoints: whole or not there, and checked before they are used."""

import dataclasses
import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.training.runs import metrics
from underpaint import config, model
from underpaint.errors import UserError
from underpaint.training import state, train


def test_no_space_leaves_the_last_checkpoint_whole(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = state.save_file

    def full(tensors, path):  # type: ignore[no-untyped-def]
        if "000000000064" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(UserError, match="no space left"):
        train(recipe, tmp_path / "run", quiet=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "LATEST").read_text() == "000000000032\n"
    assert not list(checkpoints.glob(".*"))
    monkeypatch.undo()
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "cache"))
    out = train(None, tmp_path / "run", resume=True, quiet=True)
    assert metrics(out)[-1]["images"] == 160


@pytest.mark.parametrize("large", ["model", "optimizer"])
def test_what_the_system_refuses_to_write_is_one_line(large: str, tmp_path: Path) -> None:
    """Refused for real, by a limit on the size of files: libraries hide the reason differently."""
    folder = state.RunFolder(tmp_path / "run")
    folder.create()
    own = {name: torch.zeros(10**6 if name == large else 1) for name in ("model", "optimizer")}
    spec = config.ModelSpec(size=(8, 8), channels=3)
    model, optimizer = {"w": own["model"]}, {"w": {"exp_avg": own["optimizer"]}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); choose"):
            folder.save(spec, model, model, optimizer, state.Progress(), 1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.checkpoints.iterdir())
    folder.save(spec, model, model, optimizer, state.Progress(), 1, {})
    assert torch.equal(state.read_optimizer(folder.latest())["w"]["exp_avg"], own["optimizer"])


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (SafetensorError("HeaderTooLarge"), None),
    ],
)
def test_the_systems_reason_is_found(error: Exception, number: int | None, tmp_path: Path) -> None:
    expected = UserError if number else type(error)
    match = "no space left" if number else "HeaderTooLarge"
    with pytest.raises(expected, match=match), state.writing(tmp_path):
        raise error


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "missing"])
def test_damaged_weights_are_refused(
    recipe: config.Run, tmp_path: Path, name: str, damage: str
) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    path = model.find(out) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    else:
        content[-5] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        model.load(out, weights=name.split(".")[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["config.json", "state.json", "optimizer.pt"])
def test_other_damage_is_refused_when_resuming(
    recipe: config.Run, tmp_path: Path, name: str
) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    path = model.find(out) / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        train(None, out, resume=True, quiet=True)


def test_the_optimizer_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"x": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt"):
        state.read_optimizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_half_written_and_later_checkpoints_are_cleared(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    folder = state.RunFolder(out)
    (folder.checkpoints / ".000000000999.tmp").mkdir()
    (folder.checkpoints / "000000000999").mkdir()
    folder.clean()
    names = {p.name for p in folder.checkpoints.iterdir()}
    assert names == {"000000000096", "000000000128", "000000000160", "LATEST"}


def test_two_processes_cannot_train_in_one_folder(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    holder = state.RunFolder(out)
    holder.lock()
    with pytest.raises(UserError, match="another process"):
        train(None, out, resume=True, quiet=True)
    holder.unlock()


def test_weight_files_are_readable_by_others(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    mode = (model.find(out) / "model.safetensors").stat().st_mode & 0o777
    assert mode == 0o666 & ~state.umask()


def test_config_json_describes_the_model(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    card = json.loads((model.find(out) / "config.json").read_text())
    assert card["model"]["label_names"] == ["0", "1"]
    spec = model.read_spec(model.find(out))
    assert spec.network == recipe.network
    assert dataclasses.asdict(spec)["size"] == (16, 16)
