"""Finds the jobs of one interpolation: jobs of one request whose recipes differ only in their position on the way.

Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, select

from bot.states import over
from bot.store.reads import of_key, records
from bot.store.records import Record
from bot.store.tables import jobs
from engine.job import Recipe, Walk


def parts(connection: Connection, job: str) -> list[Record]:
    """Return all jobs of a job's interpolation, in their order on the way; empty if it belongs to none."""
    found = records(connection, select(jobs).where(jobs.c.id == job))
    return _of(connection, found[0]) if found else []


def ended_last(connection: Connection, some: Iterable[Record]) -> set[str]:
    """Return those of these jobs that finished last in an interpolation that is entirely over."""
    found: set[str] = set()
    for one in some:
        whole = _of(connection, one) if over(one.state) else []
        finished = [part for part in whole if part.state == "finished"]
        if finished and all(over(part.state) for part in whole):
            last = max(finished, key=lambda part: (part.ended or 0.0, part.id))
            found |= {one.id} & {last.id}
    return found


def _of(connection: Connection, one: Record) -> list[Record]:
    if _way(one) is None:
        return []
    together: Sequence[Record] = of_key(connection, one.key) if one.key else [one]
    walks = _cut(part for part in together if _alike(part, one))
    return next((walk for walk in walks if one.id in {part.id for part in walk}), [])


def _cut(together: Iterable[Record]) -> list[list[Record]]:
    """Split the ordered jobs of one request into interpolations. A request may ask for the same one twice."""
    walks, before = list[list[Record]](), -1
    for part in together:
        if (way := _way(part)) is None:
            continue
        if not walks or way.first <= before:
            walks.append([])
        walks[-1].append(part)
        before = way.first
    return walks


def _way(one: Record) -> Walk | None:
    return one.task.walk if isinstance(one.task, Recipe) else None


def _alike(one: Record, other: Record) -> bool:
    """Return True if recipe and interpolation are equal but for the position. A request may make several."""
    first, second = (
        msgspec.structs.replace(each.task, count=1, bucket=None, walk=None)
        for each in (one, other) if isinstance(each.task, Recipe)
    )  # fmt: skip
    ways = {msgspec.structs.replace(way, first=0) for each in (one, other) if (way := _way(each)) is not None}
    return first == second and len(ways) == 1
