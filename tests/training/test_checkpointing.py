"""Checkpoints: whole or not there, and checked before they are used."""

import dataclasses
import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.training import runs
from tests.training.runs import metrics
from underpaint import config, model, model_folder
from underpaint.errors import UserError
from underpaint.io import writing
from underpaint.training import checkpointing, train


def test_no_space_leaves_the_last_checkpoint_whole(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model_folder.save_file

    def full(tensors, path):  # type: ignore[no-untyped-def]
        if "000000000064" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(model_folder, "save_file", full)
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
    folder = checkpointing.RunFolder(tmp_path / "run")
    folder.create()
    own = {name: torch.zeros(10**6 if name == large else 1) for name in ("model", "optimizer")}
    spec = config.ModelSpec(size=(8, 8), channels=3)
    weights = {"model": {"w": own["model"]}}
    optimizer = {"w": {"exp_avg": own["optimizer"]}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); choose"):
            folder.save(spec, weights, optimizer, checkpointing.Progress(), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.checkpoints.iterdir())
    folder.save(spec, weights, optimizer, checkpointing.Progress(), 1)
    assert torch.equal(
        checkpointing.read_optimizer(folder.latest().folder)["w"]["exp_avg"], own["optimizer"]
    )


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
    with pytest.raises(expected, match=match), writing(tmp_path):
        raise error


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "missing"])
def test_damaged_weights_are_refused(
    recipe: config.Run, tmp_path: Path, name: str, damage: str
) -> None:
    """Of a checkpoint by name; of a run the one before is used, and that is said."""
    out = train(recipe, tmp_path / "run", quiet=True)
    last = model_folder.find(out)
    path = last / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    else:
        content[-5] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        model.load(last, weights=name.split(".")[0])  # type: ignore[arg-type]
    folder, note = model_folder.newest(out)
    assert folder.name == "000000000128"
    what = f"{name} is missing" if damage == "missing" else f"{name} was cut short or changed"
    assert note.startswith(f"{last} is damaged ({what}")
    assert note.endswith("using 000000000128, the newest whole checkpoint")
    model.load(out)


@pytest.mark.parametrize(
    "name", ["config.json", "state.json", "optimizer.pt", "ema.safetensors", "model.safetensors"]
)
@pytest.mark.parametrize("damage", ["short", "missing"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    recipe: config.Run, tmp_path: Path, name: str, damage: str
) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    before = runs.weights(out)
    path = model_folder.find(out) / name
    content = path.read_bytes()[:-40]
    path.unlink()
    if damage == "short":
        path.write_bytes(content)
    train(None, out, resume=True, quiet=True)
    text = (out / "log.txt").read_text()
    assert f"{path.parent} is damaged ({name} " in text
    assert "using 000000000128, the newest whole checkpoint" in text
    after = runs.weights(out)  # the last one is there again
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_flipped_bit_of_the_optimizer_is_found(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    path = model_folder.find(out) / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpointing.RunFolder(out).latest().folder.name == "000000000128"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "LATEST is empty"),
        (None, "LATEST is missing"),
        ("my-best", "LATEST names no checkpoint of this run"),
        ("../../other/checkpoints/000000000096", "LATEST names no checkpoint of this run"),
        ("000000000999", "LATEST names no checkpoint of this run"),
        ("٠٠٠٠٠٠٠٠٠٠٩٦", "LATEST names no checkpoint of this run"),
    ],
)
def test_a_latest_that_is_not_to_be_believed(
    recipe: config.Run, tmp_path: Path, text: str | None, said: str
) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    shutil.copytree(out, tmp_path / "other")
    checkpoints = out / "checkpoints"
    shutil.copytree(checkpoints / "000000000096", checkpoints / "my-best")
    there = {p.name for p in checkpoints.iterdir()}
    (checkpoints / "LATEST").unlink()
    if text is not None:
        (checkpoints / "LATEST").write_text(text)
    folder, note = model_folder.newest(out)
    assert folder == checkpoints / "000000000160"
    assert said in note
    train(None, out, resume=True, quiet=True)
    assert said in (out / "log.txt").read_text()
    assert (checkpoints / "LATEST").read_text() == "000000000160\n"
    assert {p.name for p in checkpoints.iterdir()} == there


def test_where_no_checkpoint_is_whole(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    for folder in (out / "checkpoints").glob("0*"):
        (folder / "ema.safetensors").unlink()
    for attempt in (
        lambda: model_folder.find(out),
        lambda: train(None, out, resume=True, quiet=True),
    ):
        with pytest.raises(UserError, match="none of its checkpoints can be used"):
            attempt()
    assert len(list((out / "checkpoints").glob("0*"))) == 3


def test_what_is_the_users_stays_where_checkpoints_go(recipe: config.Run, tmp_path: Path) -> None:
    """A folder of another name, one with a note in it, and a link: none is deleted."""
    out = train(recipe, tmp_path / "run", quiet=True)
    checkpoints = out / "checkpoints"
    for name in ("my-best", "000000000008", "1000000000999", "0000000009999"):
        shutil.copytree(checkpoints / "000000000128", checkpoints / name)
    (checkpoints / "000000000008" / "note.txt").write_text("the nicest")
    shutil.move(checkpoints / "000000000128", tmp_path / "kept")
    (checkpoints / "000000000128").symlink_to(tmp_path / "kept")
    (checkpoints / "LATEST").write_text("000000000096\n")
    train(None, out, resume=True, quiet=True)
    names = {p.name for p in checkpoints.iterdir()}
    assert {"my-best", "000000000008", "1000000000999", "0000000009999"} <= names
    assert (checkpoints / "000000000008" / "note.txt").read_text() == "the nicest"
    assert (checkpoints / "000000000128").is_symlink()
    assert (tmp_path / "kept" / "ema.safetensors").is_file()
    assert model_folder.find(out).name == "000000000160"


def test_a_note_in_a_checkpoint_that_is_written_again(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    last = model_folder.find(out)
    (last / "note.txt").write_text("mine")
    (last / "ema.safetensors").unlink()
    train(None, out, resume=True, quiet=True)
    assert model_folder.find(out) == last
    assert not (last / "note.txt").exists()
    assert (last.with_name(f"{last.name}.replaced") / "note.txt").read_text() == "mine"


def test_the_optimizer_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"x": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt"):
        checkpointing.read_optimizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_half_written_and_later_checkpoints_are_cleared(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    folder = checkpointing.RunFolder(out)
    for name in (".000000000999.tmp", ".000000000999.123.tmp", "000000000999"):
        (folder.checkpoints / name).mkdir()
    (folder.checkpoints / ".mine.tmp").mkdir()
    folder.go_on(pytest.fail)
    (folder.checkpoints / ".mine.tmp").rmdir()  # is there still
    names = {p.name for p in folder.checkpoints.iterdir()}
    assert names == {"000000000096", "000000000128", "000000000160", "LATEST"}


def test_two_processes_cannot_train_in_one_folder(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    holder = checkpointing.RunFolder(out)
    holder.lock()
    with pytest.raises(UserError, match="another process"):
        train(None, out, resume=True, quiet=True)
    holder.unlock()


def test_weight_files_are_readable_by_others(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    mode = (model_folder.find(out) / "model.safetensors").stat().st_mode & 0o777
    assert mode == 0o666 & ~model_folder.umask()


def test_config_json_describes_the_model(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    card = json.loads((model_folder.find(out) / "config.json").read_text())
    assert card["model"]["label_names"] == ["0", "1"]
    spec = model_folder.read_spec(model_folder.find(out))
    assert spec.network == recipe.network
    assert dataclasses.asdict(spec)["size"] == (16, 16)
