"""Broker permissions of a worker with its own key: the subjects that it may publish and subscribe to.

There are two fences. The server checks permissions on a request's subject, but not on the reply subject it names: the
reply could go to `$JS.API.STREAM.DELETE.results`. So each worker also has its own account, which has no streams and
imports only these subjects from the main account: a reply stays inside it. One account for all workers would let a
reply reach any subject that any of them may publish to.

Claims, snapshots and blobs are named by job, so subjects cannot separate workers there. Epochs fence claims and
snapshots, checksums protect blobs.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bus import subjects

SAID_TO_ALL = (subjects.kv_subject(subjects.CANCELLED, "*"), subjects.WANT_ALL, subjects.STEER_ALL)
ANSWERS = {"max": 1, "expires": "1m"}  # to shared requests: one reply each, to the inbox that the request names
SHARED = (subjects.EMBED, subjects.DESCRIBE_ALL)
API = "$JS.API"
HOUSE = "darkroom"  # the main account, with the streams: for the bot and clients with the token
NOTHING = "nothing"  # a subject without subscribers
INFO = f"{API}.INFO"


def may_publish(name: str, pools: Sequence[str]) -> list[str]:
    """Return what a worker may publish: its results, frames, presence, progress, pulls, claims, snapshots and blobs."""
    mine = subjects.token(name)
    claims = subjects.kv_subject(subjects.CLAIMS, "*")
    workers = (subjects.kv_subject(subjects.WORKERS, subjects.presence_key(name, pool)) for pool in pools)
    progress = (subjects.progress(name, pool) for pool in pools)
    snapshots = subjects.kv_subject(subjects.SNAPSHOTS, "*.*")
    parts, names = subjects.blob_part("*", "*"), f"$O.{subjects.BLOBS}.M.*"
    return [
        f"{subjects.RESULTS}.{mine}.*", subjects.FRAMES_ALL, subjects.LOADING_ALL, *workers, *progress, claims,
        snapshots, parts, names, *_read(subjects.CLAIMS, "*"), *_read(subjects.SNAPSHOTS, "*.*"),
        *_read(subjects.CANCELLED, "*"),
        f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}", f"{API}.DIRECT.GET.{subjects.BLOBS_STREAM}.{names}",
        *(subject for pool in pools for subject in _pulls(pool)),
    ]  # fmt: skip


def _read(bucket: str, key: str) -> tuple[str]:
    """Allow to read the newest value of a known key: no key list, no history."""
    return (f"{API}.DIRECT.GET.{subjects.kv_stream(bucket)}.{subjects.kv_subject(bucket, key)}",)


def _pulls(pool: str) -> tuple[str, ...]:
    """Allow the use of a pool's consumer, which the bot has made: pull, acknowledge, dead-letter."""
    consumer = f"{subjects.WORK}.{subjects.pool_consumer(pool)}"
    return (
        f"{API}.CONSUMER.INFO.{consumer}",
        f"{API}.CONSUMER.MSG.NEXT.{consumer}",
        f"$JS.ACK.{consumer}.>",
        subjects.dead(subjects.pool_filter(pool)),
    )


def may_hear(name: str, pools: Sequence[str]) -> list[str]:
    """Return what a worker may subscribe to: its inbox, broadcasts, and shared requests through queue groups.

    Latents are a member's picture, so only the pool that made it receives decode requests.
    """
    groups = (f"{subjects.EMBED} {subjects.EMBED}", f"{subjects.DESCRIBE_ALL} {subjects.DESCRIBERS}")
    decodes = (f"{one} {subjects.DECODERS}" for one in _decodes(pools))
    return [f"{subjects.inbox(name)}.>", *SAID_TO_ALL, *groups, *decodes]


def _decodes(pools: Sequence[str]) -> list[str]:
    """Return the subjects of decode requests for any model in these pools."""
    return [subjects.decode(pool, "*") for pool in pools]


def exports() -> list[dict[str, str]]:
    """Return the main account's exports for the configuration: everything that any worker may import."""
    any_pool = subjects.pool_consumer("*")
    services = [one.replace(any_pool, "*") for one in may_publish("*", ["*"])]
    offered = [{"service": one} for one in (*services, subjects.VECTORS_ALL, NOTHING)]
    return [*offered, *({"stream": one} for one in (*SAID_TO_ALL, *SHARED, *_decodes(["*"])))]


def account(public: str, name: str, pools: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Return the name of a worker's account and its entry for `accounts { … }` in a NATS configuration.

    `$JS.API.INFO` is mapped to a dead subject. Otherwise the account gets the server's own `$JS.API.>`, which answers
    beside the main account's.
    """
    services = (*may_publish(name, pools), subjects.VECTORS_ALL)
    heard = (*SAID_TO_ALL, *SHARED, *_decodes(pools))
    imports: list[dict[str, object]] = [
        {"service": {"account": HOUSE, "subject": NOTHING}, "to": INFO},
        *({"service": {"account": HOUSE, "subject": one}} for one in services),
        *({"stream": {"account": HOUSE, "subject": one}} for one in heard),
    ]
    return f"worker-{name}", {"users": [user(public, name, pools)], "imports": imports}


def user(public: str, name: str, pools: Sequence[str]) -> dict[str, object]:
    """Return the user entry of a worker's account."""
    return {
        "nkey": public,
        "permissions": {
            "publish": {"allow": may_publish(name, pools)},
            "subscribe": {"allow": may_hear(name, pools)},
            "allow_responses": ANSWERS,
        },
    }
