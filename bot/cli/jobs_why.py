"""Explains why a job waits, for `darkroom jobs why`: its place in the queue from SQL, and what the running bot knows.

Only the bot knows the live workers, and so when a job will be done. Without a bot, only the order of the queue is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.cli import jobs_store, remote
from bot.cli.at_the_store import settings_of
from bot.cli.developed import Undeveloped
from bot.cli.running import find
from bot.queue.board import Board
from bot.queue.forecast import Forecast
from bot.refused import Refused
from bot.sentences import duration, jobs, shortened
from bot.states import over
from bot.store import Record, Store, reads
from bot.web.auth import terminal_key

NAMED = 3  # how many jobs ahead are named
ALONE = "No running bot answers on this data folder: the workers and the waiting time are not known."


@dataclass(frozen=True)
class Why:
    """Why one job waits.

    `ahead`: ids of the jobs before it, the next to be dispatched first, as far as the queue is laid out. `told`: the
    running bot's answer, or None.
    """

    record: Record
    ahead: Sequence[str]
    place: int | None
    told: Mapping[str, Any] | None
    sentence: str

    def plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        told = self.told or {}
        return {
            "id": self.record.id, "state": self.record.state, "place": self.place, "ahead": list(self.ahead),
            "why": told.get("why", ""), "eta": told.get("eta"), "bot": self.told is not None,
            "sentence": self.sentence,
        }  # fmt: skip


def explain(data: Path | None, beginning: str) -> Why:
    """Explain why one job waits, found by the beginning of its id. Raise `Refused`."""
    record, place, before = jobs_store.run(data, lambda store: _ordered(store, beginning))
    told = asyncio.run(_told(settings_of(data).data, record))
    return Why(record, [one.id for one in before], place, told, _said(record, place, before, told))


async def _ordered(store: Store, beginning: str) -> tuple[Record, int | None, list[Record]]:
    """Return the job, how many start before it, and the first of these."""
    record = await jobs_store.found(store, beginning)
    forecast = Forecast(store, Board(), dict)
    spot = await forecast.spot(record)
    if spot is None:
        return record, None, []
    order = [job for job, one in (await forecast.outlook()).spots.items() if one.pool == record.pool]
    before = order[: order.index(record.id)] if record.id in order else []
    known = await store.ask(reads.some, before[:100])
    return record, spot.ahead, [known[job] for job in before[:100] if job in known]


async def _told(data: Path, record: Record) -> Mapping[str, Any] | None:
    """Return what the bot that runs on this folder says of the job; None if none answers."""
    running = find(data)
    if running is None or over(record.state) or not await remote.answers(running.url):
        return None
    key = await asyncio.to_thread(terminal_key, data)
    try:
        return await remote.ask(running.url, key, f"/api/jobs/{record.id}/why")
    except (Refused, Undeveloped):
        return None


def _said(record: Record, place: int | None, before: Sequence[Record], told: Mapping[str, Any] | None) -> str:
    if over(record.state):
        return f"It does not wait: it {_ended(record)}."
    eta = "" if told is None or told.get("eta") is None else f"; done in about {duration(float(told['eta']))}"
    if record.cancelling:
        return "It is being cancelled: it ends at its worker's next step, or when its worker is not there any more."
    if record.state == "running":
        step = max(record.step, int(told["step"]) if told else 0)
        return f"It does not wait: {record.worker} has it, at step {step} of {record.steps}{eta}."
    if record.state == "sent":
        return f"It is on its way to a worker since {duration(time.time() - (record.sent or record.created))}{eta}."
    line = f"{jobs(place)} ahead of it{_names(before, place)}" if place else "Next in line"
    reason = str(told.get("why", "")) if told else ALONE
    if reason.startswith(("Next in line", f"{place} ahead")):  # repeats the line
        reason = "" if place else "It starts when there is room."
    return f"{line}{eta}. {reason}".rstrip()


def _ended(record: Record) -> str:
    when = f"{duration(time.time() - record.ended)} ago" if record.ended else "already"
    said = f": {record.reason.rstrip('.')}" if record.reason else ""
    return ("was cancelled " if record.state == "cancelled" else f"{record.state} ") + when + shortened(said, 300)


def _names(before: Sequence[Record], place: int) -> str:
    """Return ": Ann's 01J…, Bob's 01J…, and 2 more"; empty where the queue is too long to be laid out."""
    named = [f"{shortened(one.member_name, 20)}'s {one.id}" for one in before[:NAMED]]
    if place > len(named) and named:
        named.append(f"and {place - len(named)} more")
    return f": {', '.join(named)}" if named else ""
