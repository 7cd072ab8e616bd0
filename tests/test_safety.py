"""What belongs to the user is never deleted or overwritten, and no output is left half-written.

Of checkpoints, see also `training/test_state.py`.
"""

import base64
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from underpaint import config, io, model_folder
from underpaint.cli import main, quickstart
from underpaint.errors import UserError
from underpaint.sealed import format as sealed
from underpaint.sealed.writer import seal
from underpaint.training.checkpointing import RunFolder

Wrong = Callable[..., str]
SEALED = 68_568  # bytes of the pictures when sealed
GRIDS = ("--train.sample_every", 32)  # some grids, which the small recipe has not


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def train(small: Path, faces: Path, out: Path, *flags: object) -> int:
    arguments = ("--config", small, "--data", faces, "--out", out, "--quiet", *GRIDS, *flags)
    return main(["train", *map(str, arguments)])


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes; the lock is ours and empty."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 1,000 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- train --overwrite -------------------------------------------------------------------------


def project(folder: Path) -> Path:
    """Somebody's folder, with names as a run has them."""
    (folder / "samples").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text("title: my blog")
    (folder / "log.txt").write_text("dear diary")
    (folder / "samples" / "precious.wav").write_text("song")
    return folder


def test_a_folder_without_our_mark_is_not_overwritten(
    wrong: Wrong, small: Path, faces: Path, tmp_path: Path
) -> None:
    mine = project(tmp_path / "project")
    before = everything(mine)
    for command in (
        ("train", "--config", small, "--data", faces, "--out", mine),
        ("quickstart", "--minutes", 0.01, "--out", mine),
    ):
        line = wrong(*command, "--overwrite")
        assert f"{mine}: holds files and is not a run that underpaint began" in line
        assert "choose another --out" in line
    assert everything(mine) == before


def test_quickstart_looks_at_all_its_folders_first(tmp_path: Path) -> None:
    mine = project(tmp_path / "out" / "scratch")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="not a run that underpaint began"):
        quickstart.train(tmp_path / "out", 0.01, overwrite=True)
    assert everything(tmp_path) == before
    assert everything(mine)


def test_a_run_that_another_process_ended_meanwhile_stays(trained: Path, tmp_path: Path) -> None:
    """Two begin in one new folder; the second decodes for longer than the first trains."""
    folder = RunFolder(tmp_path / "run")
    folder.check(overwrite=False)
    shutil.copytree(trained, tmp_path / "run")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="a run is there already"):
        folder.create()
    assert everything(tmp_path) == before


def test_overwriting_a_run_clears_what_the_run_wrote(
    copy: Path, small: Path, faces: Path, wrong: Wrong
) -> None:
    checkpoint = sorted((copy / "checkpoints").glob("0*"))[0]
    shutil.copytree(checkpoint, copy / "checkpoints" / "my-best")
    mine = {
        "samples/precious.wav": "song",
        "samples/images_1.png": "mine",
        "notes.md": "mine",
        "checkpoints/README": "mine",
        "snapshots/000000000001.zip": "mine",
    }
    for name, text in mine.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text)
    ours = [
        *("checkpoints/000000099999/config.json", "snapshots/000000099999/state.json"),
        *("samples/images_000000099999.png", "evaluation/scores-0123456789abcdef.json"),
        "privacy.log",
    ]
    for name in ours:
        (copy / name).parent.mkdir(exist_ok=True, parents=True)
        (copy / name).write_text("{}")
    assert "--overwrite" in wrong("train", "--config", small, "--data", faces, "--out", copy)
    assert train(small, faces, copy, "--overwrite") == 0
    assert {name: (copy / name).read_text() for name in mine} == mine
    assert (copy / "checkpoints" / "my-best" / "ema.safetensors").is_file()
    assert not [name for name in ours if (copy / name).exists()]
    assert RunFolder(copy).latest().folder.name == "000000000064"


@pytest.mark.parametrize("name", ["checkpoints/000000000064/notes.txt", "log.txt/x", "samples"])
def test_all_is_checked_before_anything_is_cleared(
    name: str, copy: Path, small: Path, faces: Path, wrong: Wrong
) -> None:
    """Something of the user's where the run writes: one line, and nothing is gone."""
    path = copy / name
    if name == "log.txt/x":
        path.parent.unlink()
        path.parent.mkdir()
    if name == "samples":
        path.rmdir()
    path.write_text("mine")
    before = everything(copy)
    line = wrong("train", "--config", small, "--data", faces, "--out", copy, "--overwrite")
    assert str(path if name == "samples" else path.parent) in line
    assert "move it away" in line
    assert everything(copy) == before


