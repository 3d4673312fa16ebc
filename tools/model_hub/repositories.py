"""What a hub on this machine has: repositories with revisions, files, licences and gates; and what goes wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".model")


@dataclass
class Faults:
    """What goes wrong: `cut_after`: bytes of an answer before its connection is cut, once each; `bytes_a_second`:
    how slow; `corrupt`: paths whose first byte is wrong, so many times; `status`: of every request;
    `padding`: what follows every file.
    """

    cut_after: list[int] = field(default_factory=list[int])
    bytes_a_second: float = 0.0
    corrupt: dict[str, int] = field(default_factory=dict[str, int])
    status: int = 0
    padding: bytes = b""


@dataclass
class HubRepository:
    """A model on the hub. `gate`: the status for those without the token `accepted`; 0: open."""

    revisions: dict[str, dict[str, bytes]]  # commit → path → content; the last one is `main`
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gate: int = 0

    @property
    def main(self) -> str:
        return list(self.revisions)[-1]

    def find_commit(self, revision: str) -> str | None:
        """Return the commit of a branch or commit."""
        commit = self.main if revision in ("main", "HEAD") else revision
        return commit if commit in self.revisions else None

    def add_revision(self, files: dict[str, bytes]) -> str:
        """Make these files the newest revision; return its commit."""
        commit = hashlib.sha1(repr(sorted((path, digest(each)) for path, each in files.items())).encode()).hexdigest()
        self.revisions[commit] = files
        return commit


def make_repository(files: dict[str, bytes], **fields: Any) -> HubRepository:
    """Return a repository with one revision of these files."""
    repository = HubRepository({}, **fields)
    repository.add_revision(files)
    return repository


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return a folder's files by their paths."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe_file(path: str, content: bytes) -> dict[str, Any]:
    """Return a file as `/api/models/ID?blobs=true` lists it."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
    return (
        entry | {"lfs": {"sha256": digest(content), "size": len(content), "pointerSize": 134}}
        if is_lfs(path)
        else entry
    )
