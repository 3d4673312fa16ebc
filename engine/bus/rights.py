"""What a worker with a key of its own may do on the broker, as the subjects that the server lets it publish and hear.

Knows subjects alone. Claims, snapshots and blobs are named by the job and not by the worker, so no subject can keep one
worker from another's: there the epochs fence, and the sums of the blobs.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bus import subjects

ANSWERS = {"max": 1, "expires": "1m"}  # to requests for vectors: each one once, at the inbox that it names
API = "$JS.API"


def may_publish(name: str, pools: Sequence[str]) -> list[str]:
    """Its own results, presence and frames; its pools' consumers; what it keeps for its jobs."""
    mine = subjects.token(name)
    claims, workers = subjects.kv_subject(subjects.CLAIMS, "*"), subjects.kv_subject(subjects.WORKERS, mine)
    snapshots = subjects.kv_subject(subjects.SNAPSHOTS, "*.*")
    chunks, names = (f"$O.{subjects.BLOBS}.{part}.*" for part in "CM")
    return [
        f"{subjects.RESULTS}.{mine}.*", subjects.FRAMES_ALL, subjects.LOADING_ALL, workers, claims, snapshots, chunks,
        names, *_read(subjects.CLAIMS, "*"), *_read(subjects.SNAPSHOTS, "*.*"), *_read(subjects.CANCELLED, "*"),
        f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}", f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}.{names}",
        *(subject for pool in pools for subject in _pulls(pool)),
    ]  # fmt: skip


def _read(bucket: str, key: str) -> tuple[str]:
    """The newest value of a key that one knows: no list of keys, no history."""
    return (f"{API}.DIRECT.GET.{subjects.kv_stream(bucket)}.{subjects.kv_subject(bucket, key)}",)


def _pulls(pool: str) -> tuple[str, ...]:
    """A pool's consumer, which the bot has made: ask for jobs, answer for them, lay aside what cannot be read."""
    consumer = f"{subjects.WORK}.{subjects.pool_consumer(pool)}"
    return (
        f"{API}.CONSUMER.INFO.{consumer}",
        f"{API}.CONSUMER.MSG.NEXT.{consumer}",
        f"$JS.ACK.{consumer}.>",
        subjects.dead(subjects.pool_filter(pool)),
    )


def may_hear(name: str) -> list[str]:
    """Its own inbox, what is said to all workers, and requests for vectors as one of the group that shares them."""
    cancelled = subjects.kv_subject(subjects.CANCELLED, "*")
    group = f"{subjects.EMBED} {subjects.EMBED}"
    return [f"{subjects.inbox(name)}.>", cancelled, subjects.WANT_ALL, subjects.STEER_ALL, group]


def user(public: str, name: str, pools: Sequence[str]) -> dict[str, object]:
    """The entry for `authorization { users: […] }` in the configuration of a NATS server."""
    return {
        "nkey": public,
        "permissions": {
            "publish": {"allow": may_publish(name, pools)},
            "subscribe": {"allow": may_hear(name)},
            "allow_responses": ANSWERS,
        },
    }
