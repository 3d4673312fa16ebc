"""What a worker with a key of its own may do on the broker, as the subjects that the server lets it publish and hear.

There are two fences. The server does not ask a user's permissions about the inbox that a request names, and would send
its answer to `$JS.API.STREAM.DELETE.results` as well as to any other. So each worker has an account of its own, which
has no streams and takes no subject but these from the house's account: an answer stays with whoever asked. In one
account for all workers it would still reach whatever any of them may say.

Knows subjects alone. Claims, snapshots and blobs are named by the job and not by the worker, so no subject can keep one
worker from another's: there the epochs fence, and the sums of the blobs.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bus import subjects

SAID_TO_ALL = (subjects.kv_subject(subjects.CANCELLED, "*"), subjects.WANT_ALL, subjects.STEER_ALL)
ANSWERS = {"max": 1, "expires": "1m"}  # to requests that are shared: each one once, at the inbox that it names
SHARED = (subjects.EMBED, subjects.DESCRIBE_ALL)
API = "$JS.API"
HOUSE = "darkroom"  # the account with the streams, of the bot and of whoever has the token
NOTHING = "nothing"  # a subject that nobody hears
INFO = f"{API}.INFO"


def may_publish(name: str, pools: Sequence[str]) -> list[str]:
    """Its results and frames; presence and progress in its pools, and their consumers; what it keeps for its jobs."""
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


def may_hear(name: str, pools: Sequence[str]) -> list[str]:
    """Its own inbox, what is said to all workers, and requests to embed, describe and decode as one of their groups.

    Latents are a member's picture: only the pool that drew it is asked to decode them.
    """
    groups = (f"{subjects.EMBED} {subjects.EMBED}", f"{subjects.DESCRIBE_ALL} {subjects.DESCRIBERS}")
    decodes = (f"{one} {subjects.DECODERS}" for one in _decodes(pools))
    return [f"{subjects.inbox(name)}.>", *SAID_TO_ALL, *groups, *decodes]


def _decodes(pools: Sequence[str]) -> list[str]:
    """Requests to decode with any model, in these pools."""
    return [subjects.decode(pool, "*") for pool in pools]


def exports() -> list[dict[str, str]]:
    """What the house's account offers, as its configuration has it: to any worker whatever it may take from there."""
    any_pool = subjects.pool_consumer("*")
    services = [one.replace(any_pool, "*") for one in may_publish("*", ["*"])]
    offered = [{"service": one} for one in (*services, subjects.VECTORS_ALL, NOTHING)]
    return [*offered, *({"stream": one} for one in (*SAID_TO_ALL, *SHARED, *_decodes(["*"])))]


def account(public: str, name: str, pools: Sequence[str]) -> tuple[str, dict[str, object]]:
    """The name of a worker's account, and its entry for `accounts { … }` in the configuration of a NATS server.

    An account that takes nothing of this name is given the server's own `$JS.API.>`, which answers beside the house's.
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
    """The entry for the users of its account."""
    return {
        "nkey": public,
        "permissions": {
            "publish": {"allow": may_publish(name, pools)},
            "subscribe": {"allow": may_hear(name, pools)},
            "allow_responses": ANSWERS,
        },
    }
