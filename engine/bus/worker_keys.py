"""Worker keys: Ed25519 pairs (nkeys). A file in the data folder stores only their public halves."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from engine.contract import Name

KEY_FILE = "worker-keys.json"  # in the data folder, not in the broker's, which may be deleted
SEED_PATTERN = re.compile(r"SU[A-Z2-7]{56}")


class BadKey(ValueError):
    """A key, a name or the key file is invalid; the message says how."""


class WorkerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stored key. `created_on`: the day of its creation."""

    name: Name
    public: Annotated[str, Meta(pattern=r"^U[A-Z2-7]{55}\Z")]
    pools: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    created_on: Annotated[str, Meta(max_length=10)]


def create_key(name: str, pools: Sequence[str], day: str) -> tuple[WorkerKey, str]:
    """Return a new key and its seed, which is stored nowhere. Raises `BadKey` for an invalid name."""
    import nkeys  # lazily: it loads libsodium

    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER).decode()
    fields = {"name": name, "public": derive_public_key(seed), "pools": list(dict.fromkeys(pools)), "created_on": day}
    try:
        return msgspec.convert(fields, WorkerKey), seed
    except msgspec.ValidationError as error:
        raise BadKey(
            "A worker and its pools have names of up to 64 letters, digits, dots, hyphens and underscores, "
            "which begin with a letter or a digit; there are 1 to 16 pools."
        ) from error


def derive_public_key(seed: str) -> str:
    """Return the public half. Raises `BadKey` where the seed fails its checksum."""
    import nkeys

    try:
        prefix, raw = nkeys.decode_seed(seed.encode())
        if not SEED_PATTERN.fullmatch(seed) or nkeys.encode_seed(raw, prefix).decode() != seed:
            raise ValueError("not what its sum says")
        return bytes(nkeys.from_seed(seed.encode()).public_key).decode()  # bytes at runtime, despite its annotation
    except (nkeys.NkeysError, ValueError) as error:
        raise BadKey(
            "This is no worker's key, or not all of it: a key begins with SU and has 58 letters and digits."
        ) from error


def read_keys(path: Path) -> list[WorkerKey]:
    """Return every key of the file; none where there is no file. Raises `BadKey` where it is unreadable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[WorkerKey])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadKey(f"The file of workers' keys, {path}, cannot be read: {error}.") from error


def write_keys(path: Path, keys: Sequence[WorkerKey]) -> None:
    """Write the file atomically, mode 600."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(keys)) + b"\n")


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically by one of mode 600."""
    draft_path = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft_path.replace(path)


@contextmanager
def lock_file(path: Path) -> Generator[None]:
    """Lock the keys, and the configuration made from them, against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock_fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock_fd)
