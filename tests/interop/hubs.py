"""A Hub that is a folder: what the tests upload they can download, and every call is kept."""

import fnmatch
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

HTTPX = __import__(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def refusal(kind: type[errors.HfHubHTTPError], status: int, message: str) -> Exception:
    """A real exception of huggingface_hub, as an answer of the Hub raises it."""
    request = HTTPX.Request("GET", "https://huggingface.co/api/models/org/name")
    return kind(message, response=HTTPX.Response(status, request=request))


class FakeHub:
    """`HfApi` and `snapshot_download` of a Hub in `root`; put in their place by `install`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.heads: dict[tuple[str, str], str] = {}  # the commit of (repository, branch)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def files(self, repository: str, branch: str = "main") -> Path:
        return self.root / "snapshots" / self.heads[repository, branch]

    def create_repo(self, repo_id: str, **given: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **given}))
        return f"https://huggingface.co/{repo_id}"

    def create_branch(self, repo_id: str, **given: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **given}))

    def hf_hub_download(self, repo_id: str, filename: str, revision: str | None) -> str:
        head = (repo_id, revision or "main")
        if head not in self.heads or not (path := self.files(*head) / filename).is_file():
            raise refusal(errors.RemoteEntryNotFoundError, 404, "404 Client Error.")
        return str(path)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: Sequence[str], **given: Any
    ) -> None:
        there = sorted(str(p.relative_to(folder_path)) for p in folder_path.rglob("*"))
        sent = [n for n in there if any(fnmatch.fnmatch(n, p) for p in allow_patterns)]
        self.calls.append(("upload_folder", {"repo_id": repo_id, "files": sent, **given}))
        commit = hashlib.sha1(b"".join((folder_path / n).read_bytes() for n in sent)).hexdigest()
        self.heads[repo_id, given.get("revision") or "main"] = commit
        (self.root / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        for name in sent:
            shutil.copy(folder_path / name, self.root / "snapshots" / commit / name)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: Sequence[str]
    ) -> str:
        self.calls.append(("snapshot_download", {"repo_id": repo_id, "revision": revision}))
        commits = {c for (name, _), c in self.heads.items() if name == repo_id}
        if not commits:
            raise refusal(errors.RepositoryNotFoundError, 401, "401 Client Error.")
        commit = self.heads.get((repo_id, revision or "main"), revision)
        if commit not in commits:
            raise refusal(errors.RevisionNotFoundError, 404, "404 Client Error.")
        place = self.root / "cache" / "snapshots" / str(commit)
        place.mkdir(parents=True, exist_ok=True)
        for path in (self.root / "snapshots" / str(commit)).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, place / path.name)
        return str(place)
