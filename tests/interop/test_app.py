"""`underpaint app`: serves one folder, on this machine alone."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from underpaint import serving
from underpaint.cli import app, main
from underpaint.interop import web


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.socket() as other:
        other.bind((serving.HERE, 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to serve, in place of the page of a model."""
    (tmp_path / "ort").mkdir()
    for name in ("index.html", "page.js", "model.onnx", "ort/x.wasm.gz", "page.css"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(web, "made", lambda source, say: tmp_path)
    return tmp_path


def test_files_have_their_types_and_folders_are_not_listed(page: Path) -> None:
    with serving.bound(app.of(page), 18010) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        types = {"": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
        for name, expected in types.items():
            with urllib.request.urlopen(address + name) as answer:
                assert answer.headers["Content-Type"].startswith(expected)
        with urllib.request.urlopen(address + "ort/x.wasm.gz") as answer:
            assert answer.headers["Content-Encoding"] is None
        for name in ("ort/", "../conftest.py", "nothing"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + name)
        server.shutdown()


def test_the_next_port_is_taken_and_said(
    taken: int, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(server: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", pressed)
    flags = ["--port", str(taken), "--no-browser", "--json"]
    assert main(["app", "pretrained:lorelei", *flags]) == 130
    said = capsys.readouterr()
    port = int(json.loads(said.out)["url"].rsplit(":", 1)[1].strip("/"))
    assert taken < port < taken + serving.TRIES
    there = f"http://127.0.0.1:{port}/ is there instead"
    assert said.err == f"port {taken} is in use; {there}\n"  # and Ctrl-C says nothing


def test_the_browser_is_opened(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda address: opened.set())
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: opened.wait(5))
    assert main(["app", "pretrained:lorelei", "--port", "18110", "--quiet"]) == 0
    assert opened.is_set()


def test_wrong_ports(
    wrong: Callable[..., str], taken: int, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--port 0: give a number from 1" in wrong("app", "x", "--port", 0)
    assert "--share" in wrong("app", "x", "--share")
    monkeypatch.setattr(serving, "TRIES", 1)
    assert f"--port {taken}: is in use" in wrong("app", "x", "--port", taken)


def test_a_model_that_is_not_there(wrong: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "no") in wrong("app", tmp_path / "no")
