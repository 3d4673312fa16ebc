"""Names on the wire: subjects, streams, buckets and keys.

A contract `Name` may contain dots, which separate tokens in NATS. Here a dot becomes `=`, which `Name` does not allow,
so no two names share a token.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode

from engine.contract import Job

WORK = "work"
RESULTS = "results"
DEAD_LETTERS = "dead"
CLAIMS = "claims"
LEADERS = "leaders"
SNAPSHOTS = "snapshots"
CANCELLED = "cancelled"
WORKERS = "workers"
BLOBS = "blobs"
BLOBS_STREAM = f"OBJ_{BLOBS}"
EMBED = "embed"
RESULT_CONSUMER = "settle"  # the durable consumer of results

FRAMES_ALL = "frames.*"
LOADING_ALL = "loading.*"
PREVIEW_REQUESTS_ALL = "want.*"
CONTROL_ALL = "steer.*"
PROGRESS_ALL = "progress.*.*"
REPLIES_ALL = "vectors.*"
DESCRIBE_ALL = "describe.*"
DESCRIBE_GROUP = "describe"  # queue group: workers share these requests
DECODE_GROUP = "decode"  # queue group: workers share decode requests


def to_token(name: str) -> str:
    """Return a contract name as one subject token or consumer name."""
    return name.replace(".", "=")


def make_inbox_subject(worker: str) -> str:
    """Return where replies to a worker with its own key go: no other worker can subscribe there."""
    return f"_INBOX.{to_token(worker)}"


def make_work_subject(job: Job) -> str:
    """Return a dispatch subject. It contains the attempt, so a requeue is never taken for a duplicate."""
    return f"{WORK}.{to_token(job.pool)}.{job.id}.{job.attempt}"


def all_attempts(pool: str, job: str) -> str:
    """Return the pattern for every attempt of a job."""
    return f"{WORK}.{to_token(pool)}.{job}.*"


def pool_filter(pool: str) -> str:
    return f"{WORK}.{to_token(pool)}.>"


def pool_consumer(pool: str) -> str:
    return f"pool-{to_token(pool)}"


def make_result_subject(worker: str, job: str) -> str:
    return f"{RESULTS}.{to_token(worker)}.{job}"


def parse_result_subject(subject: str) -> tuple[str, str]:
    """Return worker and job of a result's subject. A worker with its own key cannot publish under another's name."""
    _, _, worker_and_job = subject.partition(".")
    worker, _, job = worker_and_job.partition(".")
    return worker.replace("=", "."), job


def make_frame_subject(job: str) -> str:
    return f"frames.{job}"


def make_loading_subject(job: str) -> str:
    """Return the subject of loading progress: not a frame, which readers would take for a broken preview."""
    return f"loading.{job}"


def make_preview_request_subject(job: str) -> str:
    return f"want.{job}"


def make_control_subject(job: str) -> str:
    """Return the subject for pause, resume and weight of a job; the worker that runs it listens."""
    return f"steer.{job}"


def make_amendment_subject(pool: str, job: str) -> str:
    """Return the subject for changes of a job's picture; the workers of its pool listen, since changes have words."""
    return f"amend.{to_token(pool)}.{job}"


def make_reply_subject(request: str) -> str:
    """Return the subject for a reply to the bot: remote workers cannot reach its inboxes."""
    return f"vectors.{request}"


def make_describe_subject(model: str) -> str:
    """Return the subject of image-to-prompt requests, for workers with this model."""
    return f"describe.{to_token(model)}"


def make_decode_subject(pool: str, model: str) -> str:
    """Return the subject of decode requests, for workers with this model in the pool that made the picture."""
    return f"decode.{to_token(pool)}.{to_token(model)}"


def make_progress_subject(worker: str, pool: str) -> str:
    """Return the subject of a worker's loading progress: one for each of its pools, stored nowhere."""
    return f"progress.{presence_key(worker, pool)}"


def parse_progress_subject(subject: str) -> tuple[str, str]:
    """Return worker and pool of a progress subject."""
    _, worker, pool = subject.split(".")
    return worker.replace("=", "."), pool.replace("=", ".")


def make_dead_letter_subject(subject: str) -> str:
    return f"{DEAD_LETTERS}.{subject}"


def snapshot_key(job: str, image: int) -> str:
    return f"{job}.{image}"


def amendment_log_key(job: str) -> str:
    """Return the key of a job's amendments, beside its snapshots."""
    return f"{job}.amendments"


def presence_key(worker: str, pool: str) -> str:
    """Return the key of a presence. There is one for each pool, so the broker can limit a worker key to its pools."""
    return f"{to_token(worker)}.{to_token(pool)}"


def parse_presence_subject(subject: str) -> tuple[str, str]:
    """Return worker and pool of a presence's subject; empty where it does not name both."""
    tokens = subject.removeprefix(kv_subject(WORKERS, "")).split(".")
    worker, pool = tokens if len(tokens) == 2 else ("", "")
    return worker.replace("=", "."), pool.replace("=", ".")


def blob_entry(sha: str) -> str:
    """Return the subject of a blob's entry: its name in base64, as in the client library's object store."""
    return f"$O.{BLOBS}.M.{urlsafe_b64encode(sha.encode()).decode()}"


def blob_chunk(chunk_id: str, number: int | str) -> str:
    """Return the subject of one chunk of a blob; a newer message replaces it."""
    return f"$O.{BLOBS}.C.{chunk_id}.{number}"


def kv_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"
