"""Registry of live workers: each worker's latest presence, in memory, until its lease expires.

It subscribes to the bucket's subjects, so after a broker restart, even with an empty store, the next announcements
repair it. A worker announces itself in each of its pools and counts only in the pools that its subjects name: its key
lets it publish in no others.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from nats.aio.msg import Msg
from nats.js.kv import KV_OP

from engine.bus import subjects
from engine.bus.hardened_client import REPLY_HEADER
from engine.bus.rejections import RejectionLog
from engine.contract import MalformedMessage, Presence, decode

log = logging.getLogger(__name__)

MAX_EXAMINED_BYTES = 64 * 1024  # bytes: a larger malformed presence is not examined


@dataclass(frozen=True)
class Announcement:
    """A worker's latest presence, and until when (loop time) it counts in each pool."""

    presence: Presence
    valid_until: Mapping[str, float]

    def limit_to_live_pools(self, now: float) -> Presence | None:
        """Return the presence, limited to the pools announced within a lease; None where there are none."""
        pools = tuple(pool for pool in self.presence.pools if self.valid_until.get(pool, 0.0) >= now)
        if pools == self.presence.pools:
            return self.presence
        return replace(self.presence, pools=pools) if pools else None


class WorkerRegistry:
    """Live workers by name. It calls `on_change` when a worker comes, goes, or changes its presence."""

    def __init__(self, lease: float, rejections: RejectionLog, on_change: Callable[[], None] = lambda: None) -> None:
        self._lease = lease
        self._rejections = rejections
        self._announcements: dict[str, Announcement] = {}
        self.on_change = on_change

    def get_live_workers(self) -> dict[str, Presence]:
        """Return every live worker by name; forget the expired."""
        now = asyncio.get_running_loop().time()
        live = {name: announcement.limit_to_live_pools(now) for name, announcement in self._announcements.items()}
        for name in [name for name, presence in live.items() if presence is None]:
            log.warning("worker %s has not been heard of for %.0f s", name, self._lease)
            del self._announcements[name]
        return {name: presence for name, presence in live.items() if presence is not None}

    async def on_message(self, msg: Msg) -> None:
        self.handle_message(msg.subject, msg.data, msg.headers or {})

    def handle_message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Handle a put or a delete in the bucket."""
        if REPLY_HEADER in headers:
            self._rejections.record(f"a message on {subject}", "it is a reply of the broker, not a worker's message")
        elif payload:
            self._handle_announcement(subject, payload)
        elif KV_OP in headers:
            self._remove(*subjects.parse_presence_subject(subject))

    def _remove(self, name: str, pool: str) -> None:
        announcement = self._announcements.get(name)
        if announcement is None or pool not in announcement.valid_until:
            return
        remaining = {
            other_pool: expiry for other_pool, expiry in announcement.valid_until.items() if other_pool != pool
        }
        if remaining:
            self._announcements[name] = Announcement(announcement.presence, remaining)
        else:
            del self._announcements[name]
            log.info("worker %s has left", name)
        self.on_change()

    def _handle_announcement(self, subject: str, payload: bytes) -> None:
        """Handle one announcement: worker and pool of its subject must match the payload."""
        worker, pool = subjects.parse_presence_subject(subject)
        try:
            presence = decode(payload, Presence)
        except MalformedMessage as error:
            self._rejections.record(
                f"worker {worker or subject} announces {_describe_invalid_field(payload, str(error))}", str(error)
            )
            return
        if worker != presence.worker or pool not in presence.pools:
            self._rejections.record(
                f"on {subject} somebody announces the worker {presence.worker} in the pools {','.join(presence.pools)}",
                "it does not count there",
            )
            return
        self._store_presence(presence, pool)

    def _store_presence(self, presence: Presence, pool: str) -> None:
        now = asyncio.get_running_loop().time()
        old = self._announcements.get(presence.worker)
        announced: Mapping[str, float] = old.valid_until if old else {}
        valid_until = {pool: expiry for pool, expiry in announced.items() if pool in presence.pools}
        announcement = Announcement(presence, {**valid_until, pool: now + self._lease})
        self._announcements[presence.worker] = announcement
        if old is None or old.limit_to_live_pools(now) != announcement.limit_to_live_pools(now):
            self.on_change()


def _describe_invalid_field(payload: bytes, error: str) -> str:
    """Return the invalid field and its value, as `rows 50000`; `itself` where they are unknown."""
    match = re.search(r"at `\$\.(\w{1,32})`", error)
    if match is None or len(payload) > MAX_EXAMINED_BYTES:
        return "itself"
    try:
        fields: Any = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, TypeError):
        return "itself"
    value = cast(dict[str, object], fields).get(match[1]) if isinstance(fields, dict) else None
    return f"{match[1]} {value!r:.40}" if isinstance(value, int | float | str) else match[1]
