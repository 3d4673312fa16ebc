"""Broker permissions of a worker with its own key: the subjects that it may publish and subscribe to.

The server checks permissions on a request's subject, but not on the reply subject that it names. So the reply could go
to `$JS.API.STREAM.DELETE.results`. Therefore each worker also has its own account, so that a reply stays inside it. The
account has no streams and imports only these subjects from the main account. One account for all workers would let a
reply reach any subject that any of them may publish to.

The subjects of claims and snapshots name the job, and those of blobs their hash, so they cannot separate workers.
Epochs fence claims and snapshots, checksums protect blobs.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bus import subjects

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