@pytest.mark.parametrize("which", ["samples", "checkpoints", "."])
def test_a_link_is_followed_and_stays(
    which: str, copy: Path, small: Path, faces: Path, tmp_path: Path
) -> None:
    (copy / "samples" / "images_000000099999.png").write_text("old")
    (copy / "samples" / "precious.wav").write_text("song")
    target = tmp_path / "big"
    link = copy / which if which != "." else copy
    shutil.move(link, target)
    link.symlink_to(target)
    assert train(small, faces, copy, "--overwrite") == 0
    assert link.is_symlink()
    assert (copy / "samples" / "precious.wav").read_text() == "song"
    assert not (copy / "samples" / "images_000000099999.png").exists()
    assert (copy / "samples" / "images_000000000064.png").is_file()
    assert RunFolder(copy).latest().folder.name == "000000000064"
    assert main(["train", "--resume", "--out", str(copy), "--quiet"]) == 0


def test_a_link_to_nowhere_is_one_line(copy: Path, small: Path, faces: Path, wrong: Wrong) -> None:
    (copy / "samples").rmdir()
    (copy / "samples").symlink_to("/nowhere/at/all")
    before = everything(copy)
    line = wrong("train", "--config", small, "--data", faces, "--out", copy, "--overwrite")
    assert f"{copy / 'samples'}: is no folder" in line
    assert everything(copy) == before


def test_a_lock_that_is_a_link_empties_nothing(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    (copy / ".lock").unlink()
    (copy / ".lock").symlink_to(tmp_path / "mine")
    assert main(["train", "--resume", "--out", str(copy), "--quiet"]) == 2
    assert (tmp_path / "mine").read_text() == "mine"
    assert (
        f"{copy}: cannot be written (Too many levels of symbolic links)" in capsys.readouterr().err
    )


def test_a_run_that_was_stopped_while_it_was_cleared(copy: Path, small: Path, faces: Path) -> None:
    """Its first file, config.yaml, was gone already; the mark was not."""
    (copy / "config.yaml").unlink()
    assert train(small, faces, copy, "--overwrite") == 0


# --- runs of strangers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absolute", "../secret.txt", "samples/../../secret.txt", "link"])
def test_a_report_shows_no_file_that_is_no_grid(
    name: str, copy: Path, small: Path, faces: Path, tmp_path: Path
) -> None:
    assert train(small, faces, copy, "--overwrite") == 0
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    grids = [line for line in lines if line["kind"] == "sample"]
    assert grids
    for line in grids:
        if name == "link":
            (copy / line["file"]).unlink()
            (copy / line["file"]).symlink_to(secret)
        else:
            line["file"] = str(secret) if name == "absolute" else name
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(copy)]) == 0
    assert base64.b64encode(b"secret").decode() not in (copy / "report.html").read_text()


