"""source: the same images give the same data set, however they are packed."""

import csv
import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import noise, png, write_folder
from underpaint import config, data
from underpaint.data.source import find
from underpaint.errors import UserError

N = 24
LABELS = [str(i % 12) for i in range(N)]  # 0 ... 11: natural order is not that of texts


def folder(place: Path, images: np.ndarray) -> Path:
    return write_folder(place / "folder", images, LABELS)


def zipped(place: Path, images: np.ndarray) -> Path:
    path = place / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/top/0/._a.png", b"not an image")
        archive.writestr("top/readme.txt", b"text")
        for i, pixels in enumerate(images):
            archive.writestr(f"top/{LABELS[i]}/{i:03}.png", png(pixels))
    return path


def tar(place: Path, images: np.ndarray, suffix: str = "tar", kind: str = "cls") -> Path:
    path = place / f"images.{suffix}"
    with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for i, pixels in enumerate(images):
            add(f"set/{i:03}.png", png(pixels))  # the image first, then its label
            label = {"cls": LABELS[i], "json": json.dumps({"label": int(LABELS[i])})}[kind]
            add(f"set/{i:03}.{kind}", label.encode())
    return path


def tar_gz_json(place: Path, images: np.ndarray) -> Path:
    return tar(place, images, "tar.gz", "json")


def npz(place: Path, images: np.ndarray) -> Path:
    np.savez(place / "images.npz", images=images, labels=np.array(LABELS, np.int32))
    return place / "images.npz"


def npz_xy(place: Path, images: np.ndarray) -> Path:
    np.savez_compressed(place / "xy.npz", y=np.array(LABELS)[:, None], x=images)
    return place / "xy.npz"


