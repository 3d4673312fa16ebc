"""The names on the wire: subjects, streams, buckets and keys.

Knows only names; opens nothing. A contract `Name` may hold dots, which NATS reads as a separator of tokens, so a dot
becomes `=` here: that sign is not in `Name`'s alphabet, so no two names become one token.
"""

from __future__ import annotations

from engine.job import Job

WORK = "work"
RESULTS = "results"
DEAD = "dead"
CLAIMS = "claims"
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


def token(name: str) -> str:
    """A contract name as one subject token or consumer name."""
    return name.replace(".", "=")


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


def dead(subject: str) -> str:
    return f"{DEAD}.{subject}"


def snapshot_key(job: str, image: int) -> str:
    return f"{job}.{image}"


def kv_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"
