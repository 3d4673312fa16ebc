"""The workers that are alive, kept in memory: what each last said of itself, until its lease runs out.

Knows presences and time; nothing of jobs. It listens to the bucket's own subjects, so a broker that restarts, even with
an empty store, is repaired by the next round of announcements.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nats.aio.msg import Msg

from engine.job import VERSION, Malformed, Presence, decode

log = logging.getLogger(__name__)


class Presences:
    """`on_change` is called when a worker comes, goes, or changes what it offers."""

    def __init__(self, lease: float, on_change: Callable[[], None] = lambda: None) -> None:
        self._lease = lease
        self._alive: dict[str, tuple[Presence, float]] = {}
        self.on_change = on_change

    def alive(self) -> dict[str, Presence]:
        """Every live worker by its name."""
        now = asyncio.get_running_loop().time()
        gone = [name for name, (_, until) in self._alive.items() if until < now]
        for name in gone:
            log.warning("worker %s has not been heard of for %.0f s", name, self._lease)
            del self._alive[name]
        return {name: presence for name, (presence, _) in self._alive.items()}

    async def on_message(self, msg: Msg) -> None:
        """A put or a delete in the bucket."""
        if not msg.data:
            self._leave(msg.subject.rsplit(".", 1)[-1].replace("=", "."))
        else:
            self.note(msg.data)

    def _leave(self, name: str) -> None:
        if self._alive.pop(name, None) is not None:
            log.info("worker %s has left", name)
            self.on_change()

    def note(self, payload: bytes) -> None:
        """One announcement."""
        try:
            presence = decode(payload, Presence)
        except Malformed as error:
            log.error("a worker's presence is unreadable, so it gets no work: %s", error)
            return
        before = self._alive.get(presence.worker)
        self._alive[presence.worker] = (presence, asyncio.get_running_loop().time() + self._lease)
        if presence.v < VERSION and (before is None or before[0].v != presence.v):
            log.warning(
                "worker %s is of an older version (%d, not %d): it works on, without what is new; update it",
                presence.worker, presence.v, VERSION,
            )  # fmt: skip
        if before is None or before[0] != presence:
            self.on_change()