def table_csv(place: Path, images: np.ndarray) -> Path:
    write_folder(place / "files", images)
    with (place / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([f"files/{i:03}.png", LABELS[i]] for i in range(len(images)))
    return place / "list.csv"


def huggingface(images: np.ndarray):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[str(i) for i in range(12)]),
        }
    )
    rows = {
        "image": [{"bytes": png(pixels), "path": None} for pixels in images],
        "label": [int(label) for label in LABELS],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def parquet(place: Path, images: np.ndarray) -> Path:
    rows = huggingface(images)
    (place / "hub" / "data").mkdir(parents=True)
    for i in range(2):
        part = rows.select(range(i * N // 2, (i + 1) * N // 2))
        part.to_parquet(place / "hub" / "data" / f"train-{i:05}-of-00002.parquet")
    rows.select([0]).to_parquet(place / "hub" / "data" / "test-00000-of-00001.parquet")
    return place / "hub"


def plain_parquet(place: Path, images: np.ndarray) -> Path:
    """Written without the datasets library: bytes and texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (place / "plain").mkdir()
    rows = pa.table({"label": LABELS, "picture": [png(pixels) for pixels in images]})
    pq.write_table(rows, place / "plain" / "a.parquet")
    return place / "plain"


def arrow(place: Path, images: np.ndarray) -> Path:
    huggingface(images).save_to_disk(place / "disk")
    return place / "disk"


PACKINGS = [
    folder, zipped, tar, tar_gz_json, npz, npz_xy, table_csv, parquet, plain_parquet, arrow,
]  # fmt: skip


@pytest.mark.parametrize("pack", PACKINGS, ids=lambda f: f.__name__)
def test_every_packing_gives_the_same_images_and_labels(tmp_path, pack):
    images = noise(N)
    prepared = data.prepare(config.Data(source=str(pack(tmp_path, images))))
    assert prepared.label_names == tuple(str(i) for i in range(12))
    found = {
        p.tobytes(): int(label) for p, label in zip(prepared.images, prepared.labels, strict=True)
    }
    expected = {p.tobytes(): int(label) for p, label in zip(images, LABELS, strict=True)}
    assert found == expected
    assert len(prepared.names) == len(set(prepared.names)) == N
    assert prepared.report["images"] == N
    assert prepared.report["unreadable"] == []


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """As Debian ships Fashion-MNIST."""
    place = tmp_path / "mnist"
    place.mkdir()
    for name, n in (("train", 30), ("t10k", 10)):
        write_idx(place / f"{name}-images-idx3-ubyte.gz", noise(n, channels=1, seed=n)[..., 0])
        write_idx(place / f"{name}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8) % 10)
    return place


def test_idx_folder_and_file_are_the_training_images(mnist):
    by_folder = data.prepare(config.Data(source=str(mnist), channels=1))
    file = mnist / "train-images-idx3-ubyte.gz"
    by_file = data.prepare(config.Data(source=str(file), channels=1))
    assert by_folder.key == by_file.key
    np.testing.assert_array_equal(by_folder.images, noise(30, channels=1, seed=30))
    np.testing.assert_array_equal(by_folder.labels, np.arange(30) % 10)
    np.testing.assert_array_equal(by_folder.held_out_ids, by_file.held_out_ids)


def test_idx_test_file_as_held_out(mnist):
    held_out = str(mnist / "t10k-images-idx3-ubyte.gz")
    prepared = data.prepare(config.Data(source=str(mnist), channels=1, held_out=held_out))
    assert len(prepared.train_ids) == 30
    np.testing.assert_array_equal(
        prepared.batch(prepared.held_out_ids), noise(10, channels=1, seed=10)
    )


def test_plain_array_has_no_labels(tmp_path):
    np.save(tmp_path / "grey.npy", noise(5, channels=1)[..., 0])
    prepared = data.prepare(config.Data(source=str(tmp_path / "grey.npy")))
    assert prepared.images.shape == (5, 8, 8, 3)  # grey shown in three channels
    assert prepared.label_names == ()
    assert (prepared.labels == -1).all()


def test_array_with_alpha_and_another_size(tmp_path):
    np.save(
        tmp_path / "a.npy", np.dstack([noise(1)[0], np.zeros((8, 8), np.uint8)])[None].repeat(2, 0)
    )
    prepared = data.prepare(config.Data(source=str(tmp_path / "a.npy"), size=(4, 6)))
    assert prepared.images.shape == (2, 4, 6, 3)
    assert (prepared.images == 255).all()


def test_minus_one_is_no_label(tmp_path):
    np.savez(tmp_path / "a.npz", images=noise(4), labels=np.array([3, -1, 7, 3]))
    prepared = data.prepare(config.Data(source=str(tmp_path / "a.npz")))
    assert prepared.label_names == ("3", "7")
    assert prepared.labels.tolist() == [0, -1, 1, 0]


def names_and_labels(place: Path) -> dict[str, str | None]:
    return {item.name: item.label for item in find(str(place)).open().items}


def test_folder_labels(tmp_path):
    content = png(noise(1)[0])
    place = tmp_path / "set"
    for name in (
        "train/cats/1.png",
        "train/cats/old/2.JPG",
        "train/dogs/3.webp",
        "train/4.gif",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    (place / "train/cats/.hidden.png").write_bytes(content)
    (place / "train/cats/notes.txt").write_text("a note")
    (place / "train/dogs/again").symlink_to(place / "train")  # a loop
    assert names_and_labels(place) == {
        "train/4.gif": None,
        "train/cats/1.png": "cats",
        "train/cats/old/2.JPG": "cats",
        "train/dogs/3.webp": "dogs",
    }


def test_one_folder_is_no_label(tmp_path):
    write_folder(tmp_path / "set" / "all", noise(3))
    assert set(names_and_labels(tmp_path / "set").values()) == {None}


def test_csv_without_labels_and_with_a_missing_file(tmp_path):
    write_folder(tmp_path, noise(3))
    (tmp_path / "list.csv").write_text("path\n000.png\ngone.png\n002.png\n")
    prepared = data.prepare(config.Data(source=str(tmp_path / "list.csv"), max_bad=0.5))
    assert prepared.names == ["000.png", "002.png"]
    assert prepared.report["unreadable"][0]["path"] == "gone.png"
    assert "No such file" in prepared.report["unreadable"][0]["reason"]


HAIR = ("black", "brown", "chestnut", "blonde", "orange", "pink", "blue", "purple")


@pytest.mark.parametrize("style", ["lorelei", "pixel-art"])
def test_avatars_are_in_the_package(style):
    contents = find(f"avatars:{style}").open()
    assert contents.label_names == HAIR
    assert contents.total == 10_000
    items = list(contents.items)
    assert len({item.name for item in items}) == 10_000
    assert {item.label for item in items} == set(HAIR)
    for item in items[::2500]:
        image = Image.open(io.BytesIO(item.read()))
        assert (image.size, image.mode) == ((32, 32), "RGB")


def test_avatars_come_with_their_licence():
    text = (Path(data.__file__).parent / "avatars" / "LICENSE.txt").read_text()
    assert text.count("CC0 1.0") >= 2


def wrong(place: Path, name: str) -> str:
    """Make a wrong source and return it."""
    path = place / name
    if name == "empty":
        path.mkdir()
    elif name == "one":
        write_folder(path, noise(1))
    elif name == "mixed":
        write_folder(path, noise(2))
        (path / "x.png").write_bytes(png(noise(1, 9, 8)[0]))
    elif name == "float.npy":
        np.save(path, np.zeros((3, 8, 8, 3), np.float32))
    elif name == "first.npy":
        np.save(path, noise(3).transpose(0, 3, 1, 2))
    elif name == "object.npy":
        np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True)
    elif name == "other.npz":
        np.savez(path, weights=np.zeros(3))
    elif name == "short.npz":
        np.savez(path, images=noise(3), labels=np.arange(2))
    elif name == "head.csv":
        path.write_text("file,class\na.png,1\n")
    elif name == "none.csv":
        path.write_text("path,label\n")
    elif name == "single.png":
        path.write_bytes(png(noise(1)[0]))
    elif name == "cut.tar":
        path.write_bytes(tar(place, noise(N)).read_bytes()[:9000])
    elif name.endswith((".zip", ".gz", ".txt", ".parquet")):
        path.write_bytes(b"rubbish" * 100)
    return str(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "there is no such file or folder; give a folder"),
        ("empty", "holds no images; expected PNG"),
        ("one", "one image; at least 2"),
        ("mixed", r"several sizes: 8×8, but 'x.png' has 9×8; .*--size 64"),
        ("float.npy", "float32 values; expected images in uint8"),
        ("first.npy", r"\(3, 3, 8, 8\); expected .* channels last"),
        ("object.npy", "cannot be read as numpy arrays"),
        ("other.npz", "holds weights; expected 'images'"),
        ("short.npz", "labels are .* each of the 3 images"),
        ("head.csv", "must be 'path,label', not 'file,class'"),
        ("none.csv", "no rows"),
        ("single.png", "single image; give the folder"),
        ("bad.zip", "cannot be read as a zip"),
        ("cut.tar", "cannot be read as a tar"),
        ("bad.gz", "not an IDX file|cannot be read as an IDX"),
        ("bad.txt", "of no known kind; give"),
        ("bad.parquet", "cannot be read as a table"),
    ],
)
def test_wrong_sources_are_named(tmp_path, name, says):
    source = wrong(tmp_path, name)
    with pytest.raises(UserError, match=says) as error:
        data.prepare(config.Data(source=source))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_avatars_and_no_source():
    with pytest.raises(UserError, match="did you mean 'avatars:lorelei'"):
        find("avatars:lorelay")
    with pytest.raises(UserError, match="add --data"):
        find("")


def test_without_the_datasets_library(tmp_path, monkeypatch):
    place = plain_parquet(tmp_path, noise(N))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'underpaint\[parquet\]'"):
        data.prepare(config.Data(source=str(place)))
