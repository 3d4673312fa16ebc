"""Transitions in SQL: each changes the job, its accounts and the audit together, or nothing at all.

Every function works inside a transaction that its caller began. `bot.states` says which moves there are; here each is
one UPDATE … WHERE state IN (…) AND epoch <= …, so a stale or doubled message changes nothing and is charged nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, RowMapping, select, update

from bot.limits import Usage
from bot.states import ACTIVE, TRANSITIONS, Move, State, over
from bot.store.accounts import Wish, bill, busy, choose, enter, serve, shift
from bot.store.reads import of_key, usage
from bot.store.records import Draft, Moved, Record, record
from bot.store.tables import jobs, moves, places

OVERRUN = 10.0  # a worker may bill this many times the estimate against the fair order, not more


def admit(
    connection: Connection, drafts: Sequence[Draft], key: str | None, decide: Callable[[Usage], None],
    weights: Mapping[str, float], now: float,
) -> tuple[list[Record], bool]:  # fmt: skip
    """All drafts with their places, or none: `decide` raises `Refused`. A known `key` gives what it made, and False."""
    if key is not None and (known := of_key(connection, key)):
        return known, False
    decide(usage(connection, drafts[0].member.id, drafts[0].member.guild, now))
    return insert(connection, drafts, key, weights), True


def insert(
    connection: Connection, drafts: Sequence[Draft], key: str | None, weights: Mapping[str, float]
) -> list[Record]:
    """New jobs with their places, queued."""
    made: list[Record] = []
    for ordinal, draft in enumerate(drafts):
        values = draft.values(key, ordinal)
        row = connection.execute(jobs.insert().values(**values).returning(jobs)).mappings().one()
        connection.execute(places.insert().values(job=draft.id, kind=draft.place.kind, where=dict(draft.place.where)))
        enter(connection, row["account"], weights)
        shift(connection, row["account"], queued=1)
        _audit(connection, row, "new", draft.created, draft.action)
        made.append(record(row))
    return made


def move(
    connection: Connection, kind: Move, job: str, now: float, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> Moved | None:  # fmt: skip
    """One transition. None: there is no such job, its state does not allow it, or a newer epoch has it."""
    rule = TRANSITIONS[kind]
    before = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()
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
    _count(connection, row["account"], before["state"], rule.target)
    _audit(connection, row, before["state"], now, why)
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
    charged = min(used, one.cost)
    settled = update(jobs).where(jobs.c.id == job).values(charged=charged, billed=used).returning(jobs)
    bill(connection, one.account, used - one.billed)
    return Moved(record(connection.execute(settled).mappings().one()), moved.source)


def pick(connection: Connection, wish: Wish, rows: int, overbook: float, now: float) -> Moved | None:
    """Send the next job in fair order that there is room for: `rows` is all that the pool's workers take at once.

    The head of the order waits for its room: nobody passes it, or large jobs would starve. The one exception is the way
    in: a user with nothing active may send one job beyond the room, as long as that stays within `overbook` × `rows`.
    """
    taken = busy(connection, wish.pool)
    row = choose(connection, wish)
    if row is None:
        return None
    if taken > 0 and taken + row["rows"] > rows:
        row = choose(connection, Wish(wish.pool, wish.models, wish.running, newcomers=True))
        if row is None or taken + row["rows"] > rows * (1 + overbook):
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


def start(connection: Connection, job: str, epoch: int, worker: str, step: int, now: float) -> Moved | None:
    """A worker claimed it. Counts the attempt as barren if the one before it brought no progress."""
    before = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()
    if before is None:
        return None
    again = before["epoch"] not in (0, epoch)
    barren = before["barren"] + 1 if again else before["barren"]
    return move(
        connection, "start", job, now, epoch=epoch, why=worker, worker=worker, step=max(step, before["step"]),
        barren=0 if step > before["step"] else barren, started=before["started"] or now,
    )  # fmt: skip


def requeue(
    connection: Connection, job: str, now: float, *, step: int, why: str, epoch: int | None = None
) -> Moved | None:
    """Back into the queue as the next attempt. `step`: as far as it is known to have come."""
    before = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()
    if before is None:
        return None
    progress = step > before["step"]
    return move(
        connection, "requeue", job, now, epoch=epoch, why=why, attempt=before["attempt"] + 1, worker="",
        step=max(step, before["step"]), barren=0 if progress else before["barren"] + 1,
    )  # fmt: skip


def _count(connection: Connection, account: str, source: State, target: State) -> None:
    def weigh(state: State) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE))

    (queued, active), (queues, acts) = weigh(source), weigh(target)
    shift(connection, account, queued=queues - queued, active=acts - active)


def _audit(connection: Connection, row: RowMapping, source: str, now: float, why: str) -> None:
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
