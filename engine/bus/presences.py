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

import msgspec
from msgspec.structs import replace
from nats.aio.msg import Msg
from nats.js.kv import KV_OP

from engine.bus import subjects
from engine.bus.hearing import ANSWERED
from engine.bus.refusals import Refusals
from engine.job import VERSION, Malformed, Presence, decode

log = logging.getLogger(__name__)

READ_AGAIN = 64 * 1024  # bytes: a larger malformed presence is not examined


@dataclass(frozen=True)
class Heard:
    """A worker's latest presence, and until when (loop time) it counts in each pool."""

    said: Presence
    until: Mapping[str, float]

    def shown(self, now: float) -> Presence | None:
        """Return the presence, limited to the pools announced within a lease; None where there are none."""
        pools = tuple(pool for pool in self.said.pools if self.until.get(pool, 0.0) >= now)
        if pools == self.said.pools:
            return self.said
        return replace(self.said, pools=pools) if pools else None


class Presences:
    """`on_change` is called when a worker comes, goes, or changes its presence."""

    def __init__(self, lease: float, refused: Refusals, on_change: Callable[[], None] = lambda: None) -> None:
        self._lease, self._refused = lease, refused
        self._heard: dict[str, Heard] = {}
        self.on_change = on_change

    def alive(self) -> dict[str, Presence]:
        """Return every live worker by name; forget the expired."""
        now = asyncio.get_running_loop().time()
        shown = {name: heard.shown(now) for name, heard in self._heard.items()}
        for name in [name for name, presence in shown.items() if presence is None]:
            log.warning("worker %s has not been heard of for %.0f s", name, self._lease)
            del self._heard[name]
        return {name: presence for name, presence in shown.items() if presence is not None}

    async def on_message(self, msg: Msg) -> None:
        self.hear(msg.subject, msg.data, msg.headers or {})

    def hear(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Handle a put or a delete in the bucket."""
        if ANSWERED in headers:
            self._refused.note(f"a message on {subject}", "it is a reply of the broker, not a worker's message")
        elif payload:
            self._note(subject, payload)
        elif KV_OP in headers:
            self._leave(*subjects.announced(subject))

    def _leave(self, name: str, pool: str) -> None:
        heard = self._heard.get(name)
        if heard is None or pool not in heard.until:
            return
        left = {one: until for one, until in heard.until.items() if one != pool}
        if left:
            self._heard[name] = Heard(heard.said, left)
        else:
            del self._heard[name]
            log.info("worker %s has left", name)
        self.on_change()

    def _note(self, subject: str, payload: bytes) -> None:
        """Handle one announcement: worker and pool of its subject must match the payload."""
        worker, pool = subjects.announced(subject)
        try:
            said = decode(payload, Presence)
        except Malformed as error:
            self._refused.note(f"worker {worker or subject} announces {_part(payload, str(error))}", str(error))
            return
        if worker != said.worker or pool not in said.pools:
            self._refused.note(
                f"on {subject} somebody announces the worker {said.worker} in the pools {','.join(said.pools)}",
                "it does not count there; workers older than this version name no pool: update it, and make its key "
                "anew for a broker of your own",
            )  # fmt: skip
            return
        self._keep(said, pool)

    def _keep(self, said: Presence, pool: str) -> None:
        now = asyncio.get_running_loop().time()
        before = self._heard.get(said.worker)
        until = {one: end for one, end in (before.until if before else {}).items() if one in said.pools}
        heard = Heard(said, {**until, pool: now + self._lease})
        self._heard[said.worker] = heard
        if said.v < VERSION and (before is None or before.said.v != said.v):
            log.warning(
                "worker %s has an older version (%d, not %d): it works, without newer features; update it",
                said.worker, said.v, VERSION,
            )  # fmt: skip
        if before is None or before.shown(now) != heard.shown(now):
            self.on_change()


def _part(payload: bytes, error: str) -> str:
    """Return the invalid field and its value, as `rows 50000`; `itself` where they are unknown."""
    at = re.search(r"at `\$\.(\w{1,32})`", error)
    if at is None or len(payload) > READ_AGAIN:
        return "itself"
    try:
        said = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, TypeError):
        return "itself"
    value = said.get(at[1]) if isinstance(said, dict) else None
    return f"{at[1]} {value!r:.40}" if isinstance(value, int | float | str) else at[1]
