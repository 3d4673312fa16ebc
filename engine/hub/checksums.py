"""Checksums of downloaded files against what the hub says: SHA-256 of files in Git LFS, Git's blob id of others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from engine.hub.repository import RepositoryFile

CHUNK_BYTES = 2**22


def is_intact(path: Path, file: RepositoryFile, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Whether the file at `path` is the hub's, byte by byte. Calls `on_bytes` with each count of bytes that it read.

    Raises OSError where the file cannot be read.
    """
    if path.stat().st_size != file.size:
        return False
    if not file.has_checksum:
        return True  # the hub said no more than the size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest() == (file.sha256 or file.git_sha1)
