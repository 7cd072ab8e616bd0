"""Uploading a model to the Hugging Face Hub: weights, config.json, card and samples, no more."""

import tempfile
from pathlib import Path
from typing import Any

from underpaint._version import __version__
from underpaint.hub import Repository
from underpaint.interop import card
from underpaint.model import Model
from underpaint.model_folder import SAVED


def push(
    model: Model,
    name: str,
    private: bool | None = None,
    half: bool = False,
    message: str | None = None,
) -> str:
    """Upload `model` to `name`, which is `org/name` or `org/name@BRANCH`; returns its address.

    See `Model.push_to_hub`. Raises UserError where the Hub refuses.
    """
    repository = Repository.named(name)
    from huggingface_hub import HfApi

    api = HfApi(library_name="underpaint", library_version=__version__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.write(folder, half=half, name=repository.name)  # before anything is made there
        with repository.asking("write"):
            made = api.create_repo(repository.name, private=private, exist_ok=True)
            if branch := repository.revision:
                api.create_branch(repository.name, branch=branch, exist_ok=True)
            _keep_licence(api, repository, folder / "README.md")
            api.upload_folder(
                repo_id=repository.name,
                folder_path=folder,
                revision=branch,
                commit_message=message or f"Upload a model of underpaint {__version__}",
                allow_patterns=list(SAVED),
            )
    return f"{made}/tree/{branch}" if branch else str(made)


def _keep_licence(api: Any, repository: Repository, path: Path) -> None:
    """Put the licence that the card there names into a new one that names none."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if card.UNCHOSEN not in text:
        return
    try:
        there = api.hf_hub_download(repository.name, "README.md", revision=repository.revision)
    except RemoteEntryNotFoundError:
        return
    chosen = card.licence(Path(there).read_text(encoding="utf-8", errors="replace"))
    path.write_text(text.replace(card.UNCHOSEN, chosen or card.UNCHOSEN, 1), encoding="utf-8")
