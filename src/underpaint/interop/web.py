"""A trained model as a page that draws: a folder for any static server or a static Space.

The page (`page/`, plain JavaScript) runs the ONNX graph of the model by onnxruntime-web (`ort/`, as
its authors ship it; see THIRD_PARTY.md) in the browser, beside the page and in one thread. It reads
its own files alone. `manifest.json` has the sha256 and the size of each.
"""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from underpaint._version import __version__
from underpaint.bounded import read_json
from underpaint.data import cache
from underpaint.interop import export, onnx
from underpaint.io import added, is_marked, mark, replace_text
from underpaint.model import Model
from underpaint.model_folder import find, read_card

HERE = Path(__file__).parent
PAGE = HERE / "page"  # copied as it is, with the theme that it shares with reports
THEME = HERE.parent / "theme.css"
ORT = "ort.wasm.bundle.min.mjs"  # copied as .js, which every server knows to be a script
RUNTIME = {  # of onnxruntime-web 1.30.0: file: sha256 of what is in it, unpacked
    ORT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm.gz": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
    "LICENSE": "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c",
}
NOTE = "source.json"  # of which weights `made` wrote the page


def check(model: Model) -> None:
    """Raise UserError for a model that cannot be drawn with in a browser, and why."""
    onnx.check(model)


def write(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Fill `folder` with the page, the runtime, the graph and the manifest; returns facts."""
    facts = onnx.write_graph(model, folder, half)
    for file in (*sorted(PAGE.iterdir()), THEME):
        shutil.copyfile(file, folder / file.name)
    (folder / "ort").mkdir()
    for name in RUNTIME:
        target = name.removesuffix(".mjs") + ".js" if name == ORT else name
        shutil.copyfile(HERE / "ort" / name, folder / "ort" / target)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"format": 1, "files": files}, indent=1)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return {**facts, "files": len(files) + 1, "total": sum(f["bytes"] for f in files.values())}


def unpacked_sha256(name: str) -> str:
    """The checksum of a file of the runtime in this package, without gzip."""
    data = (HERE / "ort" / name).read_bytes()
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    return hashlib.sha256(data).hexdigest()


# --- for `underpaint app` and the quick start ----------------------------------------------------


def place(source: str | Path) -> Path:
    """Where the page of a model is kept: `web` in a run that can be written to, else the cache."""
    run = Path(source).expanduser()
    folder = run / "web"
    ours = (is_marked(folder, "export") and not added(folder)) or not os.path.lexists(folder)
    if is_marked(run, "run") and os.access(run, os.W_OK) and ours:
        return folder
    name = hashlib.sha256(str(find(source).resolve()).encode()).hexdigest()[:16]
    return cache.root() / "web" / name


def made(source: str | Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder of the page of this model's averaged weights, written if they changed since.

    `say` hears that it is written, which takes seconds. Raises UserError as `export.export`.
    """
    folder = place(source)
    card = read_card(find(source))
    of = {"underpaint": __version__, "sha256": card["sha256"], "model": card["model"]}
    if not (is_marked(folder, "export") and _noted(folder) == of):
        say(f"writing the page into {folder}, once for these weights …")
        export.export(source, "web", folder, overwrite=True)
        replace_text(folder / NOTE, json.dumps(of, indent=1) + "\n")
        mark(folder, "export", "web")  # with the note
    return folder


def _noted(folder: Path) -> Any:
    """What `made` wrote last, of the weights that the page has."""
    try:
        return read_json(folder / NOTE)
    except (OSError, ValueError):
        return None
