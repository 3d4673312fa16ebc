"""The names on the wire: subjects, streams, buckets and keys.

Knows only names; opens nothing. A contract `Name` may hold dots, which NATS reads as a separator of tokens, so a dot
becomes `=` here: that sign is not in `Name`'s alphabet, so no two names become one token.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode

from engine.job import Job

WORK = "work"
RESULTS = "results"
DEAD = "dead"
CLAIMS = "claims"
LEADERS = "leaders"
SNAPSHOTS = "snapshots"
CANCELLED = "cancelled"
WORKERS = "workers"
BLOBS = "blobs"
BLOBS_STREAM = f"OBJ_{BLOBS}"
EMBED = "embed"
SETTLE = "settle"  # the one durable consumer of results

FRAMES_ALL = "frames.*"
LOADING_ALL = "loading.*"
WANT_ALL = "want.*"
STEER_ALL = "steer.*"
PROGRESS_ALL = "progress.*.*"
VECTORS_ALL = "vectors.*"
DESCRIBE_ALL = "describe.*"
DESCRIBERS = "describe"  # the group of workers that share such requests
DECODERS = "decode"  # the group of workers that share requests to decode


def token(name: str) -> str:
    """A contract name as one subject token or consumer name."""
    return name.replace(".", "=")


def inbox(worker: str) -> str:
    """Where answers to a worker with a key of its own go: others cannot listen there."""
    return f"_INBOX.{token(worker)}"


def work(job: Job) -> str:
    """The attempt is in the name, so that a requeue is never mistaken for a duplicate."""
    return f"{WORK}.{token(job.pool)}.{job.id}.{job.attempt}"


def work_of(pool: str, job: str) -> str:
    """Every attempt at a job."""
    return f"{WORK}.{token(pool)}.{job}.*"


def pool_filter(pool: str) -> str:
    return f"{WORK}.{token(pool)}.>"


def pool_consumer(pool: str) -> str:
    return f"pool-{token(pool)}"


def result(worker: str, job: str) -> str:
    return f"{RESULTS}.{token(worker)}.{job}"


def speaker(subject: str) -> tuple[str, str]:
    """Worker and job that a result's subject names. With a key of its own, a worker cannot name another one there."""
    _, _, rest = subject.partition(".")
    worker, _, job = rest.partition(".")
    return worker.replace("=", "."), job


def frames(job: str) -> str:
    return f"frames.{job}"


def loading(job: str) -> str:
    """Beside the frames and not among them: a bot that does not know it would take it for a broken preview."""
    return f"loading.{job}"


def want(job: str) -> str:
    return f"want.{job}"


def steer(job: str) -> str:
    """A pause, its end, or a weight: beside the wants, and like them for whichever worker runs the job."""
    return f"steer.{job}"


def vectors(request: str) -> str:
    """Where the answer to a request of the bot's goes: workers elsewhere reach none of its inboxes."""
    return f"vectors.{request}"


def describe(model: str) -> str:
    """Requests to hold a picture against texts, for whoever has this model."""
    return f"describe.{token(model)}"


def decode(pool: str, model: str) -> str:
    """Requests to decode latents, for whoever has this model in the pool that drew the picture."""
    return f"decode.{token(pool)}.{token(model)}"


def progress(worker: str, pool: str) -> str:
    """What a worker does before it can draw: like a presence for each of its pools, and like a frame kept nowhere."""
    return f"progress.{presence_key(worker, pool)}"


def progressing(subject: str) -> tuple[str, str]:
    """Worker and pool that such a subject names."""
    _, worker, pool = subject.split(".")
    return worker.replace("=", "."), pool.replace("=", ".")


def dead(subject: str) -> str:
    return f"{DEAD}.{subject}"


def snapshot_key(job: str, image: int) -> str:
    return f"{job}.{image}"


def presence_key(worker: str, pool: str) -> str:
    """A presence for each pool: which of them a worker may say that it serves, the broker decides by its key."""
    return f"{token(worker)}.{token(pool)}"


def announced(subject: str) -> tuple[str, str]:
    """Worker and pool that a presence's subject names; nothing where it does not name both."""
    tokens = subject.removeprefix(kv_subject(WORKERS, "")).split(".")
    worker, pool = tokens if len(tokens) == 2 else ("", "")
    return worker.replace("=", "."), pool.replace("=", ".")


def blob(sha: str) -> str:
    """Where a blob is described: under its name in base64, as the client library's object store has it."""
    return f"$O.{BLOBS}.M.{urlsafe_b64encode(sha.encode()).decode()}"


def blob_part(nuid: str, part: int | str) -> str:
    """A part of a blob's bytes, each on a subject of its own: the next message there replaces it."""
    return f"{blob_parts(nuid)}.{part}"


def blob_parts(nuid: str) -> str:
    """Where all parts lay in data folders from before."""
    return f"$O.{BLOBS}.C.{nuid}"


def kv_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"
