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

from engine.bus import subjects
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


BROADCASTS = (subjects.kv_subject(subjects.CANCELLED, "*"), subjects.PREVIEW_REQUESTS_ALL, subjects.CONTROL_ALL)
RESPONSE_LIMITS = {"max": 1, "expires": "1m"}  # to shared requests: one reply each, to the inbox that the request names
SHARED_REQUESTS = (subjects.EMBED, subjects.DESCRIBE_ALL)
API = "$JS.API"
MAIN_ACCOUNT = "darkroom"  # the main account, with the streams: for the bot and clients with the token
DEAD_SUBJECT = "nothing"  # a subject without subscribers
INFO = f"{API}.INFO"


def list_publish_subjects(name: str, pools: Sequence[str]) -> list[str]:
    """Return what a worker may publish: its results, frames, presence, progress, pulls, claims, snapshots and blobs."""
    worker_token = subjects.to_token(name)
    claims = subjects.kv_subject(subjects.CLAIMS, "*")
    workers = (subjects.kv_subject(subjects.WORKERS, subjects.presence_key(name, pool)) for pool in pools)
    progress = (subjects.make_progress_subject(name, pool) for pool in pools)
    snapshots = subjects.kv_subject(subjects.SNAPSHOTS, "*.*")
    chunk_subjects = subjects.blob_chunk("*", "*")
    entry_subjects = f"$O.{subjects.BLOBS}.M.*"
    return [
        f"{subjects.RESULTS}.{worker_token}.*",
        subjects.FRAMES_ALL,
        subjects.LOADING_ALL,
        *workers,
        *progress,
        claims,
        snapshots,
        chunk_subjects,
        entry_subjects,
        *_direct_get_subjects(subjects.CLAIMS, "*"),
        *_direct_get_subjects(subjects.SNAPSHOTS, "*.*"),
        *_direct_get_subjects(subjects.CANCELLED, "*"),
        f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}",
        f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}.{entry_subjects}",
        *(subject for pool in pools for subject in _pull_subjects(pool)),
    ]


def _direct_get_subjects(bucket: str, key: str) -> tuple[str]:
    """Allow to read the newest value of a known key: no key list, no history."""
    return (f"{API}.DIRECT.GET.{subjects.kv_stream(bucket)}.{subjects.kv_subject(bucket, key)}",)


def _pull_subjects(pool: str) -> tuple[str, ...]:
    """Allow the use of a pool's consumer, which the bot has made: pull, acknowledge, dead-letter."""
    consumer = f"{subjects.WORK}.{subjects.pool_consumer(pool)}"
    return (
        f"{API}.CONSUMER.INFO.{consumer}",
        f"{API}.CONSUMER.MSG.NEXT.{consumer}",
        f"$JS.ACK.{consumer}.>",
        subjects.make_dead_letter_subject(subjects.pool_filter(pool)),
    )


def list_subscribe_subjects(name: str, pools: Sequence[str]) -> list[str]:
    """Return what a worker may subscribe to: its inbox, broadcasts, and shared requests through queue groups.

    Latents are a member's picture, so only the pool that made it receives decode requests. Changes are a member's
    words, so only the pool that draws the picture receives them.
    """
    groups = (f"{subjects.EMBED} {subjects.EMBED}", f"{subjects.DESCRIBE_ALL} {subjects.DESCRIBE_GROUP}")
    decode_subjects = (f"{subject} {subjects.DECODE_GROUP}" for subject in _decode_subjects(pools))
    amendment_subjects = _amendment_subjects(pools)
    return [f"{subjects.make_inbox_subject(name)}.>", *BROADCASTS, *amendment_subjects, *groups, *decode_subjects]


def _decode_subjects(pools: Sequence[str]) -> list[str]:
    """Return the subjects of decode requests for any model in these pools."""
    return [subjects.make_decode_subject(pool, "*") for pool in pools]


def _amendment_subjects(pools: Sequence[str]) -> list[str]:
    """Return the subjects of changes of any job in these pools."""
    return [subjects.make_amendment_subject(pool, "*") for pool in pools]


def build_exports() -> list[dict[str, str]]:
    """Return the main account's exports for the configuration: everything that any worker may import."""
    any_pool = subjects.pool_consumer("*")
    services = [subject.replace(any_pool, "*") for subject in list_publish_subjects("*", ["*"])]
    service_exports = [{"service": one} for one in (*services, subjects.REPLIES_ALL, DEAD_SUBJECT)]
    streams = (*BROADCASTS, *SHARED_REQUESTS, *_decode_subjects(["*"]), *_amendment_subjects(["*"]))
    return [*service_exports, *({"stream": one} for one in streams)]


def build_account(public_key: str, name: str, pools: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Return the name of a worker's account and its entry for `accounts { … }` in a NATS configuration.

    `$JS.API.INFO` is mapped to a dead subject. Otherwise the account gets the server's own `$JS.API.>`, which answers
    beside the main account's.
    """
    services = (*list_publish_subjects(name, pools), subjects.REPLIES_ALL)
    streams = (*BROADCASTS, *SHARED_REQUESTS, *_decode_subjects(pools), *_amendment_subjects(pools))
    imports: list[dict[str, object]] = [
        {"service": {"account": MAIN_ACCOUNT, "subject": DEAD_SUBJECT}, "to": INFO},
        *({"service": {"account": MAIN_ACCOUNT, "subject": subject}} for subject in services),
        *({"stream": {"account": MAIN_ACCOUNT, "subject": one}} for one in streams),
    ]
    return f"worker-{name}", {"users": [build_user(public_key, name, pools)], "imports": imports}


def build_user(public_key: str, name: str, pools: Sequence[str]) -> dict[str, object]:
    """Return the user entry of a worker's account."""
    return {
        "nkey": public_key,
        "permissions": {
            "publish": {"allow": list_publish_subjects(name, pools)},
            "subscribe": {"allow": list_subscribe_subjects(name, pools)},
            "allow_responses": RESPONSE_LIMITS,
        },
    }
