"""Jobs in the store, for `darkroom jobs`: finds them by the beginning of an id, reads and changes them.

Every mistake is a `Refused` with one sentence. Prints nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from bot.cli.at_the_store import at_the_store, settings_of
from bot.refused import Refused
from bot.sentences import duration, shortened
from bot.states import ENDS, OPEN, State, over
from bot.store import Record, Store, Stored, operating, places, reads
from bot.store.operating import Sought
from bot.store.records import Entry
from bot.views import Delivery

T = TypeVar("T")
BEGINNING = re.compile(r"[0-9A-Z]{1,26}")
GROUPS: Mapping[str, tuple[State, ...]] = {"open": OPEN, "over": ENDS}
NEVER_BEGAN = "cancelled before it began; nothing was charged."


@dataclass(frozen=True)
class Whole:
    """One job with its history, its destinations and its pictures."""

    record: Record
    history: Sequence[Entry]
    deliveries: Sequence[Delivery]
    pictures: Sequence[Stored]


def listed(
    data: Path | None, states: Sequence[str], guild: str, member: str, limit: int, oldest: bool
) -> list[Record]:  # fmt: skip
    """Return the jobs. Raise `Refused` for an unknown state."""
    wanted: tuple[State, ...] = tuple(state for name in states for state in _states(name))
    return run(data, lambda store: store.ask(operating.listed, Sought(wanted, guild, member, limit, oldest)))


def _states(name: str) -> tuple[State, ...]:
    known: tuple[State, ...] = get_args(State)
    if name in GROUPS:
        return GROUPS[name]
    if name not in known:
        raise Refused(f"“{shortened(name, 40)}” is no state: there are {', '.join([*known, *GROUPS])}.")
    return tuple(state for state in known if state == name)


def whole(data: Path | None, beginning: str) -> Whole:
    """Return one job, found by the beginning of its id."""

    async def asked(store: Store) -> Whole:
        record = await found(store, beginning)
        ids = [record.id]
        shown = [*(await store.ask(places.deliveries, record.id)).values(), *await store.ask(places.films, record.id)]
        return Whole(record, await store.ask(reads.history, ids), shown, await store.ask(reads.stored, ids))

    return run(data, asked)


def cancelled(data: Path | None, beginning: str) -> str:
    """Cancel a job; return what happened. Raise `Refused` if it has ended."""

    async def asked(store: Store) -> str:
        before = await found(store, beginning)
        _open(before)
        after = await store.write(operating.cancel, before.id, time.time())
        if after is None or after.state != "cancelled":
            _open(after or before)
            return (
                f"Job {before.id} is being cancelled: a running bot tells its worker within seconds, it stops at its "
                "next step, and only the steps it ran are charged."
            )
        said = NEVER_BEGAN if after.started is None else f"cancelled; {_spent(after.charged)}."
        return f"Job {before.id}: {said}"

    return run(data, asked)


def requeued(data: Path | None, beginning: str) -> str:
    """Put a job back into the queue; return what happened.

    Raise `Refused` if it has ended, waits or is being cancelled.
    """

    async def asked(store: Store) -> str:
        before = await found(store, beginning)
        moved = await store.write(operating.requeue, before.id, time.time())
        if moved is None:
            now = await found(store, before.id)
            _open(now)
            raise Refused("It is being cancelled." if now.cancelling else "It waits in the queue already.")
        there = f"; a running bot takes it from {before.worker} within seconds" if before.worker else ""
        return f"Job {before.id} is in the queue again, as attempt {moved.record.attempt}{there}."

    return run(data, asked)


def _open(record: Record) -> None:
    if over(record.state):
        raise Refused(f"Too late: job {record.id} has {_verb(record.state)} already.")


def _verb(state: State) -> str:
    return "been cancelled" if state == "cancelled" else state


def _spent(charged: float) -> str:
    return f"{duration(charged)} of device time were charged" if charged else "nothing was charged"


async def found(store: Store, beginning: str) -> Record:
    """Return the one job whose id begins so. Raise `Refused` if there is none, or more than one."""
    wanted = beginning.strip().upper()
    if not BEGINNING.fullmatch(wanted):
        raise Refused(f"“{shortened(beginning, 40)}” is no job's id: that has 26 letters and digits.")
    ids = await store.ask(operating.named, wanted, 3)
    if not ids:
        raise Refused(f"There is no job {wanted}.")
    if len(ids) > 1:
        raise Refused(f"More than one job begins with {wanted}, among them {ids[0]} and {ids[1]}: type more of it.")
    record = await store.record(ids[0])
    if record is None:
        raise Refused(f"The record of job {ids[0]} is damaged and cannot be read.")
    return record


def run(data: Path | None, act: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, run `act`, close the store. Raise `Refused` if there is none."""
    return at_the_store(settings_of(data).database, act)
