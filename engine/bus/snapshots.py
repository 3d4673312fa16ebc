"""Snapshots of running images in a bucket: one key an image, and one for a job's amendments.

All are written by compare-and-set on the epoch.

A snapshot too large for a message is stored as a blob, and its key names the blob.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import msgspec
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.bus import subjects
from engine.bus.blobs import BlobMissing, BlobStore
from engine.bus.claims import StaleEpoch
from engine.contract import (
    MAX_CANDIDATE_IMAGES,
    MAX_COUNT,
    AmendmentLog,
    Epoch,
    MalformedMessage,
    Sha256,
    Snapshot,
    decode,
    encode,
)

log = logging.getLogger(__name__)

LARGEST_VALUE = 6 * 1024 * 1024  # below the broker's 8 MB a message
LARGEST_SNAPSHOT = 1024 * 1024 * 1024


class SnapshotBlobRef(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Names the blob of a snapshot that is too large for a message."""

    epoch: Epoch
    sha256: Sha256


def _decode_value(payload: bytes) -> Snapshot | AmendmentLog | SnapshotBlobRef:
    return decode(payload, cast(Any, Snapshot | AmendmentLog | SnapshotBlobRef))


class SnapshotStore:
    """The snapshots bucket.

    `has_worker_key`: our key may not purge a stream, so a dropped snapshot leaves a delete marker.
    """

    def __init__(
        self, js: JetStreamContext, bucket: KeyValue, blobs: BlobStore, *, has_worker_key: bool = False
    ) -> None:
        self._js = js
        self._bucket = bucket
        self._blobs = blobs
        self._has_worker_key = has_worker_key
        self._own_writes: dict[str, tuple[int, int, str]] = {}  # key → (epoch, revision, blob) of our last write

    async def put(self, snapshot: Snapshot) -> None:
        """Write the snapshot. Raises `StaleEpoch` if a newer epoch has written that image."""
        value, blob = await self._pack(snapshot)
        await self._write(subjects.snapshot_key(snapshot.job, snapshot.image), value, snapshot.epoch, blob)

    async def put_amendment_log(self, amendment_log: AmendmentLog) -> None:
        """Write a job's amendments. Raises `StaleEpoch` if a newer epoch has written them."""
        await self._write(subjects.amendment_log_key(amendment_log.job), encode(amendment_log), amendment_log.epoch)

    async def _write(self, key: str, value: bytes, own_epoch: int, blob: str = "") -> None:
        for _ in range(3):
            epoch, revision, old_blob = self._own_writes.get(key) or await self._read_stored(key)
            if epoch > own_epoch:
                self._own_writes.pop(key, None)
                raise StaleEpoch(f"{key} is of a newer epoch")
            try:
                new_revision = await self._bucket.update(key, value, last=revision)
            except KeyWrongLastSequenceError:
                self._own_writes.pop(key, None)
                continue
            self._own_writes[key] = (own_epoch, new_revision, blob)
            if old_blob and old_blob != blob:
                await self._blobs.drop(old_blob)
            return
        raise StaleEpoch(f"somebody else is writing {key}")

    async def _pack(self, snapshot: Snapshot) -> tuple[bytes, str]:
        value = encode(snapshot)
        if len(value) <= LARGEST_VALUE:
            return value, ""
        sha = await self._blobs.put(value)
        return encode(SnapshotBlobRef(epoch=snapshot.epoch, sha256=sha)), sha

    async def _read_stored(self, key: str) -> tuple[int, int, str]:
        """Return (epoch, revision, blob) of the stored value. Anyone may overwrite an unreadable value."""
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:  # a delete marker has a revision too
            deleted: KeyValue.Entry | None = cast(Any, error).entry
            return 0, (deleted.revision or 0) if deleted else 0, ""
        revision = entry.revision or 0
        try:
            value = _decode_value(entry.value or b"")
        except MalformedMessage as error:
            log.error("snapshot %s is unreadable: %s", key, error)
            return 0, revision, ""
        return value.epoch, revision, value.sha256 if isinstance(value, SnapshotBlobRef) else ""

    async def get(self, job: str, image_count: int = MAX_COUNT) -> list[Snapshot]:
        """Return a job's snapshots in the order of its images. Unreadable ones are logged and left out."""
        snapshots = await asyncio.gather(*(self._read_image(job, image) for image in range(image_count)))
        return [snapshot for snapshot in snapshots if snapshot is not None]

    async def get_amendment_log(self, job: str) -> AmendmentLog | None:
        """Return a job's amendments; None if it has none, or if they cannot be read, which is logged."""
        try:
            entry = await self._bucket.get(subjects.amendment_log_key(job))
            value = _decode_value(entry.value or b"")
        except KeyNotFoundError:
            return None
        except MalformedMessage as error:
            log.error("the amendments of job %s are unreadable: %s", job, error)
            return None
        return value if isinstance(value, AmendmentLog) and value.job == job else None

    async def _read_image(self, job: str, image: int) -> Snapshot | None:
        key = subjects.snapshot_key(job, image)
        try:
            entry = await self._bucket.get(key)
            value = _decode_value(entry.value or b"")
            if isinstance(value, SnapshotBlobRef):
                value = decode(await self._blobs.get(value.sha256, LARGEST_SNAPSHOT), Snapshot)
        except KeyNotFoundError:
            return None
        except (MalformedMessage, BlobMissing) as error:
            log.error("snapshot %s is unreadable: %s", key, error)
            return None
        return value if isinstance(value, Snapshot) and (value.job, value.image) == (job, image) else None

    async def drop(self, job: str) -> None:
        """Delete a finished job's snapshots; a purge leaves no delete marker."""
        blobs = [self._own_writes.pop(key, (0, 0, ""))[2] for key in self._image_keys(job)]
        if self._has_worker_key:
            await asyncio.gather(*(self._delete_if_present(key) for key in self._image_keys(job)))
        else:
            await self._js.purge_stream(
                subjects.kv_stream(subjects.SNAPSHOTS), subject=subjects.kv_subject(subjects.SNAPSHOTS, f"{job}.*")
            )
        for blob in blobs:
            if blob:
                await self._blobs.drop(blob)

    async def _delete_if_present(self, key: str) -> None:
        """Delete a key that exists. Most images of a short job have none: a look costs less than a useless marker."""
        try:
            await self._bucket.get(key)
        except KeyNotFoundError:
            return
        await self._bucket.delete(key)

    @staticmethod
    def _image_keys(job: str) -> list[str]:
        images = (subjects.snapshot_key(job, image) for image in range(MAX_CANDIDATE_IMAGES))
        return [*images, subjects.amendment_log_key(job)]
