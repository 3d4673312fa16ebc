"""Job transitions in SQL: each changes the job, its accounts and the audit together, or nothing.

Every function works inside its caller's transaction. `bot.states` defines the transitions; here each is one
UPDATE … WHERE state IN (…) AND epoch <= …, so a stale or duplicate message changes and charges nothing.
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
ATTEMPTS = 20  # in total: a worker may report false progress
WORN = f"It was tried {ATTEMPTS} times and never finished."
_JOB, _PLACE, _BROUGHT = jobs.insert().returning(jobs), places.insert(), pictures.insert()
OVERRUN = 10.0  # a worker may bill at most this many times the estimate in the fair order


def admit(
    connection: Connection, drafts: Sequence[Draft], key: str | None, decide: Decide,
    weights: Mapping[str, float], now: float,
) -> tuple[list[Record], bool]:  # fmt: skip
    """Insert the jobs that `decide` returns, with their destinations; `decide` raises `Refused` to insert none.

    A known idempotency `key` returns its earlier jobs, and False.
    """
    if key is not None and (known := of_key(connection, key)):
        return known, False
    return insert(connection, decide(drafts, Ledger(connection, drafts[0].member, now)), key, weights), True


def insert(
    connection: Connection, drafts: Sequence[Draft], key: str | None, weights: Mapping[str, float]
) -> list[Record]:
    """Insert new jobs as queued, with their destinations and input pictures."""
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
    """Make one transition. None: there is no such job, its state does not allow it, or a newer epoch has it."""
    changed = change(connection, kind, job, now, epoch=epoch, why=why, **values)
    return None if changed is None else Moved(record(changed[0]), changed[1])


def end(
    connection: Connection, kind: Move, job: str, now: float, spent: float | None, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> Moved | None:  # fmt: skip
    """End a job, and settle its charge to `spent` device-seconds (None: the whole reserve). Happens at most once.

    A member never pays more than was reserved. The fair order counts the real cost, up to `OVERRUN` times the estimate.
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
    """Mark the next job in fair order as sent if it fits. `rows`: all that the pool's workers take at once.

    The head of the order waits until it fits: nothing passes it, or large jobs would starve. There are three
    exceptions. The member who has waited longest for a turn gets one now and then (`bot.passing`). A job whose model is
    in memory passes one that needs another model. A member with no active job may exceed `rows` by one job, within
    `overbook` × `rows` more rows. The longest wait may do the same, or newcomers would always fill those rows.
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
    """The rows of a pool: total and taken."""

    rows: int
    taken: int
    overbook: float

    def has(self, row: RowMapping, *, beyond: bool = False) -> bool:
        """Return True if the job fits. A job larger than the pool gets the whole pool."""
        return self.taken + min(row["rows"], self.rows) <= self.rows * (1 + self.overbook if beyond else 1)


def _warmer(connection: Connection, wish: Wish, head: RowMapping, now: float) -> RowMapping:
    """Return the head of the order, or for a limited time a job whose model is in memory."""
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
    """Bill and send a job. A cost billed for an earlier attempt is not billed again."""
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
    """Record a worker's claim at `step`, or fail the job after too many attempts without progress (see the record).

    `seen`: the furthest step that previews have shown; that was progress too. `forgotten`: the broker lost its store,
    and the job's snapshots, since the last claim; this does not count as an attempt without progress.
    """
    before = locked(connection, job)
    if before is None or _counted(before, epoch):
        return None
    again = before["state"] == "running" and before["epoch"] != epoch  # a requeued attempt is counted already
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
    """Queue the job again as its next attempt, or fail it after too many without progress (see the record).

    `step`: the furthest step known. `reason`: the sentence for the member if it fails.
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
    """Request a cancel: a waiting job ends at once, a sent one is flagged for its worker."""
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
    """Return True if the job of this claim was requeued already, so all its reports are repeats."""
    return before["epoch"] == epoch and before["state"] in ("queued", "sent")


def _barren(before: RowMapping, step: int, again: bool) -> int:
    """Count the attempts without progress. Any progress resets the count."""
    return 0 if step > before["step"] else before["barren"] + int(again)


def _begun(connection: Connection, job: str, epoch: int) -> int:
    """Count the other claims that have started the job."""
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
    """Return the fraction of the job that is known to have run."""
    return min(1.0, max(step, before["step"]) / record(before).steps)
