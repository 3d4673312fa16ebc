"""Remembers the first revision of each model of the hub in `<data>/hub-revisions.json`.

So a model's owner cannot change what a worker runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from engine.contract import JobRejected
from engine.process.system import write_atomically

REVISIONS_FILE = "hub-revisions.json"


def read_revisions(data: Path) -> dict[str, str]:
    """Return the remembered revisions by hub id. Raises `JobRejected` where the file cannot be read."""
    path = data / REVISIONS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:  # the newest revision instead would be what the file guards against
        raise JobRejected(
            f"The file {path} cannot be read: mend it, or delete it to take the newest revisions.", "worker"
        ) from error


def remember_revision(data: Path, hub_id: str, revision: str) -> None:
    """Write a revision down, unless it is remembered already. Raises `JobRejected` or OSError."""
    revisions = read_revisions(data)
    if revisions.get(hub_id) != revision:
        content = json.dumps(revisions | {hub_id: revision}, indent=1).encode() + b"\n"
        write_atomically(data / REVISIONS_FILE, content)
