"""Transitions in SQL: each changes the job, its accounts and the audit together, or nothing at all.

Every function works inside a transaction that its caller began. `bot.states` says which moves there are; here each is
one UPDATE … WHERE state IN (…) AND epoch <= …, so a stale or doubled message changes nothing and is charged nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, RowMapping, func, select, update

from bot.states import ACTIVE, TRANSITIONS, Move, over
from bot.store.accounts import Wish, attend, bill, busy, choose, enter, longest, serve, shift
from bot.store.ledger import Ledger
from bot.store.reads import of_key
from bot.store.records import RELAXED, Draft, Moved, Record, record
from bot.store.tables import jobs, moves, pictures, places
from bot.store.transition import change, locked, note

Decide = Callable[[Sequence[Draft], Ledger], Sequence[Draft]]
POISON = 3  # attempts without progress
ATTEMPTS = 20  # in all: what a worker says of its progress may be a lie
WORN = f"It was tried {ATTEMPTS} times and never finished."
_JOB, _PLACE, _BROUGHT = jobs.insert().returning(jobs), places.insert(), pictures.insert()
OVERRUN = 10.0  # a worker may bill this many times the estimate against the fair order, not more


def admit(
    connection: Connection, drafts: Sequence[Draft], key: str | None, decide: Decide,
    weights: Mapping[str, float], now: float,
) -> tuple[list[Record], bool]:  # fmt: skip
    """All that `decide` makes of the drafts, with their places, or none: it raises `Refused`. A known `key` gives what
    it made, and False.
    """
    if key is not None and (known := of_key(connection, key)):
        return known, False
    return insert(connection, decide(drafts, Ledger(connection, drafts[0].member, now)), key, weights), True


def insert(
    connection: Connection, drafts: Sequence[Draft], key: str | None, weights: Mapping[str, float]
) -> list[Record]:
    """New jobs with their places, queued."""
    made: list[Record] = []
    for ordinal, draft in enumerate(drafts):
        values = draft.values(key, ordinal)
        row = connection.execute(_JOB, values).mappings().one()
        answer = {
            "job": draft.id, "role": "answer", "kind": draft.place.kind, "where": dict(draft.place.where),
            "message": "", "reason": "",
        }  # fmt: skip
        connection.execute(_PLACE, answer)
        enter(connection, row["account"], weights, draft.created)
        shift(connection, row["account"], queued=1)
        if brought := draft.brought():
            connection.execute(_BROUGHT, brought)
        note(connection, row, "new", draft.created, draft.action)
        made.append(record(row))
    return made


def move(
    connection: Connection, kind: Move, job: str, now: float, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> Moved | None:  # fmt: skip
    """One transition. None: there is no such job, its state does not allow it, or a newer epoch has it."""
    changed = change(connection, kind, job, now, epoch=epoch, why=why, **values)
    return None if changed is None else Moved(record(changed[0]), changed[1])


def end(
    connection: Connection, kind: Move, job: str, now: float, spent: float | None, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> Moved | None:  # fmt: skip
    """A transition to an end: settles the charge to `spent` device-seconds (None: all that was reserved), once.

    A member is never charged more than was reserved; the fair order counts what was really used, within reason.
    """
    assert over(TRANSITIONS[kind].target)
    moved = move(connection, kind, job, now, epoch=epoch, why=why, ended=now, cancelling=False, **values)
    if moved is None:
        return None
    one = moved.record
    used = one.cost if spent is None else min(spent, OVERRUN * one.cost)
    charged = 0.0 if one.tier == RELAXED else min(used, one.cost)
    settled = update(jobs).where(jobs.c.id == job).values(charged=charged, billed=used).returning(jobs)
    bill(connection, one.account, used - one.billed)
    return Moved(record(connection.execute(settled).mappings().one()), moved.source)


def pick(connection: Connection, wish: Wish, rows: int, overbook: float, now: float) -> Moved | None:
    """Send the next job in fair order that there is room for: `rows` is all that the pool's workers take at once.

    The head of the order waits for its room: nobody passes it, or large jobs would starve. There are three exceptions.
    Whoever has waited longest for a turn gets one now and then (`bot.passing`). A job whose model is in memory passes
    one that needs another. And the way in: a user with nothing active may send one job beyond the room, as long as that
    stays within `overbook` × `rows`; the longest wait may do the same, or newcomers would fill that room for ever.
    """
    if rows <= 0:
        return None
    room = _Room(rows, max(0, busy(connection, wish.pool) - wish.spare), overbook)
    passing = wish.passing
    if passing.due(wish.pool) and (row := longest(connection, wish, passing.before(now))) is not None:
        return _sent(connection, wish, row, now, late=True) if room.has(row, beyond=True) else None
    row = choose(connection, wish)
    if row is not None:
        row = _warmer(connection, wish, row, now)
        if not room.has(row):
            row = choose(connection, replace(wish, newcomers=True))
            row = row if row is not None and room.has(row, beyond=True) else None
    return None if row is None else _sent(connection, wish, row, now)


@dataclass(frozen=True)
class _Room:
    """The rows of a pool: how many there are, and how many are taken."""

    rows: int
    taken: int
    overbook: float

    def has(self, row: RowMapping, *, beyond: bool = False) -> bool:
        """One that is larger than the whole pool has it to itself."""
        return self.taken + min(row["rows"], self.rows) <= self.rows * (1 + self.overbook if beyond else 1)


def _warmer(connection: Connection, wish: Wish, head: RowMapping, now: float) -> RowMapping:
    """The head of the order, or for a while one whose model need not be fetched first."""
    if wish.warm is None or head["model"] in ("", *wish.warm) or not wish.passing.may_pass(head["id"], now):
        return head
    return choose(connection, replace(wish, models=wish.warm)) or head


def _sent(connection: Connection, wish: Wish, row: RowMapping, now: float, *, late: bool = False) -> Moved | None:
    moved = _send(connection, row, now)
    if moved is not None:
        attend(connection, row["account"], now)
        cold = wish.warm is not None and row["model"] not in ("", *wish.warm)
        wish.passing.sent(wish.pool, row["id"], now, fetches=row["model"] if cold else "", late=late)
    return moved


def _send(connection: Connection, row: RowMapping, now: float) -> Moved | None:
    """Sent and billed; what was billed at an earlier attempt is not billed again."""
    serve(connection, row["account"])
    bill(connection, row["account"], max(0.0, row["cost"] - row["billed"]))
    return move(
        connection,
        "send",
        row["id"],
        now,
        sent=now,
        billed=max(row["cost"], row["billed"]),
        why=f"attempt {row['attempt']}",
    )


def start(
    connection: Connection, job: str, epoch: int, worker: str, step: int, now: float, *,
    seen: int = 0, forgotten: bool = False,
) -> Moved | None:  # fmt: skip
    """A worker claimed it at `step`; after too many attempts without progress it fails instead (see the record).

    `seen`: the furthest step that live frames have shown; getting there was progress too. `forgotten`: the broker lost
    its store since the last claim, and with it how far the job had come. That is no attempt without progress.
    """
    before = locked(connection, job)
    if before is None or _counted(before, epoch):
        return None
    again = before["state"] == "running" and before["epoch"] != epoch  # a requeue has counted already
    reached = min(max(step, seen), record(before).steps)
    barren = before["barren"] if forgotten else _barren(before, reached, again)
    if barren >= POISON and before["epoch"] <= epoch:
        return _poisoned(connection, before, now, f"again on {worker}")
    if before["epoch"] <= epoch and _begun(connection, job, epoch) >= ATTEMPTS:
        return _poisoned(connection, before, now, f"again on {worker}", WORN)
    return move(
        connection, "start", job, now, epoch=epoch, why=worker, worker=worker,
        step=reached if forgotten else max(reached, before["step"]), barren=barren, started=before["started"] or now,
    )  # fmt: skip


def requeue(
    connection: Connection, job: str, now: float, *, step: int, why: str, reason: str = "", epoch: int | None = None
) -> Moved | None:
    """Back into the queue as the next attempt, or failed after too many without progress (see the record).

    `step`: as far as it is known to have come. `reason`: the sentence for the member if it fails.
    """
    before = locked(connection, job)
    if before is None or before["state"] not in ACTIVE or (epoch is not None and _counted(before, epoch)):
        return None
    if before["cancelling"]:
        return end(connection, "cancel", job, now, before["cost"] * _share(before, step), epoch=epoch, why=why)
    barren = _barren(before, step, True)
    if barren >= POISON:
        return _poisoned(connection, before, now, why, reason, epoch)
    if before["attempt"] >= ATTEMPTS:
        return _poisoned(connection, before, now, why, WORN, epoch)
    return move(
        connection, "requeue", job, now, epoch=epoch, why=why, attempt=before["attempt"] + 1, worker="",
        step=max(step, before["step"]), barren=barren,
    )  # fmt: skip


def wish(connection: Connection, job: str, now: float) -> tuple[Record | None, Moved | None]:
    """A member wants it cancelled: over at once while it waits, else noted for its worker."""
    before = locked(connection, job)
    if before is None:
        return None, None
    if before["state"] == "queued":
        moved = end(connection, "cancel", job, now, before["cost"] * _share(before, 0), why="wished")
        return (moved.record if moved else None), moved
    if before["state"] in ACTIVE:
        noted = update(jobs).where(jobs.c.id == job).values(cancelling=True).returning(jobs)
        return record(connection.execute(noted).mappings().one()), None
    return record(before), None


def _counted(before: RowMapping, epoch: int) -> bool:
    """True of a claim that was queued again already: of what it said, nothing comes for the first time."""
    return before["epoch"] == epoch and before["state"] in ("queued", "sent")


def _barren(before: RowMapping, step: int, again: bool) -> int:
    """Attempts without progress so far: any progress forgives them all."""
    return 0 if step > before["step"] else before["barren"] + int(again)


def _begun(connection: Connection, job: str, epoch: int) -> int:
    """How many other claims began it so far."""
    others = (moves.c.job == job, moves.c.target == "running", moves.c.epoch != epoch)
    return int(connection.execute(select(func.count(moves.c.epoch.distinct())).where(*others)).scalar_one())


def _poisoned(
    connection: Connection, before: RowMapping, now: float, why: str, reason: str = "", epoch: int | None = None
) -> Moved | None:
    said = reason or f"It was tried {POISON} times and never got further."
    return end(
        connection, "fail", before["id"], now, 0.0, epoch=epoch, why=f"poison: {why}", reason=said, blame="worker",
        barren=POISON,
    )  # fmt: skip


def _share(before: RowMapping, step: int) -> float:
    """How much of a job is known to have been run."""
    return min(1.0, max(step, before["step"]) / record(before).steps)
