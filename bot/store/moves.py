"""Transitions in SQL: each changes the job, its accounts and the audit together, or nothing at all.

Every function works inside a transaction that its caller began. `bot.states` says which moves there are; here each is
one UPDATE … WHERE state IN (…) AND epoch <= …, so a stale or doubled message changes nothing and is charged nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, RowMapping, func, select, update

from bot.states import ACTIVE, TRANSITIONS, Move, State, over
from bot.store.accounts import Wish, bill, busy, choose, enter, serve, shift
from bot.store.ledger import Ledger
from bot.store.reads import of_key
from bot.store.records import RELAXED, Draft, Moved, Record, record
from bot.store.tables import jobs, moves, places

Decide = Callable[[Sequence[Draft], Ledger], Sequence[Draft]]
POISON = 3  # attempts without progress
ATTEMPTS = 20  # in all: what a worker says of its progress may be a lie
WORN = f"It was tried {ATTEMPTS} times and never finished."
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
        row = connection.execute(jobs.insert().values(**values).returning(jobs)).mappings().one()
        where = dict(draft.place.where)
        answer = {"role": "answer", "kind": draft.place.kind, "where": where, "message": "", "reason": ""}
        connection.execute(places.insert().values(job=draft.id, **answer))
        enter(connection, row["account"], weights)
        shift(connection, row["account"], queued=1)
        note(connection, row, "new", draft.created, draft.action)
        made.append(record(row))
    return made


def move(
    connection: Connection, kind: Move, job: str, now: float, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> Moved | None:  # fmt: skip
    """One transition. None: there is no such job, its state does not allow it, or a newer epoch has it."""
    rule = TRANSITIONS[kind]
    before = _locked(connection, job)
    if before is None:
        return None
    moving = update(jobs).where(jobs.c.id == job, jobs.c.state.in_(rule.sources))
    if epoch is not None:
        moving = moving.where(jobs.c.epoch <= epoch)
        values["epoch"] = epoch
    changed = connection.execute(moving.values(state=rule.target, **values).returning(jobs))
    row = changed.mappings().first()
    if row is None:
        return None
    tally(connection, row["account"], before["state"], rule.target)
    note(connection, row, before["state"], now, why)
    return Moved(record(row), before["state"])


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

    The head of the order waits for its room: nobody passes it, or large jobs would starve. The one exception is the way
    in: a user with nothing active may send one job beyond the room, as long as that stays within `overbook` × `rows`.
    """
    taken, row = busy(connection, wish.pool), choose(connection, wish)
    if row is None or rows <= 0:
        return None
    if taken + min(row["rows"], rows) > rows:  # one that is larger than the whole pool has it to itself
        row = choose(connection, replace(wish, newcomers=True))
        if row is None or taken + min(row["rows"], rows) > rows * (1 + overbook):
            return None
    return _send(connection, row, now)


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
    connection: Connection, job: str, epoch: int, worker: str, step: int, now: float, *, seen: int = 0
) -> Moved | None:
    """A worker claimed it at `step`; after too many attempts without progress it fails instead (see the record).

    `seen`: the furthest step that live frames have shown; getting there was progress too.
    """
    before = _locked(connection, job)
    if before is None:
        return None
    again = before["state"] == "running" and before["epoch"] != epoch  # a requeue has counted already
    reached = min(max(step, seen), record(before).steps)
    barren = _barren(before, reached, again)
    if barren >= POISON and before["epoch"] <= epoch:
        return _poisoned(connection, before, now, f"again on {worker}")
    if before["epoch"] <= epoch and _begun(connection, job, epoch) >= ATTEMPTS:
        return _poisoned(connection, before, now, f"again on {worker}", WORN)
    return move(
        connection, "start", job, now, epoch=epoch, why=worker, worker=worker, step=max(reached, before["step"]),
        barren=barren, started=before["started"] or now,
    )  # fmt: skip


def requeue(
    connection: Connection, job: str, now: float, *, step: int, why: str, reason: str = "", epoch: int | None = None
) -> Moved | None:
    """Back into the queue as the next attempt, or failed after too many without progress (see the record).

    `step`: as far as it is known to have come. `reason`: the sentence for the member if it fails.
    """
    before = _locked(connection, job)
    if before is None:
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
    before = _locked(connection, job)
    if before is None:
        return None, None
    if before["state"] == "queued":
        moved = end(connection, "cancel", job, now, before["cost"] * _share(before, 0), why="wished")
        return (moved.record if moved else None), moved
    if before["state"] in ACTIVE:
        noted = update(jobs).where(jobs.c.id == job).values(cancelling=True).returning(jobs)
        return record(connection.execute(noted).mappings().one()), None
    return record(before), None


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


def _locked(connection: Connection, job: str) -> RowMapping | None:
    return connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()


def tally(connection: Connection, account: str, source: State, target: State) -> None:
    """Count a move from state to state in the accounts."""

    def weigh(state: State) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE))

    (queued, active), (queues, acts) = weigh(source), weigh(target)
    shift(connection, account, queued=queues - queued, active=acts - active)


def note(connection: Connection, row: RowMapping, source: str, now: float, why: str) -> None:
    """One line of the audit."""
    connection.execute(
        moves.insert().values(
            job=row["id"],
            at=now,
            source=source,
            target=row["state"],
            attempt=row["attempt"],
            epoch=row["epoch"],
            why=why,
        )
    )
