"""The bodies that webhooks are sent, as JSON. A body is the same at each try of its event.

It has no prompt and no picture but previews: who may see a job asks for it at its address, and the operator does not
see private ones.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from bot.domain.events import JobProgress
from bot.features.webhooks.store import WebhookDelivery
from bot.store.jobs.records import JobRecord, StoredPicture


def build_event_body(delivery: WebhookDelivery, record: JobRecord, pictures: Sequence[StoredPicture]) -> bytes:
    """Return the body of an event in the outbox. `pictures`: of the job; inputs and ladders among them are left out."""
    data = _describe_job(record) | {"attempt": delivery.attempt}
    if delivery.event in ("job.finished", "job.failed", "job.cancelled"):
        data |= {"ended": record.ended, "seconds": record.seconds, "reason": record.reason}
    if delivery.event == "job.finished":
        images = sorted((picture for picture in pictures if picture.kind == "image"), key=lambda picture: picture.image)
        data["pictures"] = [_describe_picture(picture) for picture in images]
    return _encode(delivery.event, delivery.at, data)


def build_preview_body(record: JobRecord, progress: JobProgress, now: float) -> bytes:
    """Return the body of a preview: its newest frames, as JPEG in base64."""
    frames = [
        {"n": image + 1, "content_type": "image/jpeg", "base64": base64.b64encode(frame).decode()}
        for image, frame in sorted(progress.frames.items())
    ]
    data = _describe_job(record) | {"step": progress.step, "total_steps": progress.total_steps, "previews": frames}
    return _encode("job.preview", now, data)


def _describe_job(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "url": f"/api/jobs/{record.id}",
        "action": record.action,
        "member": record.member,
        "guild": record.guild,
        "created": record.created,
    }


def _describe_picture(picture: StoredPicture) -> dict[str, Any]:
    number = picture.image + 1
    return {
        "n": number,
        "url": f"/api/jobs/{picture.job}/pictures/{number}.png",
        "width": picture.width,
        "height": picture.height,
    }


def _encode(event: str, at: float, data: Mapping[str, Any]) -> bytes:
    timestamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode({"type": event, "timestamp": timestamp, "data": data})
