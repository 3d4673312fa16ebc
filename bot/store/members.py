"""Members' preferences and favourites in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, select

from bot.store.choices import preferences as chosen
from bot.store.tables import favourites

MOST = 500  # most favourites in a list
_CHOSEN = select(chosen.c["values"]).where(chosen.c.member == bindparam("member"))


def preferences(connection: Connection, member: str) -> dict[str, object]:
    """Return the preferences as stored; empty if there are none."""
    found = connection.execute(_CHOSEN, {"member": member}).scalar_one_or_none()
    return dict(found or {})


def prefer(connection: Connection, member: str, changed: Mapping[str, object]) -> dict[str, object]:
    """Change some of a member's preferences, and return all of them."""
    values = {**preferences(connection, member), **changed}
    connection.execute(chosen.delete().where(chosen.c.member == member))
    connection.execute(chosen.insert().values({"member": member, "values": values}))
    return values


def favour(connection: Connection, member: str, job: str, image: int, now: float) -> bool:
    """Toggle a favourite; True if it is one now."""
    same = (favourites.c.member == member, favourites.c.job == job, favourites.c.image == image)
    if connection.execute(favourites.delete().where(*same)).rowcount:
        return False
    connection.execute(favourites.insert().values(member=member, job=job, image=image, at=now))
    return True


def favoured(connection: Connection, member: str) -> list[tuple[str, int]]:
    """Return a member's favourites as (job, image), the newest first."""
    asked = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member)
    rows = connection.execute(asked.order_by(favourites.c.at.desc()).limit(MOST))
    return [(row.job, row.image) for row in rows]
