"""What members chose: preferences and favourites. Each works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, select

from bot.store.choices import preferences as chosen
from bot.store.tables import favourites

MOST = 500  # favourites that are listed
_CHOSEN = select(chosen.c["values"]).where(chosen.c.member == bindparam("member"))


def preferences(connection: Connection, member: str) -> dict[str, object]:
    """As they were written; empty if never."""
    found = connection.execute(_CHOSEN, {"member": member}).scalar_one_or_none()
    return dict(found or {})


def prefer(connection: Connection, member: str, changed: Mapping[str, object]) -> dict[str, object]:
    """Some of a member's preferences, and all as they are then; the others stay as they were."""
    values = {**preferences(connection, member), **changed}
    connection.execute(chosen.delete().where(chosen.c.member == member))
    connection.execute(chosen.insert().values({"member": member, "values": values}))
    return values


def favour(connection: Connection, member: str, job: str, image: int, now: float) -> bool:
    """Make it a favourite, or no longer one; True if it is one now."""
    same = (favourites.c.member == member, favourites.c.job == job, favourites.c.image == image)
    if connection.execute(favourites.delete().where(*same)).rowcount:
        return False
    connection.execute(favourites.insert().values(member=member, job=job, image=image, at=now))
    return True


def favoured(connection: Connection, member: str) -> list[tuple[str, int]]:
    """A member's favourites as (job, image), the newest first."""
    asked = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member)
    rows = connection.execute(asked.order_by(favourites.c.at.desc()).limit(MOST))
    return [(row.job, row.image) for row in rows]
