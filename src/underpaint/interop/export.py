"""`underpaint export`: a trained model as a folder that other software reads.

A form is a module of this package with

    check(model)                 raises UserError where the model cannot take this form, and why
    write(model, folder, half)   fills an empty folder; returns facts for the command's `--json`

and is imported when it is asked for: what it needs may be an extra.
"""

import importlib
from pathlib import Path
from typing import Any

from underpaint import model as models
from underpaint import model_folder
from underpaint.errors import UserError
from underpaint.io import added, appearing, check_place, form_of, is_marked, mark, writing
from underpaint.progress import doing

FORMS = {  # --to: module of this package
    "folder": "folder",
    "onnx": "onnx",
    "diffusers": "diffusers",
    "torch-export": "torch_export",
    "web": "web",
}


def export(
    source: str | Path,
    to: str,
    out: str | Path,
    *,
    weights: model_folder.Weights = "ema",
    half: bool = False,
    vae: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the model `source` (see `model_folder.find`) into the folder `out`, in the form `to`.

    `half`: the weights in float16. `overwrite`: replaces `out` if an export of
    that form stands there. Returns
    where it is and what the form says of itself. Raises UserError for what cannot be exported.
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: is not one of {', '.join(FORMS)}")
    folder = Path(out).expanduser()
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: exists already; add --overwrite or choose another --out")
    if folder.exists() and not is_marked(folder, "export"):
        raise UserError(f"{folder}: is no export of ours; choose another --out")
    if folder.exists() and (there := form_of(folder)) not in (None, to):
        raise UserError(
            f"{folder}: is an export in the form {there}, and --overwrite replaces one of the same "
            f"form ({to}); choose another --out"
        )
    if folder.exists() and (others := added(folder)):
        raise UserError(
            f"{folder}: holds {others[0]}, which no export wrote and --overwrite would delete; "
            "move it, or choose another --out"
        )
    check_place(folder.parent)
    form = importlib.import_module(f"underpaint.interop.{FORMS[to]}")
    model = models.load(source, weights=weights, device="cpu", vae=vae)
    form.check(model)
    with writing(folder), doing(f"writing {to}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with appearing(folder, kind="export") as temporary:
            facts = form.write(model, temporary, half)
            mark(temporary, "export", to)
    return {"out": str(folder), "to": to, "model": str(source), **facts}