def test_a_report_of_the_users_is_not_replaced(tmp_path: Path, wrong: Wrong, small: Path) -> None:
    (tmp_path / "config.yaml").write_text(small.read_text())
    (tmp_path / "report.html").write_text("mine")
    assert f"{tmp_path / 'report.html'}: exists" in wrong("report", tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


# --- sample --out ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keep.png", "keep.npz"])
def test_samples_overwrite_nothing_unless_asked(
    name: str, trained: Path, tmp_path: Path, wrong: Wrong
) -> None:
    out = tmp_path / name
    out.write_text("mine")
    line = wrong("sample", trained, "-n", 2, "--out", out)
    assert f"{out}: exists already; add --overwrite or choose another --out" in line
    assert out.read_text() == "mine"
    command = ["sample", str(trained), "-n", "2", "--quiet", "--out", str(out), "--overwrite"]
    assert main(command) == 0
    assert out.read_bytes()[:4] in (b"\x89PNG", b"PK\x03\x04")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_of_samples_overwrites_nothing_unless_asked(
    trained: Path, tmp_path: Path, wrong: Wrong, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_text("mine")
    (out / "seed00000001_light.png").write_text("mine")
    before = everything(out)
    line = wrong("sample", trained, "-n", 2, "--out", out)
    assert f"{out / 'seed00000001_light.png'}: exists already; add --overwrite" in line
    assert everything(out) == before
    command = ["sample", str(trained), "-n", "2", "--quiet", "--out", str(out)]
    assert main([*command, "--seed", "2"]) == 0  # other names
    assert main([*command, "--overwrite"]) == 0
    after = everything(out)
    assert after["photo.jpg"] == b"mine"
    assert [name for name in after if after[name][:4] == b"\x89PNG"] == [
        *("seed00000000_dark.png", "seed00000001_light.png"),
        *("seed00000002_dark.png", "seed00000003_light.png"),
    ]


def test_a_sample_that_is_a_link_is_followed(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "disk.png")
    (tmp_path / "disk.png").write_text("old")
    command = ["sample", str(trained), "-n", "2", "--quiet", "--out", str(tmp_path / "x.png")]
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "x.png").is_symlink()
    assert (tmp_path / "disk.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("there", [False, True])
def test_samples_that_fail_leave_nothing(
    there: bool, trained: Path, tmp_path: Path, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third image of a folder cannot be written; all files are as before."""
    out, save = tmp_path / "out", Image.Image.save
    if there:
        out.mkdir()
        (out / "seed00000001_light.png").write_text("mine")
    before, written = everything(tmp_path), 0

    def third(image: Image.Image, *arguments: object, **options: object) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        save(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", third)
    assert "no space left" in wrong("sample", trained, "-n", 4, "--out", out, "--overwrite")
    assert written == 3
    assert everything(tmp_path) == before
    assert out.exists() == there


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
@pytest.mark.usefixtures("small_files")
def test_a_file_that_does_not_fit_leaves_the_old_one(
    name: str, trained: Path, tmp_path: Path, wrong: Wrong
) -> None:
    out = tmp_path / name
    out.write_text("old")
    line = wrong("sample", trained, "-n", 32, "--out", out, "--overwrite")
    assert f"{out}: cannot be written (File too large)" in line
    assert everything(tmp_path) == {name: b"old"}


# --- other outputs -----------------------------------------------------------------------------


def test_an_audit_overwrites_nothing_unless_asked(
    trained: Path, tmp_path: Path, wrong: Wrong
) -> None:
    (tmp_path / "audit.json").write_text("mine")
    line = wrong("audit", trained, "--out", tmp_path)
    assert f"{tmp_path / 'audit.json'}: exists already; add --overwrite" in line
    assert everything(tmp_path) == {"audit.json": b"mine"}


def test_a_comparison_overwrites_nothing_unless_asked(
    trained: Path, tmp_path: Path, wrong: Wrong, small: Path, faces: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("mine")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"recipe: {small.name}\nbudget: 1e6\nscore: held-out loss\narms: {{a: {{}}, b: {{}}}}\n"
        f"settings: {{data: {{source: {faces}}}}}\n"
    )
    for sources in ((trained, trained), (study,)):
        line = wrong("compare", *sources, "--out", out)
        assert f"{out / 'results.json'}: exists already; add --overwrite" in line
    assert everything(out) == {"results.json": b"mine"}


@pytest.mark.parametrize("limit", [1000, *range(65_500, SEALED, 400), SEALED - 1, SEALED + 100])
def test_a_sealed_file_that_does_not_fit_gets_no_name(
    limit: int, faces: Path, tmp_path: Path
) -> None:
    """Wherever the disk is full: the file is whole and verified, or it is not there."""
    out = tmp_path / "out" / "small.up"
    out.parent.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    said = ""
    try:
        seal(config.Data(source=str(faces), held_out="none"), out, rate=0.5, kind="patch")
    except UserError as error:
        said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if limit > SEALED:
        assert out.stat().st_size == SEALED
        assert sealed.verify(out)["images"] == 24
        assert [p.name for p in out.parent.iterdir()] == [out.name]
    else:
        assert f"{out}: cannot be written (File too large)" in said
        assert not list(out.parent.iterdir())


def test_a_file_of_the_users_beside_a_sealed_one_stays(faces: Path, tmp_path: Path) -> None:
    mine = tmp_path / "small.up.part"
    mine.write_text("mine")
    seal(
        config.Data(source=str(faces), held_out="none"),
        tmp_path / "small.up",
        rate=0.5,
        kind="patch",
    )
    assert mine.read_text() == "mine"


# --- the module itself -------------------------------------------------------------------------


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(TypeError), io.replacing(path) as temporary:
        temporary.open("w").write(["half"])  # type: ignore[arg-type]
    assert everything(tmp_path) == {"x": b"old"}
    io.replace_text(path, "new")
    assert everything(tmp_path) == {"x": b"new"}


def test_a_folder_appears_in_one_step(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with pytest.raises(TypeError), io.appearing(final, ("a",)) as temporary:
        (temporary / "a").open("w").write(["half"])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    for text in ("old", "new"):
        with io.appearing(final, ("a",)) as temporary:
            (temporary / "a").write_text(text)
    assert everything(tmp_path) == {"x/a": b"new"}
    with io.appearing(final, ("b",)) as temporary:
        (temporary / "b").write_text("b")
    assert everything(tmp_path) == {"x/b": b"b", "x.replaced/a": b"new"}


@pytest.mark.parametrize("name", ["00000000001", "0000000000001", "00000000000a", "٠" * 12, "best"])
def test_only_twelve_digits_are_a_number(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / ("0" * 12)).mkdir()
    assert [path.name for path in io.numbered(tmp_path)] == ["0" * 12]


def test_a_place_is_checked_before_it_is_made(tmp_path: Path) -> None:
    io.check_place(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        io.check_place(tmp_path / "file" / "folder")


def test_what_python_refuses_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"x: cannot be written \(the file ended\)"),
        io.writing(tmp_path / "x"),
    ):
        raise OSError("the file ended")
    array = np.zeros(3)
    with pytest.raises(BrokenPipeError), io.writing(tmp_path / "x"):
        os.write(_closed_pipe(), array.tobytes())


def _closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_a_run_of_another_format_is_not_called_damaged(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "000000000016"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "LATEST").write_text(checkpoint.name)
    (checkpoint / "config.json").write_text(json.dumps({"format": 1, "sha256": {}}))
    with pytest.raises(UserError, match=r"has format 1, and this underpaint reads format \d"):
        model_folder.newest(tmp_path)
